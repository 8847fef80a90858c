"""From a YAML or JSON file, `key=value` words and flags to one checked configuration, and back to a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rmlora.config import RunConfig, section_names, setting_names
from rmlora.errors import ConfigError, nearest


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, except that `1e-3` is a number and a key given twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.MarkedYAMLError(problem=f'"{twice}" is given twice', problem_mark=node.start_mark)
        return dict(super().construct_mapping(node, deep))


# YAML 1.1, as PyYAML implements it, wants a dot and a signed exponent; everybody writes 1e-3.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML (JSON is YAML too) with numbers as people write them.

    Args:
        text: the document.
        where: what to name in an error.

    Raises:
        ConfigError: it is not YAML.

    Example:
        >>> parse_yaml("{lr: 1e-3, names: [a, b]}", "here")
        {'lr': 0.001, 'names': ['a', 'b']}
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506  (a subclass of SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{where}{line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply to be settings") from error
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:  # a date of month 13, !!int of no number
        raise ConfigError(f"{where}: not valid YAML: {error}") from error


def read_config(path: Path) -> dict[str, Any]:
    """Read the settings a file gives; which of them are legal is for `resolve` to say.

    Raises:
        ConfigError: the file is missing, unreadable, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        beside = [str(path.with_name(p.name)) for p in path.parent.glob("*.y*ml")]
        raise ConfigError(f'no config file "{path}"{nearest(str(path), beside)}') from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f'cannot read config "{path}": {reason}') from error
    settings = parse_yaml(text, str(path))
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: expected settings (key: value), got a {type(settings).__name__}")
    return settings


def full_name(key: str, knobs: tuple[str, ...] = ()) -> str:
    """Complete a setting's name: `lr` is `training.lr`, `weight` is `method_args.weight`.

    Args:
        key: a dotted name, or the last part of one where only one setting ends so.
        knobs: names the methods take, which belong to `method_args`.

    Raises:
        ConfigError: no setting, or several, have that name; the nearest is named.

    Example:
        >>> full_name("lr"), full_name("lora.r"), full_name("weight", knobs=("weight",))
        ('training.lr', 'lora.r', 'method_args.weight')
    """
    names = setting_names()
    if key in names or key.startswith("method_args."):
        return key
    matches = [name for name in names if name.split(".")[-1] == key]
    if len(matches) == 1:
        return matches[0]
    if key in knobs:
        return f"method_args.{key}"
    if matches:
        raise ConfigError(f'setting "{key}" is ambiguous: {" or ".join(matches)}')
    short = {name.split(".")[-1]: name for name in names} | {knob: f"method_args.{knob}" for knob in knobs}
    hint = nearest(key, [*names, *short])
    raise ConfigError(f'unknown setting "{key}"{hint}; `rmlora schema` lists all')


def parse_override(word: str, knobs: tuple[str, ...] = ()) -> tuple[str, Any]:
    """Split `key=value` into the full name of the setting and its value, read as YAML.

    Example:
        >>> parse_override("training.lr=1e-3"), parse_override("target_modules=[query, value]")
        (('training.lr', 0.001), ('lora.target_modules', ['query', 'value']))
    """
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise ConfigError(f'"{word}" is neither a config file nor key=value')
    return full_name(key.strip(), knobs), parse_yaml(value, f'"{word}"')


def merge(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Lay dotted `changes` over nested `settings`; later wins, nothing is mutated.

    Raises:
        ConfigError: a group of settings holds something that is not one.

    Example:
        >>> merge({"lora": {"r": 8}}, {"lora.r": 4, "model": "m"})
        {'lora': {'r': 4}, 'model': 'm'}
    """
    merged = {k: dict(v) if isinstance(v, dict) else v for k, v in settings.items()}
    for name, value in changes.items():
        section, dot, key = name.partition(".")
        if not dot:
            merged[section] = value
            continue
        group = merged.setdefault(section, {})
        if group is None:
            group = merged[section] = {}
        if not isinstance(group, dict):
            raise ConfigError(f'"{section}" must be a group of settings, got {group!r}')
        group[key] = value
    return merged


def resolve(settings: dict[str, Any], where: str = "config") -> RunConfig:
    """Check settings and fill in the defaults.

    Args:
        settings: nested, as a config file has them. A group left empty means its defaults.
        where: named in errors.

    Raises:
        ConfigError: unknown key (the nearest is named), wrong type, out of range, or missing.

    Example:
        >>> resolve({"model": "m", "training": {"lr": 1e-3}}).training.epochs
        3
    """
    groups = (*section_names(), "method_args")
    settings = {k: {} if v is None and k in groups else v for k, v in settings.items()}
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(describe(error, where)) from error


def describe(error: ValidationError, where: str) -> str:
    """Put pydantic's report into one line: the first problem, and how many more there are."""
    problems = error.errors()
    unknown = [p for p in problems if p["type"] == "extra_forbidden"]
    first = (unknown or problems)[0]
    # pydantic appends the branch of a union to the location; a user knows only the setting
    parts = [str(part) for part in first["loc"]]
    name = max((n for n in setting_names() if ".".join(parts).startswith(n)), key=len, default=".".join(parts))
    if first["type"] == "extra_forbidden":
        name = ".".join(parts)
        text = f'unknown setting "{name}"{_suggest(name)}'
    elif first["type"] == "missing":
        text = f'"{name}" is missing; give {name}=... or --{name}'
    else:
        message = first["msg"][0].lower() + first["msg"][1:]
        text = f'"{name}": {message}, got {first["input"]!r}'
    rest = len({tuple(p["loc"][:2]) for p in problems}) - 1
    return f"{where}: {text}" + (f" (and {rest} more)" if rest else "")


def _suggest(name: str) -> str:
    names = setting_names()
    leaf = name.split(".")[-1]
    moved = [n for n in names if n.split(".")[-1] == leaf]
    return f' (did you mean "{moved[0]}"?)' if moved else nearest(name, names)


def dump(config: RunConfig) -> str:
    """Write every setting as YAML, in the order of the schema; `resolve(parse_yaml(...))` reads it back.

    Example:
        >>> print(dump(RunConfig(model="m"))[:41])
        model: m
        task: text-classification
        data:
    """
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
