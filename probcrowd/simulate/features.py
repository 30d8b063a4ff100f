"""Features that decide the true classes."""

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd


def simulate_features(
    num_items: int = 200,
    num_features: int = 4,
    *,
    seed: int | np.random.Generator,
    classes: int | Sequence[Hashable] = 2,
    noise: float = 0.0,
) -> tuple[pd.DataFrame, pd.Series]:
    """Standard normal features x and true classes by item: the class with the highest score  w[k] . x +
    noise.

    The truth can be given to `simulate_annotations` as its `items`, whole or in part; items left out have no
    labels.

    >>> from probcrowd.simulate import simulate_annotations
    >>> features, truth = simulate_features(100, seed=0)
    >>> simulate_annotations(truth[:80], seed=1).annotations.num_items
    80

    Args:
        noise: standard deviation of normal noise in the scores; weights w are standard normal.

    Raises:
        ValueError: fewer than one item, feature or class.
    """
    names = [f"c{k}" for k in range(classes)] if isinstance(classes, int) else list(classes)
    if min(num_items, num_features, len(names)) < 1:
        raise ValueError("there must be at least one item, one feature and one class")
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_items, num_features))
    scores = x @ rng.normal(size=(num_features, len(names))) + noise * rng.normal(
        size=(num_items, len(names))
    )
    items = pd.Index([f"i{i}" for i in range(num_items)])
    truth = pd.Series(pd.Index(names)[scores.argmax(1)], items, name="truth")
    return pd.DataFrame(x, items, [f"x{d}" for d in range(num_features)]), truth
