"""Reading the book's YAML files by a schema, so that a slip of the pen is one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from snows_core.errors import SnowsError, invalid_argument


def read_yaml(path: Path, schema: Any, keys: str) -> Any:
    """Read a YAML file of keys and values; an empty one counts as one without keys.

    Args:
        path: the file, which is there.
        schema: what pydantic validates by: a model, or a type made of models.
        keys: the keys that the schema knows, in words, for the message.

    Returns:
        An object of the schema.

    Raises:
        SnowsError: when the file is no YAML or does not follow the schema.
    """
    try:
        return TypeAdapter(schema).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except yaml.YAMLError as error:
        raise SnowsError(f"{path.name}: no YAML ({str(error).splitlines()[0]}); expected keys and values.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise invalid_argument(f"{path.name}: {where}", repr(first["input"]), keys, first["msg"] + ".") from error
