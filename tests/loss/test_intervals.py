"""Wilson's interval of a share."""

import pytest
import torch

from snows_core.loss.intervals import wilson


def test_wilsons_bounds_solve_his_equation():
    for share, count in ((0.872, 500), (0.0, 500), (0.5, 10)):
        for bound in wilson(share, count):
            if 0 < bound < 1:
                spread = torch.tensor(bound * (1 - bound) / count).sqrt()
                assert abs(share - bound) == pytest.approx(1.959964 * float(spread), rel=1e-5)
