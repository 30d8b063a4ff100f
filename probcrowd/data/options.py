"""Check options and find names. Every error says what was given and what may be given instead."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral
from typing import Any

import numpy as np


def find_name(kind: str, name: str, names: Iterable[str]) -> str:
    """Return the one of `names` that is `name` up to case, hyphens and underscores.

    >>> find_name("model", "Dawid_Skene", ["dawid-skene", "glad"])
    'dawid-skene'

    Raises:
        ValueError: there is none.
    """
    known = {_plain(each): each for each in names}
    if _plain(name) not in known:
        raise ValueError(f"unknown {kind} {name!r}: choose one of {_listed(known.values())}")
    return known[_plain(name)]


def check_option(name: str, value: Any, options: Iterable[Any]) -> None:
    """Raise ValueError unless the value is one of the options."""
    options = list(options)
    if value not in options:
        raise ValueError(f"{name}={value!r}: choose one of {_listed(options)}")


def check_whole(name: str, value: Any, least: int = 1, others: tuple[Any, ...] = ()) -> None:
    """Raise ValueError unless the value is a whole number of at least `least`, or one of `others`."""
    if value not in others and not (isinstance(value, Integral) and int(value) >= least):
        raise ValueError(f"{name}={value!r}: choose a whole number of at least {least}{_or(others)}")


def check_number(
    name: str,
    value: Any,
    *,
    above: int | None = None,
    least: int | None = None,
    below: int | None = None,
    others: tuple[Any, ...] = (),
) -> None:
    """Raise ValueError unless the value is a finite number, > above, >= least and < below, or one of `others`."""
    fits = isinstance(value, (int, float, np.number)) and math.isfinite(value)
    fits = fits and (above is None or value > above) and (least is None or value >= least)
    if value in others or (fits and (below is None or value < below)):
        return
    bounds = f">= {least}" if above is None else f"> {above}"
    if above is not None and below is not None:
        bounds = f"between {above} and {below}"
    raise ValueError(f"{name}={value!r}: choose a number {bounds}{_or(others)}")


def _or(others: tuple[Any, ...]) -> str:
    return "".join(f" or {other!r}" for other in others)


def _listed(options: Iterable[Any]) -> str:
    words = list(map(str, options))
    return ("; " if any("," in word for word in words) else ", ").join(words)


def _plain(name: str) -> str:
    return name.replace("_", "-").lower()
