"""How many multiply-adds a machine does in a second, measured on small problems of each kind of work."""

from __future__ import annotations

from functools import cache

import torch

from snows_core.devices import widest
from snows_core.methods.cost import Rates
from snows_core.sweep.memory import shortest

SIZE, COUNT, REPEATS = 512, 8, 3  # width of the matrices, how many are factored at once, and how often


@cache
def measured_rates(device: torch.device) -> Rates:
    """Return the rates of a device, in the number format that methods sum and factor in; measured once a process.

    Args:
        device: where methods compute.

    Returns:
        Multiply-adds a second.
    """
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64).to(device, widest(device))
    definite = (matrix @ matrix.mT + SIZE * torch.eye(SIZE, device=device, dtype=matrix.dtype)).repeat(COUNT, 1, 1)
    vectors = matrix[:COUNT, :, None]
    work = {
        "products": (SIZE**3, lambda: matrix @ matrix),
        "factors": (COUNT * SIZE**3 / 6, lambda: torch.linalg.cholesky_ex(definite)),
        "passes": (COUNT * SIZE**2, lambda: definite @ vectors),
    }
    return Rates(**{name: amount / shortest(call, REPEATS, device) for name, (amount, call) in work.items()})
