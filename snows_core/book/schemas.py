"""Reading the book's YAML files by a schema and within bounds, so that a slip of the pen is one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from snows_core.errors import SnowsError, invalid_argument
from snows_core.files.bounded import DEEPEST, read_text

YAML_BYTES = 1_000_000
MOST_NODES = 50_000  # values of one file; the longest of this project has five thousand


def read_yaml(path: Path, schema: Any, keys: str) -> Any:
    """Read a YAML file of keys and values; an empty one counts as one without keys.

    Args:
        path: the file, which is there.
        schema: what pydantic validates by: a model, or a type made of models.
        keys: the keys that the schema knows, in words, for the message.

    Returns:
        An object of the schema.

    Raises:
        SnowsError: when the file is no YAML of bounded size or does not follow the schema.
    """
    try:
        found = plain_yaml(read_text(path, YAML_BYTES))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SnowsError(f"{path.name}: cannot be read ({reason}); expected YAML with the keys {keys}.") from error
    return by_schema({} if found is None else found, schema, path.name, keys)


def by_schema(value: Any, schema: Any, name: str, keys: str) -> Any:
    """Return what came from a file as an object of a schema.

    Args:
        value: of dictionaries, lists, texts and numbers.
        schema: what pydantic validates by.
        name: of the file, for the message.
        keys: the keys that the schema knows, in words, for the message.

    Returns:
        An object of the schema.

    Raises:
        SnowsError: when the value does not follow the schema; the first place is named.
    """
    try:
        return TypeAdapter(schema).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ": ".join(filter(None, (name, ".".join(str(part) for part in first["loc"]))))
        raise invalid_argument(where, repr(first["input"]), keys, first["msg"] + ".") from error


def plain_yaml(text: str) -> Any:
    """Return what a YAML text of plain values holds.

    Anchors and aliases are refused: ten lines of them can stand for a billion values. So are tags that make objects.

    Args:
        text: the whole file.

    Raises:
        ValueError: on what is no YAML, anchors, more than ``MOST_NODES`` values, or levels deeper than ``DEEPEST``.
    """
    try:
        _check_parts(text)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"no YAML: {' '.join(str(error).split())[:160]}") from None
    except (ArithmeticError, TypeError, AttributeError, LookupError) as error:  # a date or number that cannot be
        raise ValueError(f"a value that cannot be read: {error}") from None


def _check_parts(text: str) -> None:
    """Refuse a YAML text by its parts, before anything is made of them; PyYAML lists these without recursion."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if getattr(event, "anchor", None) is not None:
            raise ValueError(f"an anchor or alias in line {event.start_mark.line + 1}, which is not read here")
        nodes += isinstance(event, yaml.NodeEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if nodes > MOST_NODES or depth > DEEPEST:
            raise ValueError(f"more than {MOST_NODES:,} values, or deeper than {DEEPEST} levels")
