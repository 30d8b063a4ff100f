"""Errors about options and names say what was given and what may be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from probcrowd.data.validation import check_number, check_option, check_whole, find_name


@pytest.mark.parametrize("name", ["dawid-skene", "dawid_skene", "Dawid-Skene"])
def test_names_are_found_with_hyphens_or_underscores(name: str) -> None:
    assert find_name("model", name, ["glad", "dawid-skene"]) == "dawid-skene"
    assert find_name("model", name, ["dawid_skene"]) == "dawid_skene"


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="^unknown model 'x': choose one of a, b$"):
        find_name("model", "x", ["a", "b"])
    with pytest.raises(ValueError, match="choose one of EM, J = 2; EM$"):
        find_name("method", "x", ["EM, J = 2", "EM"])
    with pytest.raises(ValueError, match="^similarity='x': choose one of None, kappa$"):
        check_option("similarity", "x", (None, "kappa"))


@pytest.mark.parametrize("value", [0, 1.0, "1", None, math.nan])
def test_whole_numbers_have_a_least_value(value: Any) -> None:
    with pytest.raises(ValueError, match=f"^n={value!r}: choose a whole number of at least 1 or 'all'$"):
        check_whole("n", value, others=("all",))
    for right in (1, np.int64(7), "all"):
        check_whole("n", right, others=("all",))


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "words"),
    [
        ({"above": 0}, [1e-300, 5, np.float32(1)], [0, -1.0, math.inf, math.nan, "1", None], "> 0"),
        ({"least": 0}, [0, 0.0, 7], [-1e-300, math.inf, math.nan], ">= 0"),
        ({"above": 0, "below": 1}, [1e-300, 1 - 1e-15], [0, 1, 2.0], "between 0 and 1"),
        ({"least": 0, "others": (None,)}, [None, 0], ["all", -1], ">= 0 or None"),
    ],
)
def test_numbers_have_bounds(
    bounds: dict[str, Any], inside: list[Any], outside: list[Any], words: str
) -> None:
    for value in inside:
        check_number("x", value, **bounds)
    for value in outside:
        with pytest.raises(ValueError, match=f": choose a number {words}$"):
            check_number("x", value, **bounds)
