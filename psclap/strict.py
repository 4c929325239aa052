"""Mappings into frozen dataclasses, strictly: every unknown, missing, mistyped or out-of-range key is named.

Rules are field metadata, made by `at_least`, `above`, `between` and `not_empty`; they are checked once, here.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from psclap.errors import ConfigError

T = TypeVar("T")

_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def at_least(low: float) -> dict[str, Any]:
    """The value is `low` or more."""
    return {"rule": (lambda value: value >= low, f"must be at least {low}")}


def between(low: float, high: float) -> dict[str, Any]:
    """The value lies in [low, high]."""
    return {"rule": (lambda value: low <= value <= high, f"must lie in [{low}, {high}]")}


def above(low: float) -> dict[str, Any]:
    """The value is greater than `low`."""
    return {"rule": (lambda value: value > low, f"must be greater than {low}")}


def not_empty() -> dict[str, Any]:
    """The list has an element."""
    return {"rule": (len, "must name at least one")}


def from_mapping(cls: type[T], mapping: Any, where: str) -> T:
    """Builds dataclass `cls` from `mapping`; `where` is the dotted name of the section.

    Raises ConfigError that lists every broken key with its value and its rule.
    """
    problems: list[str] = []
    value = _build(cls, mapping, where, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return value


def _build(cls: type, mapping: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(mapping, Mapping):
        problems.append(f"{where}: {mapping!r} is not a section; it must hold the keys {_names(cls)}")
        return None
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    hints = get_type_hints(cls)
    for key in mapping:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {_names(cls)}"
            problems.append(f"{where}.{key}: unknown key (value {mapping[key]!r}); {hint}")
    before = len(problems)
    values = {}
    for name, field in fields.items():
        if name in mapping:
            values[name] = _field(hints[name], mapping[name], f"{where}.{name}", field, problems)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{where}.{name}: missing key; add it ({_type_name(hints[name])})")
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except ConfigError as error:  # a rule between keys, from __post_init__
        problems += [f"{where}: {line}" for line in str(error).splitlines()]
        return None


def _field(hint: Any, value: Any, where: str, field: dataclasses.Field, problems: list[str]) -> Any:
    before = len(problems)
    converted = _value(hint, value, where, problems)
    check, rule = field.metadata.get("rule", (None, ""))
    if check is not None and converted is not None and len(problems) == before and not check(converted):
        problems.append(f"{where}: {value!r} {rule}")
    return converted


def _value(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    arm = _arm(hint, value)
    if dataclasses.is_dataclass(arm):
        return _build(arm, value, where, problems)  # type: ignore[arg-type]
    if get_origin(arm) is tuple and dataclasses.is_dataclass(get_args(arm)[0]) and isinstance(value, (list, tuple)):
        section = get_args(arm)[0]
        return tuple(_build(section, item, f"{where}[{number}]", problems) for number, item in enumerate(value))
    if get_origin(arm) is Mapping and get_args(arm)[1] is not Any and isinstance(value, Mapping):
        return _mapping(get_args(arm)[1], value, where, problems)
    converted, fits = _convert(arm, value)
    if not fits:
        hint_text = "; YAML reads it as text, write it as 1.0e-5" if _looks_numeric(value, arm) else ""
        problems.append(f"{where}: {value!r} must be {_type_name(hint)}{hint_text}")
        return None
    return converted


def _arm(hint: Any, value: Any) -> Any:
    """Of alternatives the one that the value fits, the first where it fits none; any other hint as it is."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    if value is None and type(None) in get_args(hint):
        return type(None)
    arms = [arm for arm in get_args(hint) if arm is not type(None)]
    return next((arm for arm in arms if _convert(arm, value)[1]), arms[0])


def _mapping(element: Any, mapping: Mapping[Any, Any], where: str, problems: list[str]) -> dict[str, Any]:
    for key in mapping:
        if not isinstance(key, str):
            problems.append(f"{where}: the key {key!r} must be text; put it in quotes")
    return {key: _value(element, value, f"{where}.{key}", problems) for key, value in mapping.items()}


def _convert(hint: Any, value: Any) -> tuple[Any, bool]:
    origin = get_origin(hint)
    if origin is Literal:
        return value, value in get_args(hint)
    if origin is tuple:
        element = get_args(hint)[0]
        if not isinstance(value, (list, tuple)):
            return value, False
        pairs = [_convert(element, item) for item in value]
        return tuple(item for item, _ in pairs), all(fits for _, fits in pairs)
    if origin is Mapping:
        return value, isinstance(value, Mapping)
    if hint is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return (float(value) if is_number else value), is_number
    if hint is int:
        return value, isinstance(value, int) and not isinstance(value, bool)
    return value, isinstance(value, hint)


def _looks_numeric(value: Any, hint: Any) -> bool:
    if hint is not float or not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


def _type_name(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_type_name(arm) for arm in get_args(hint))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    if get_origin(hint) is tuple and dataclasses.is_dataclass(get_args(hint)[0]):
        return f"a list of sections with the keys {_names(get_args(hint)[0])}"
    if get_origin(hint) is tuple:
        return f"a list, each element {_type_name(get_args(hint)[0])}"
    return _TYPE_NAMES.get(hint, "a section")


def _names(cls: type) -> str:
    return ", ".join(field.name for field in dataclasses.fields(cls) if field.init)


def flatten(tree: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """Mappings within mappings as one level; an empty one stays what it is.

    >>> flatten({"model": {"dim": 64, "speech": {"config": {}}}}, ".")
    {'model.dim': 64, 'model.speech.config': {}}
    """
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{name}{separator}{key}": item for key, item in flatten(value, separator).items()}
        else:
            flat[name] = value
    return flat
