"""Reading a config: YAML, dotted overrides, and one clear sentence for what is wrong with either."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from sparring.config import Config
from sparring.config_selfplay import PER_ITERATION
from sparring.errors import ConfigError, nearest
from sparring.methods import METHODS
from sparring.methods.method import Method
from sparring.rewards.settings import SETTINGS

SCORERS = {str(settings.model_fields["name"].default): settings for settings in SETTINGS}


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `a.b=value` overrides, validate.

    Raises ConfigError naming the key, what was found and what is allowed.
    """
    file = Path(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise ConfigError(f"config {file} {what}; give a YAML file")
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {file} is not YAML: {' '.join(str(error).split())}") from error
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"config {file} holds a {type(tree).__name__}; it must hold keys and values")
    tree.setdefault("name", file.stem)
    return build_config(tree, overrides)


def build_config(tree: dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Validate a nested dict after applying overrides; ConfigError as in `read_config`."""
    for override in overrides:
        _apply(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(item) for item in _telling(error.errors()))) from None


def changed(config: Config, settings: Mapping[str, Any]) -> Config:
    """A config with some dotted keys set to other values; ConfigError as in `read_config`.

    Values listed per iteration are cut to the number of iterations, if that is among the settings.
    """
    tree = config.model_dump(mode="json")
    for key, value in settings.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            if node.get(parent) is None:
                node[parent] = {}  # if there is no such section, validation says so
            node = node[parent]
            if not isinstance(node, dict):
                raise ConfigError(f'key "{key}": {parent} is not a section')
        node[last] = value
    play = tree["selfplay"]
    for key in PER_ITERATION:
        if "selfplay.iterations" in settings and isinstance(play[key], list):
            play[key] = play[key][: play["iterations"]] or play[key][0]
    return build_config(tree)


def _telling(errors: Sequence[Any]) -> Sequence[Any]:
    """Where a value or a list is allowed, pydantic complains twice: keep the complaint that fits what was given."""
    fitting = [
        item
        for item in errors
        if not (item["type"] == "list_type" and not isinstance(item["input"], list))
        and not (item["type"] in ("float_type", "int_type") and isinstance(item["input"], list))
    ]
    return fitting or errors


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f'override "{override}" is not key=value, as in selfplay.beta=0.3')
    *parents, last = key.split(".")
    value = _value(override, key, text)
    node = tree
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if isinstance(child, str) and parents == ["method"]:
            child = node[parent] = {"name": child}
        if not isinstance(child, dict):
            raise ConfigError(f'override "{override}": {parent} is not a section')
        node = child
    node[last] = value


def _value(override: str, key: str, text: str) -> Any:
    """The value of an override: YAML, or the text as it stands where only text is allowed (`data.split=[:100]`)."""
    kind: Any = Config
    for part in key.split("."):
        inside = isinstance(kind, type) and issubclass(kind, BaseModel)
        field = kind.model_fields.get(part) if inside else None
        kind = field.annotation if field else None
    if kind in (str, str | None):
        return None if text in ("", "null") else text.strip("\"'")
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        raise ConfigError(f'override "{override}": the value is not YAML; quotes around it may help') from None
    if isinstance(value, dict) and any(v is None and ":" in str(k) for k, v in value.items()):
        raise ConfigError(f'override "{override}": put a space after the colon, as in {{prompt: input}}')
    return value


def _explain(error: Any) -> str:
    """One clause for one pydantic error: key, what was found, what is allowed."""
    location = [
        str(part) for part in error["loc"] if not re.match(r"(list|constrained|function|float|int)\b", str(part))
    ]
    if error["type"] == "union_tag_invalid":
        tag, known = str(error["ctx"]["tag"]), SCORERS if location[:1] == ["scorer"] else METHODS
        return f'{location[0]}.name "{tag}" is not known; {nearest(tag, known)}'
    chosen = location.pop(1) if len(location) > 1 and location[0] in ("method", "scorer") else ""  # pydantic says which
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        return f'key "{key}" is not known{_known_here(location, chosen)}'
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "missing":
        return f"{key} is missing, and has no default; give it"
    found = error["input"]
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"{key}: found {found!r}, which should be a section with settings of its own"
    if found is None:
        return f"{key}: nothing was given, which {error['msg'].removeprefix('Input ').lower()}"
    if isinstance(found, dict) or len(str(found)) > 60:
        found = f"a {type(found).__name__}"
    allowed = error["msg"].removeprefix("Input ").lower()
    return f"{key}: found {found!r}, which {allowed}"


def _known_here(location: list[str], chosen: str) -> str:
    """The tail of what is said of an unknown key. chosen: the method or scorer whose settings it is among."""
    if chosen in METHODS and location[0] == "method":
        return f" for method {chosen}; {_setting_of(METHODS[chosen], location[-1])}"
    if chosen in SCORERS:
        return f" for scorer {chosen}; known here: {', '.join(SCORERS[chosen].model_fields)}"
    return f"; {_nearest_key(location)}"


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, or may hold, or holds a list of."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((found for part in get_args(annotation) if (found := _section(part))), None)


def _setting_of(method: Method, key: str) -> str:
    """The nearest setting of a method; else the methods that have one of this name."""
    match = difflib.get_close_matches(key, list(method.settings.model_fields), n=1)
    if match:
        return f'did you mean "method.{match[0]}"?'
    others = [name for name, row in METHODS.items() if key in row.settings.model_fields]
    elsewhere = f"{key} is a setting of {', '.join(others)}; " if others else ""
    return f"{elsewhere}known here: {', '.join(method.settings.model_fields)}"


def _nearest_key(location: list[str]) -> str:
    section: type[BaseModel] = Config
    for part in location[:-1]:
        field = section.model_fields.get(part)
        section = (_section(field.annotation) if field else None) or section
    match = difflib.get_close_matches(location[-1], list(section.model_fields), n=1)
    if match:
        return f'did you mean "{".".join([*location[:-1], match[0]])}"?'
    everywhere = {
        f"{name}.{key}"
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        for key in field.annotation.model_fields
    } | set(Config.model_fields)
    same = sorted(path for path in everywhere if path.split(".")[-1] == location[-1])
    if same:
        return f'did you mean "{same[0]}"?'
    return f"known here: {', '.join(section.model_fields)}"
