"""One file per published method; this folder is the list of methods.

Each file holds `Config` and `Model(Detector)`, and its docstring begins with the four lines that
`ecgad methods` prints: title, `Paper:`, `Good at:`, `Data:`. Listing them runs none of them, so
that it works where torch is not installed.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from ecgad.parts.detector import Detector

FOLDER = Path(__file__).parent


class Description(NamedTuple):
    """What a method's file says of itself."""

    name: str  # what `build` and the command line call it
    title: str
    paper: str
    good_at: str
    data: str


def names() -> tuple[str, ...]:
    """Every method there is, sorted."""
    return tuple(sorted(p.stem for p in FOLDER.glob("*.py") if not p.stem.startswith("_")))


def describe(name: str) -> Description:
    """The first lines of a method's docstring; `ValueError` for a name or a docstring unknown."""
    _known(name)
    file = FOLDER / f"{name}.py"
    text = ast.get_docstring(ast.parse(file.read_text("utf-8"), str(file))) or ""
    title, *lines = text.splitlines() or [""]
    said = {key: value.strip() for key, colon, value in (s.partition(":") for s in lines) if colon}
    try:
        return Description(name, title.strip(), said["Paper"], said["Good at"], said["Data"])
    except KeyError as missing:
        raise ValueError(f"the docstring of method {name} has no line {missing.args[0]}:") from None


def build(name: str, shape: tuple[int, ...], settings: Mapping[str, Any] | None = None) -> Detector:
    """An untrained model of method `name` for inputs of `shape` = (c, *grid).

    `settings` are fields of the method's `Config`; text, as the command line gives it, is read by
    the field's type: `{"width": "32", "segment": "8,8"}`.

    Raises `ValueError` for an unknown method or an unusable value, `TypeError` for a field that
    the method does not have.
    """
    config = configured(name, settings or {})
    return import_module(f"{__name__}.{name}").Model(tuple(shape), config)


def configured(name: str, settings: Mapping[str, Any]) -> Any:
    """The `Config` of method `name` with these settings. Raises what `build` raises for them."""
    _known(name)
    config = import_module(f"{__name__}.{name}").Config
    fields = [field.name for field in dataclasses.fields(config)]
    for key in settings:
        if key not in fields:
            near = get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise TypeError(f"{name} has no setting {key!r}; {hint}there are: {', '.join(fields)}")
    kinds = get_type_hints(config)
    return config(**{key: _value(key, kinds[key], value) for key, value in settings.items()})


def as_settings(pairs: Iterable[str] | None) -> dict[str, str]:
    """Words as they are typed, for `build`. Raises `ValueError` for one without name or value.

    >>> as_settings(["width=32", "segment=8,8"])
    {'width': '32', 'segment': '8,8'}
    """
    parted = [pair.partition("=") for pair in pairs or ()]
    for name, equals, value in parted:
        if not (name and equals):
            raise ValueError(f"--set {name}{equals}{value}: needed is field=value, as in width=32")
    return {name: value for name, _, value in parted}


def as_shape(sizes: str) -> tuple[int, ...]:
    """A record's shape as it is typed. Raises `ValueError` unless it is two or three sizes.

    >>> as_shape("3x224x224")
    (3, 224, 224)
    """
    parts = sizes.lower().split("x")
    if len(parts) not in (2, 3) or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"--like {sizes}: needed are sizes such as 12x4800 or 3x224x224")
    return tuple(map(int, parts))


def _known(name: str) -> None:
    if name not in names():
        raise ValueError(f"no method {name!r}; there are: {', '.join(names())}")


def _value(key: str, kind: Any, value: Any) -> Any:
    """`value` as the type of its field: from text, and from the lists that JSON makes of tuples.

    True is refused as a number, though Python takes it for 1.
    """
    if get_origin(kind) is tuple and isinstance(value, str | list | tuple):
        items = value.replace(",", " ").split() if isinstance(value, str) else value
        return tuple(_value(key, get_args(kind)[0], item) for item in items)
    if not isinstance(value, str | bool) or type(value) is kind:
        return value
    try:
        return _TRUTH[str(value).lower()] if kind is bool else kind(str(value))
    except (KeyError, ValueError, TypeError):
        name = getattr(kind, "__name__", kind)
        raise ValueError(f"setting {key} is {value!r}, which is not of type {name}") from None


_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
