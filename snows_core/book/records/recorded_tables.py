"""Tables that were measured once, outside of any notebook, and are shown and checked by one."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from snows_core.book.files_shown import CHECKOUT
from snows_core.errors import invalid_argument


def recorded_table(relative: str, root: Path = CHECKOUT) -> pd.DataFrame:
    """Return a table of measurements that the repository holds; empty texts stay texts, so that rows can be told apart.

    Args:
        relative: path of a CSV file in the repository, with ``/``, as in ``figures/int8/efficientnet-lite0.csv``.
        root: the checkout.

    Returns:
        One row a measurement; no row without a checkout, as in Colab, where the package alone is installed.

    Raises:
        SnowsError: when a checkout lacks the file.
    """
    path = root / relative
    if path.is_file():
        return pd.read_csv(path, keep_default_na=False)
    if (root / "notebooks").is_dir():
        raise invalid_argument("relative", f"'{relative}', which is no file", f"a table in {root}")
    return pd.DataFrame()
