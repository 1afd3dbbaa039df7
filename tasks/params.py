"""Every knob of the pipeline: read, laid over one another, checked, immutable.

``params.yaml`` holds the values; `tasks.schema` holds what they mean and what is allowed.
Nothing starts before `load` has accepted the whole file.

    params = load(Path("params.yaml"))
    params = parse(overlay(read_yaml(base), read_yaml(recipe)))
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from tasks.errors import ParamsError
from tasks.schema import Params


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file.

    Raises:
        ParamsError: the file is missing, no UTF-8, no YAML, or no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(
            f"{path}: no such file, expected parameters in YAML",
            next_command=_restored(path),
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ParamsError(
            f"{path}: found what is no YAML ({reason})", next_command=_restored(path)
        ) from None
    if not isinstance(content, dict):
        raise ParamsError(
            f"{path}: found {type(content).__name__}, expected a mapping of sections",
            next_command=_restored(path),
        )
    return content


def _restored(path: Path) -> str:
    """What shows how a file came to be unreadable; what brings it back where it is gone."""
    verb = "diff" if path.exists() else "checkout"
    return f"git -C {shlex.quote(str(path.parent))} {verb} -- {path.name}"


def overlay(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Lay a partial mapping over a full one, key by key; lists are replaced whole."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            value = overlay(below, value)
        merged[key] = value
    return merged


def assignment(text: str) -> dict[str, Any]:
    """Turn ``section.key=value`` into a nested mapping.

    The value is read as YAML, but for keys that hold text: ``00123`` is text there, and so
    is nothing at all.

    Raises:
        ParamsError: there is no ``=`` or no key.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ParamsError(
            f"--set: found {text!r}, expected section.key=value",
            next_command="stillroom compress --set prune.ffn_keep=0.5",
        )
    read: Any = value
    if _annotation(key.strip().split(".")) is not str:
        with contextlib.suppress(yaml.YAMLError):
            read = yaml.safe_load(value)
    return nested(key.strip(), read)


def nested(key: str, value: Any) -> dict[str, Any]:
    """``section.key`` as a mapping of sections."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def parse(raw: dict[str, Any]) -> Params:
    """Check a mapping against the schema above.

    Raises:
        ParamsError: names every wrong key, what was found and what is allowed.
    """
    try:
        return Params.model_validate(_floats(raw, Params))
    except ValidationError as error:
        lines = [_explain(e) for e in _once(error.errors())]
        raise ParamsError(
            "params: " + "; ".join(dict.fromkeys(lines)), next_command="stillroom compress --help"
        ) from None


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and check ``params.yaml``."""
    return parse(read_yaml(path))


def fingerprint(params: Params) -> str:
    """sha256 over the resolved parameters, independent of order and layout."""
    text = json.dumps(params.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_float(annotation: Any) -> bool:
    """Whether a number may stand there, be it beside None or a word."""
    parts = (_is_float(part) for part in get_args(annotation))
    return annotation is float or (get_origin(annotation) is not tuple and any(parts))


def _floats(raw: Any, model: Any) -> Any:
    """YAML 1.1 reads ``2e-4`` as a string: turn it into the number that was meant."""
    if not isinstance(raw, dict) or not (isinstance(model, type) and issubclass(model, BaseModel)):
        return raw
    fixed = {}
    for key, value in raw.items():
        field = model.model_fields.get(key)
        if field is not None and isinstance(value, str) and _is_float(field.annotation):
            with contextlib.suppress(ValueError):
                value = float(value)
        fixed[key] = _floats(value, field.annotation) if field is not None else value
    return fixed


EXPECTED = {"tuple_type": "a list, as [a, b]", "too_short": "at least one",
            "model_type": "keys of its own", "string_type": "text"}  # fmt: skip
"""What pydantic says in words of Python."""


def _once(errors: Sequence[Any]) -> list[Any]:
    """Without the list that an entry of its own is wrong in."""
    places = [tuple(error["loc"]) for error in errors]
    return [error for error, place in zip(errors, places, strict=True)
            if error["type"] != "too_short" or not any(
                len(other) > len(place) and other[: len(place)] == place for other in places)
            ]  # fmt: skip


def _explain(error: Any) -> str:
    """One pydantic error as `key: found …, expected …`."""
    loc = error["loc"]
    if loc and _annotation(loc) is None and _annotation(loc[:-1]) is not None:
        known = error["type"] in ("extra_forbidden", "missing") or isinstance(loc[-1], int)
        loc = loc if known else loc[:-1]  # which of several kinds of value it was tried as
    key = ".".join(str(part) for part in loc)
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key, found {error['input']!r}, expected {_known_keys(error['loc'])}"
    if error["type"] == "missing":
        return f"{key}: missing, expected a value"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    message = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    message = EXPECTED.get(error["type"], message)
    return f"{key}: found {error['input']!r}, expected {message}"


def _annotation(path: Sequence[Any]) -> Any:
    """The type of a key, None for one that is not known."""
    model: Any = Params
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field is not None else None
    return model


def _known_keys(loc: tuple[Any, ...]) -> str:
    names = sorted(getattr(_annotation(loc[:-1]), "model_fields", {}))
    return "one of " + ", ".join(names) if names else "no such key here"
