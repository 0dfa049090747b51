"""Reading eligibility.yaml: its form is checked, so that a slip of the pen in a rule is one sentence."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from snows_core.errors import SnowsError, require_extra
from snows_core.export.kernels.rules import CHECKS, DTYPES, NOTES, PATTERNS, WORDS, Backend, Rule, Rules
from snows_core.export.kernels.weighted_layers import KINDS

RULE_FILE = Path(__file__).with_name("eligibility.yaml")


@cache
def rules() -> Rules:
    """Return the rules that come with the package, read once."""
    return read_rules(RULE_FILE.read_text(encoding="utf-8"))


def read_rules(text: str) -> Rules:
    """Read a rule file.

    Args:
        text: the whole YAML file.

    Returns:
        Its rules.

    Raises:
        SnowsError: where it does not say what a rule file says, or PyYAML is not installed.
    """
    require_extra("export", "yaml")
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _fault("the file", f"no YAML ({' '.join(str(error).split())[:160]})") from None
    parts = _keys("the file", found, ("sources", "gpus", "backends", "checklist"))
    sources = parts["sources"]
    if not isinstance(sources, dict) or not all(isinstance(text, str) and text for text in sources.values()):
        raise _fault("sources", "a source that is no text")
    gpus = _keys("gpus", parts["gpus"], ("sources", "capabilities"))
    _cited("gpus", gpus["sources"], sources)
    named = {name: _capability(f"gpus: {name}", value) for name, value in dict(gpus["capabilities"]).items()}
    backends = tuple(_backend(key, value, sources) for key, value in dict(parts["backends"]).items())
    checklist = []
    for number, item in enumerate(parts["checklist"]):
        where = f"checklist: {number + 1}"
        _keys(where, item, ("say", "sources"))
        checklist.append((str(item["say"]), _cited(where, item["sources"], sources)))
    return Rules(sources, named, backends, tuple(checklist))


def _fault(where: str, got: str) -> SnowsError:
    return SnowsError(f"{RULE_FILE.name}: {where}: got {got}; expected a rule file as snows_core/export has it.")


def _keys(where: str, value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Return a mapping of exactly these keys."""
    if not isinstance(value, dict) or set(value) != set(names):
        got = f"the keys {sorted(map(str, value))}" if isinstance(value, dict) else type(value).__name__
        raise _fault(where, f"{got} where {', '.join(names)} have to stand")
    return value


def _cited(where: str, keys: Any, sources: Mapping[str, str]) -> tuple[str, ...]:
    """Return the keys of sources; there must be one, and each must be known."""
    if not isinstance(keys, list) or not keys:
        raise _fault(where, "no source")
    if unknown := [key for key in keys if key not in sources]:
        raise _fault(where, f"the source {unknown[0]!r}, which is not among the sources")
    return tuple(keys)


def _capability(where: str, text: Any) -> tuple[int, int]:
    if not isinstance(text, str) or not re.fullmatch(r"\d+\.\d", text):
        raise _fault(where, f"{text!r}, which is no compute capability such as '8.0'")
    major, minor = text.split(".")
    return int(major), int(minor)


def _backend(key: str, value: Any, sources: Mapping[str, str]) -> Backend:
    parts = _keys(key, value, ("name", "rules", "notes"))
    made = [tuple(_rule(f"{key}: {what}", item, sources, checks) for item in parts[what])
            for what, checks in (("rules", CHECKS), ("notes", NOTES))]  # fmt: skip
    if len({rule.id for rule in made[0]}) < len(made[0]):
        raise _fault(key, "two rules of one id")
    formats = next((set(rule.allows) for rule in made[0] if rule.check == "dtype"), set(DTYPES))
    for rule in (*made[0], *made[1]):  # what is asked behind the rule of number formats must know those it lets pass
        if isinstance(rule.allows, dict) and set(rule.allows) != formats:
            raise _fault(f"{key}: {rule.id}", f"{', '.join(rule.allows)}, where {', '.join(sorted(formats))} pass")
    return Backend(key, str(parts["name"]), *made)


def _rule(where: str, item: Any, sources: Mapping[str, str], checks: Mapping[str, Any]) -> Rule:
    parts = _keys(where, item, ("id", "check", "allows", "because", "sources"))
    where = f"{where}: {parts['id']}"
    if parts["check"] not in checks:
        raise _fault(where, f"the check {parts['check']!r}, none of {', '.join(checks)}")
    if not _FORMS[parts["check"]](parts["allows"]):
        raise _fault(where, f"{parts['allows']!r}, which the check {parts['check']!r} cannot use")
    because = parts["because"] if isinstance(parts["because"], dict) else {"others": parts["because"]}
    if "others" not in because or not set(because) <= {"others", *KINDS}:
        raise _fault(where, "reasons for kinds of layers that there are not, or none for the others")
    for text in because.values():
        fields = [field for _, field, _, _ in string.Formatter().parse(str(text)) if field is not None]
        if not isinstance(text, str) or not set(fields) <= set(WORDS):
            raise _fault(where, f"the reason {text!r}, with words that nothing stands for")
    return Rule(str(parts["id"]), parts["check"], parts["allows"], because, _cited(where, parts["sources"], sources))


def _whole(value: Any) -> bool:
    return type(value) is int and value > 0


def _by_dtype(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and set(value) <= set(DTYPES) and all(map(holds, value.values())) and bool(value)


def _listed(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and bool(value) and all(map(holds, value))


_FORMS: dict[str, Callable[[Any], bool]] = {
    "capability": lambda value: _listed(value, lambda x: bool(re.fullmatch(r"\d+\.(\d\+?|x)", str(x)))),
    "dtype": lambda value: _listed(value, DTYPES.__contains__),
    "layer": lambda value: _listed(value, KINDS.__contains__),
    "shape": lambda value: _by_dtype(value, lambda x: _listed(x, _whole) and len(x) == 2),
    "channels": _whole,
    "pattern": lambda value: _by_dtype(value, PATTERNS.__contains__),
    "batch": lambda value: _by_dtype(value, _whole),
    "narrow": _whole,
}
