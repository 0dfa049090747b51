"""The committed table of expected values, and how a run compares with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from snows_core.errors import SnowsError, invalid_argument

COLUMNS = ["notebook", "profile", "metric", "value", "expected", "tolerance", "verdict"]
FAILED = ("off", "missing")


class Expectation(BaseModel):
    """What one metric should be.

    Attributes:
        value: the number of a recorded run, or a bound.
        tolerance: largest difference that is no mistake.
        reason: where the tolerance comes from.
    """

    model_config = ConfigDict(extra="forbid")

    value: float
    tolerance: float = Field(ge=0)
    reason: str = ""


Expected = dict[str, dict[str, dict[str, Expectation]]]  # notebook, profile, metric


def load_expected(path: Path) -> Expected:
    """Read ``figures/expected.yaml``: notebook, then profile, then metric, then value, tolerance and reason.

    Args:
        path: the file; none means that nothing is expected.

    Returns:
        Notebook to profile to metric to expectation.

    Raises:
        SnowsError: when the file does not follow the schema.
    """
    if not path.is_file():
        return {}
    try:
        return TypeAdapter(Expected).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except yaml.YAMLError as error:
        raise SnowsError(f"{path.name}: no YAML ({str(error).splitlines()[0]}); expected keys and values.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        keys = "value, tolerance, reason"
        raise invalid_argument(f"{path.name}: {where}", repr(first["input"]), keys, first["msg"] + ".") from error


def compare(stem: str, profile: str, metrics: Mapping[str, Any], expected: Mapping[str, Expectation]) -> pd.DataFrame:
    """Set what came beside what was expected.

    Args:
        stem: the notebook's name.
        profile: its profile.
        metrics: name to number, of the run.
        expected: name to expectation.

    Returns:
        One row a metric, those expected first; verdict is "ok", "off", "missing" (expected, not recorded) or "" (not
        expected, so not compared).

    >>> table = compare("03", "digits", {"dense": 98.5}, {"dense": Expectation(value=98, tolerance=1)})
    >>> table["verdict"].tolist()
    ['ok']
    """
    rows: list[tuple[Any, ...]] = []
    for name, wanted in expected.items():
        value = metrics.get(name)
        if value is None:
            verdict = "missing"
        else:
            verdict = "ok" if abs(value - wanted.value) <= wanted.tolerance else "off"
        rows.append((stem, profile, name, value, wanted.value, wanted.tolerance, verdict))
    rows += [(stem, profile, name, value, None, None, "") for name, value in metrics.items() if name not in expected]
    return pd.DataFrame(rows, columns=COLUMNS)
