"""Settings: one typed, frozen record per command.

    defaults of the record  <-  TOML file  <-  --set section.key=value  ->  config.json beside the results

Values are checked strictly: text is not a number, `true` is not 1, and a key that no record declares is an
error. Settings files never name code, so reading one runs none.
"""

import difflib
import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from probcrowd.storage.files import write_atomically


class Settings(BaseModel):
    """Base of every settings record; records may be nested. Infinities and NaN survive writing."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


S = TypeVar("S", bound=Settings)


def read_settings(kind: type[S], path: Path | None, overrides: Sequence[str] = ()) -> S:
    """Read settings from a TOML file (None: the defaults) and apply overrides such as "model.width=64".

    The text after "=" is read as a TOML value or, if it is none, as a string: `out=runs/a`, `steps=100`,
    `shots=[1, 3]`.

    Raises:
        ValueError: the file is missing or not TOML; or every invalid value, one line each.
    """
    values = {} if path is None else _read_toml(path)
    keys = [override.partition("=")[0].strip() for override in overrides]
    for key, override in zip(keys, overrides, strict=True):
        _, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise ValueError(f"--set {override!r}: needs key=value or section.key=value")
        *sections, last = key.split(".")
        table = values
        for section in sections:
            table = table.setdefault(section, {})
            if type(table) is not dict:
                raise ValueError(f"--set {override!r}: {section!r} is {table!r}, not a table of settings")
        table[last] = _toml_value(text.strip())
    return _validated(kind, json.dumps(values, default=str), path, keys)


def write_settings(settings: Settings, path: Path) -> None:
    """Write indented JSON, whole or not at all."""
    write_atomically(path, settings.model_dump_json(indent=2).encode() + b"\n")


def read_written(kind: type[S], path: Path) -> S:
    """Read the settings that `write_settings` wrote.

    Raises:
        ValueError: the file is not JSON, or does not fit `kind`.
    """
    return _validated(kind, path.read_text(encoding="utf-8"), path)


def differences(a: S, b: S, ignore: Sequence[str] = ()) -> list[str]:
    """List the values that differ, one line "section.key: old -> new" each; keys in `ignore` are skipped."""
    old, new = (dict(_leaves(settings.model_dump(mode="json"))) for settings in (a, b))
    return [
        f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in {**old, **new}
        if key not in ignore and old.get(key) != new.get(key)
    ]


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read the settings file {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error


def _toml_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text  # a line break must not smuggle in a second key


def _validated(kind: type[S], text: str, path: Path | None, overridden: Sequence[str] = ()) -> S:
    # Strict JSON is the one mode in which lists become tuples and strings become paths, but "1" never becomes
    # 1.
    try:
        return kind.model_validate_json(text, strict=True)
    except ValidationError as error:
        lines = []
        for each in error.errors():
            key = ".".join(map(str, each["loc"]))
            override = any(f"{k}.".startswith(f"{key}.") or key.startswith(f"{k}.") for k in overridden)
            source = "--set" if override or path is None else path
            if each["type"] == "extra_forbidden":
                problem = _unknown(kind, key)
            else:
                problem = _needs(each["type"], each["input"], each["msg"])
            lines.append(f"{key or 'settings'}: {problem} (in {source})")
        raise ValueError("invalid settings:\n  " + "\n  ".join(lines)) from error


def _needs(kind: str, value: Any, message: str) -> str:
    if kind == "missing":
        return "got nothing, needs a value"
    return f"got {value!r}, needs {message.removeprefix('Input should be ').removeprefix('Value error, ')}"


def _unknown(kind: type[Settings], key: str) -> str:
    section, _, name = key.rpartition(".")
    # Of equal names, the one in this section comes last and stays
    known = sorted(_known_keys(kind), key=lambda full: full.rpartition(".")[0] == section)
    full = {full.rpartition(".")[2]: full for full in known}
    near = difflib.get_close_matches(name, full, n=1)
    hint = f"did you mean {full[near[0]]!r}?" if near else f"known: {', '.join(sorted(known))}"
    return f"unknown key; {hint}"


def _known_keys(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in kind.model_fields.items():
        yield prefix + name
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _known_keys(part, f"{prefix}{name}.")


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Pairs of dotted key and JSON text: as text, NaN equals NaN and 1 differs from true."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else name)
    else:
        yield key, json.dumps(value)
