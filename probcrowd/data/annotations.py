"""The table of annotations: n rows, each "annotator j gave item i the label l", with an optional weight w.

    row r = (item[r], annotator[r], label[r], weight[r]),    r = 0 .. n - 1

The first three are codes (positions) into `items`, `annotators` and `classes`, which hold the user's own ids.
A missing label is an absent row. The three sizes belong to the table and are not read off its rows, so items
without labels, annotators who have not started and unused classes keep their place.

User data is validated here, column by column in `probcrowd.data.validation`, and nowhere else: code that
holds an `Annotations` may rely on it.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64

from probcrowd.data import covariates
from probcrowd.data.validation import (
    PLURALS,
    check_option,
    declare,
    encode,
    find_columns,
    plain,
    read_weights,
    reject,
    sort_ids,
    undo_float,
)
from probcrowd.data.wide import long_to_wide, wide_to_long


@dataclass(frozen=True, eq=False, repr=False)
class Annotations:
    """Annotations in long format, usually built by `from_frame` or `from_wide`.

    item, annotator, label: codes (n,), positions in `items`, `annotators` and `classes`. weight: the number
    of times each row counts (n,), or None if every row counts once. annotator_covariates, item_covariates:
    frames with a row per annotator or item, indexed by id, or None; stored in the order of `annotators` and
    `items`. The arrays are read-only copies. A table built directly may have no rows (a model's prior) and
    may repeat an (item, annotator) pair.

    Raises:
        ValueError: arrays of another dtype or of unequal lengths, codes outside the ids, weights that are not
            finite and positive, or ids that repeat, are missing or mix types.
    """

    item: Int64[np.ndarray, " n"]
    annotator: Int64[np.ndarray, " n"]
    label: Int64[np.ndarray, " n"]
    items: pd.Index
    annotators: pd.Index
    classes: pd.Index
    weight: Float64[np.ndarray, " n"] | None = None
    annotator_covariates: pd.DataFrame | None = None
    item_covariates: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        for role, plural in PLURALS.items():
            ids = declare(getattr(self, plural), plural)
            codes = _frozen(getattr(self, role), np.int64, role, len(self.item))
            reject(
                (codes < 0) | (codes >= len(ids)),
                codes,
                f"{role} codes outside 0 .. {len(ids) - 1}: codes are positions in `{plural}`",
            )
            object.__setattr__(self, role, codes)
            object.__setattr__(self, plural, ids)
        if self.weight is not None:
            weight = _frozen(self.weight, np.float64, "weight", len(self.item))
            reject(~(np.isfinite(weight) & (weight > 0)), weight, "weights must be finite and > 0")
            object.__setattr__(self, "weight", weight)
        for role in ("annotator", "item"):
            frame, plural = getattr(self, f"{role}_covariates"), PLURALS[role]
            if frame is not None:
                aligned = covariates.align(frame, getattr(self, plural), plural)
                object.__setattr__(self, f"{role}_covariates", aligned)

    def __len__(self) -> int:
        return len(self.item)

    def __repr__(self) -> str:
        sizes = (f"num_{plural}={len(getattr(self, plural))}" for plural in PLURALS.values())
        return (
            f"Annotations({len(self)} rows, {', '.join(sizes)}{'' if self.weight is None else ', weighted'})"
        )

    @property
    def num_items(self) -> int:
        return len(self.items)

    @property
    def num_annotators(self) -> int:
        return len(self.annotators)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        *,
        item: Hashable | None = None,
        annotator: Hashable | None = None,
        label: Hashable | None = None,
        weight: Hashable | None = None,
        items: Any = None,
        annotators: Any = None,
        classes: Any = None,
        annotator_covariates: pd.DataFrame | None = None,
        item_covariates: pd.DataFrame | None = None,
        duplicates: str = "error",
        missing: str = "error",
    ) -> "Annotations":
        """Read a long table with one row per label.

        >>> rows = [("q1", "ann", "yes"), ("q1", "bob", "no"), ("q2", "ann", "yes")]
        >>> Annotations.from_frame(pd.DataFrame(rows, columns=["task", "worker", "label"])).label
        array([1, 0, 1])

        Args:
            item, annotator, label: names of columns. By default item or task; annotator, worker, rater or
                user; label.
            weight: name of the column of weights, numbers > 0. A column called "weight" is used only if named
                here.
            items, annotators, classes: all ids in the order wanted, including those without rows. By default
                items and annotators are those of the table in order of first appearance, and classes the
                categories of a categorical column or the sorted labels.
            duplicates: for rows that repeat an (item, annotator) pair: "error"; keep the "first" or the
                "last"; "count" each row; or "share": the n rows of one pair count 1/n each, times their
                weight if there is one.
            missing: for rows without a label (None, NaN, NaT, NA): "error", or "skip": there is no
                annotation, but the item and the annotator remain known.
            annotator_covariates, item_covariates: a row per annotator or item, indexed by id, for models that
                use them. Rows of other ids are dropped.

        Raises:
            TypeError: `frame` or covariates are not a DataFrame.
            ValueError: columns that are absent or ambiguous; no annotation at all; an id that is missing,
                infinite or outside the declared ones; a column that mixes types (1 and "1"); a repeated pair,
                a missing label or a bad weight. The message names the rows.
        """
        if not isinstance(frame, pd.DataFrame):
            words = f"frame must be a pandas DataFrame, not {type(frame).__name__}"
            raise TypeError(f"{words}; a matrix goes to Annotations.from_wide")
        check_option("duplicates", duplicates, ("error", "first", "last", "count", "share"))
        check_option("missing", missing, ("error", "skip"))
        names = {"item": item, "annotator": annotator, "label": label, "weight": weight}
        columns = find_columns(frame, names)
        item_code, items = encode(columns["item"], "item", items)
        annotator_code, annotators = encode(columns["annotator"], "annotator", annotators)
        labels = plain(columns["label"])
        present = labels.notna().to_numpy(bool)
        if missing == "error":
            reject(~present, labels, "missing labels; set missing='skip' to leave these rows out")
        if not present.any():
            raise ValueError(f"the table holds no annotation: {len(frame)} rows, none with a label")
        if not present.all():
            labels = undo_float(labels.loc[present])
        if classes is None and isinstance(labels.dtype, pd.CategoricalDtype):
            classes = labels.cat.categories
        label_code, ids = encode(labels, "label", classes)
        if classes is None:
            label_code, ids = sort_ids(label_code, ids)
        weights = None if weight is None else read_weights(columns["weight"].loc[present])
        item_code, annotator_code = item_code[present], annotator_code[present]
        pair = item_code * len(annotators) + annotator_code
        keep: Any = duplicates if duplicates in ("first", "last") else False
        repeated = pd.Series(pair).duplicated(keep=keep).to_numpy()
        if duplicates == "error" and repeated.any():
            pairs = list(zip(items[item_code], annotators[annotator_code], strict=True))
            remedy = "set duplicates='first', 'last', 'count' or 'share', or remove rows"
            reject(repeated, pd.Series(pairs, labels.index), f"repeated (item, annotator) pairs; {remedy}")
        if duplicates == "share":
            _, inverse, count = np.unique(pair, return_inverse=True, return_counts=True)
            weights = (1.0 if weights is None else weights) / count[inverse]
        used = ~repeated if keep else np.ones(len(pair), dtype=bool)
        return cls(
            item_code[used],
            annotator_code[used],
            label_code[used],
            items,
            annotators,
            ids,
            None if weights is None else weights[used],
            annotator_covariates,
            item_covariates,
        )

    @classmethod
    def from_wide(
        cls,
        matrix: Any,
        *,
        missing_label: Any = None,
        classes: Any = None,
        items: Any = None,
        annotators: Any = None,
        annotator_covariates: pd.DataFrame | None = None,
        item_covariates: pd.DataFrame | None = None,
    ) -> "Annotations":
        """Read an items x annotators matrix: a row per item, a column per annotator.

        Items and annotators without any label remain known. Cells are missing if None, NaN, NaT or NA. Whole
        numbers that are floats only to make room for NaN become integers again.

        Args:
            matrix: a DataFrame, whose index and columns are the ids, or a 2-D array or list of lists, with
                ids 0, 1, ...
            missing_label: another value that marks a missing cell, such as -1.
            classes: as in `from_frame`.
            items, annotators: for an array, the ids of its rows and columns; for a DataFrame, as in
                `from_frame`.
            annotator_covariates, item_covariates: as in `from_frame`.

        Raises:
            ValueError: as `from_frame`, naming a cell by (item, annotator); a matrix that is not 2-D; ids
                that repeat; -1 among integers if neither `missing_label` nor `classes` explains it.
        """
        frame, rows, columns = wide_to_long(matrix, missing_label, classes, items, annotators)
        return cls.from_frame(
            frame,
            items=rows if items is None else items,
            annotators=columns if annotators is None else annotators,
            classes=classes,
            annotator_covariates=annotator_covariates,
            item_covariates=item_covariates,
        )

    def to_frame(self) -> pd.DataFrame:
        """Return the rows with columns item, annotator, label, and any weight, under the user's ids.

        Ids without rows are not in it; `from_frame` needs them declared (`items=self.items` and so on) to
        return an equal table.
        """
        columns = {
            "item": self.items[self.item],
            "annotator": self.annotators[self.annotator],
            "label": self.classes[self.label],
        }
        return pd.DataFrame(columns if self.weight is None else columns | {"weight": self.weight})

    def to_wide(self) -> pd.DataFrame:
        """Return the labels as an items x annotators table, NaN or NA where there is none, without weights.

        `from_wide` returns an equal table if rows are sorted by item and annotator, and unused classes are
        declared.

        Raises:
            ValueError: an (item, annotator) pair has several rows, or the table would have more than 10**8
                cells.
        """
        wide = long_to_wide(self.item, self.annotator, self.classes[self.label], self.items, self.annotators)
        return wide.set_axis(self.items, axis=0).set_axis(self.annotators, axis=1)

    def equals(self, other: "Annotations") -> bool:
        """Whether both tables have the same rows, ids, covariates and weights, in the same order."""
        same = all(np.array_equal(getattr(self, role), getattr(other, role)) for role in PLURALS)
        same &= all(getattr(self, plural).equals(getattr(other, plural)) for plural in PLURALS.values())
        for name in ("annotator_covariates", "item_covariates"):
            same &= covariates.equal(getattr(self, name), getattr(other, name))
        if self.weight is None or other.weight is None:
            return same and self.weight is other.weight
        return same and np.array_equal(self.weight, other.weight)

    def counts_per_item(self) -> pd.Series:
        """Number of rows of every item, ignoring weights."""
        return pd.Series(np.bincount(self.item, minlength=self.num_items), index=self.items, name="count")

    def counts_per_annotator(self) -> pd.Series:
        """Number of rows of every annotator, ignoring weights."""
        counts = np.bincount(self.annotator, minlength=self.num_annotators)
        return pd.Series(counts, index=self.annotators, name="count")


def _frozen(values: np.ndarray, dtype: type, name: str, length: int) -> np.ndarray:
    """A read-only copy of a one-dimensional array."""
    if values.dtype != dtype or values.shape != (length,):
        wanted = f"{np.dtype(dtype)} of shape ({length},), as `item` is long"
        raise ValueError(f"`{name}` must be {wanted}, not {values.dtype} of shape {values.shape}")
    values = values.copy()
    values.setflags(write=False)
    return values
