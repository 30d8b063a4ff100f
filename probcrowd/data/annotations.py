"""The table of annotations: n rows, each "annotator j said label l about item i", possibly with a weight w.

    row r = (item[r], annotator[r], label[r], weight[r]),    r = 0 .. n - 1

The first three are codes (positions) into `items`, `annotators` and `classes`, which hold the user's own ids. An annotation that was
never made is an absent row. The three sizes belong to the table and are not read off its rows, so an item nobody has seen, an annotator
who has not started and a class nobody used all keep their place.

User data is validated here, column by column in `probcrowd.data.columns`, and nowhere else: whatever holds an `Annotations` may rely on it.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64
from pandas.api.types import infer_dtype

from probcrowd.data import covariates
from probcrowd.data.columns import (
    PLURALS,
    declare,
    encode,
    factorize,
    plain,
    read_weights,
    reject,
    sort_ids,
    undo_float,
)
from probcrowd.data.options import check_option

_COLUMNS = {
    "item": ("item", "task"),
    "annotator": ("annotator", "worker", "rater", "user"),
    "label": ("label",),
    "weight": (),
}
_MAX_CELLS = 10**8


@dataclass(frozen=True, eq=False, repr=False)
class Annotations:
    """Annotations in long format; usually made by `from_frame` or `from_wide`.

    item, annotator, label: codes (n,), positions in `items`, `annotators` and `classes`. weight: the number of times each row counts (n,),
    or None where every row counts once. annotator_covariates, item_covariates: frames with a row per annotator or item under its id, or
    None; they are kept in the order of `annotators` and `items`. The arrays are read-only copies. A table made directly may have no rows (a model's prior) and may
    repeat an (item, annotator) pair.

    Raises:
        ValueError: arrays of another dtype or of unequal lengths, codes outside the ids, weights that are not finite and positive, or
            ids that repeat, are missing or mix kinds.
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
            object.__setattr__(
                self, f"{role}_covariates", covariates.align(frame, getattr(self, plural), plural)
            )

    def __len__(self) -> int:
        return len(self.item)

    def __repr__(self) -> str:
        sizes = f"num_items={self.num_items}, num_annotators={self.num_annotators}, num_classes={self.num_classes}"
        return f"Annotations({len(self)} rows, {sizes}{'' if self.weight is None else ', weighted'})"

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
        """The annotations in a long table: one row of `frame` per label given.

        >>> frame = pd.DataFrame({"task": ["q1", "q1", "q2"], "worker": ["ann", "bob", "ann"], "label": ["yes", "no", "yes"]})
        >>> Annotations.from_frame(frame).label
        array([1, 0, 1])

        Args:
            item, annotator, label: names of columns. By default item or task; annotator, worker, rater or user; label.
            weight: name of the column of weights, numbers > 0. A column called "weight" is used only when it is named here.
            items, annotators, classes: all ids in the order wanted, including those without rows. By default items and annotators are
                those of the table in order of first appearance, and classes the categories of a categorical column or the sorted labels.
            duplicates: what to do with rows that repeat an (item, annotator) pair. "error"; keep the "first" or the "last"; "count" each
                row; or "share": the n rows of one pair count 1/n each, times their weight if there is one.
            missing: what to do with rows whose label is missing (None, NaN, NaT, NA). "error", or "skip": no annotation, but the item and
                the annotator stay known.

            annotator_covariates, item_covariates: a row per annotator or item under its id, for models that use them. Rows of other ids
                are dropped.

        Raises:
            TypeError: `frame` or covariates are not a DataFrame.
            ValueError: columns that are absent or ambiguous; no annotation at all; an id that is missing, infinite or outside the declared
                ones; a column that mixes kinds (1 and "1"); a repeated pair, a missing label or a bad weight. The message names the rows.
        """
        if not isinstance(frame, pd.DataFrame):
            raise TypeError(
                f"frame must be a pandas DataFrame, not {type(frame).__name__}; a matrix goes to Annotations.from_wide"
            )
        check_option("duplicates", duplicates, ("error", "first", "last", "count", "share"))
        check_option("missing", missing, ("error", "skip"))
        columns = find_columns(
            frame, {"item": item, "annotator": annotator, "label": label, "weight": weight}
        )
        item_code, items = encode(columns["item"], "item", items)
        annotator_code, annotators = encode(columns["annotator"], "annotator", annotators)
        labels = plain(columns["label"])
        kept = labels.notna().to_numpy(bool)
        if missing == "error":
            reject(~kept, labels, "missing labels; say missing='skip' to leave these rows out")
        if not kept.any():
            raise ValueError(f"the table holds no annotation: {len(frame)} rows, none with a label")
        if not kept.all():
            labels = undo_float(labels.loc[kept])
        if classes is None and isinstance(labels.dtype, pd.CategoricalDtype):
            classes = labels.cat.categories
        label_code, ids = encode(labels, "label", classes)
        if classes is None:
            label_code, ids = sort_ids(label_code, ids)
        weights = None if weight is None else read_weights(columns["weight"].loc[kept])
        item_code, annotator_code = item_code[kept], annotator_code[kept]
        pair = item_code * len(annotators) + annotator_code
        repeated = (
            pd.Series(pair)
            .duplicated(keep=duplicates if duplicates in ("first", "last") else False)
            .to_numpy()
        )
        if duplicates == "error" and repeated.any():
            pairs = pd.Series(
                list(zip(items[item_code], annotators[annotator_code], strict=True)), index=labels.index
            )
            reject(
                repeated,
                pairs,
                "repeated (item, annotator) pairs; say duplicates='first', 'last', 'count' or 'share', or remove rows",
            )
        if duplicates == "share":
            _, inverse, count = np.unique(pair, return_inverse=True, return_counts=True)
            weights = (1.0 if weights is None else weights) / count[inverse]
        used = ~repeated if duplicates in ("first", "last") else np.ones(len(pair), dtype=bool)
        weights = None if weights is None else weights[used]
        return cls(
            item_code[used],
            annotator_code[used],
            label_code[used],
            items,
            annotators,
            ids,
            weights,
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
        """The annotations in an items x annotators matrix: a row per item, a column per annotator.

        Rows and columns that are entirely missing stay known. Cells are missing if None, NaN, NaT or NA. Whole numbers that are floats
        only to make room for NaN become integers again.

        Args:
            matrix: a DataFrame, whose index and columns are the ids, or a 2-D array or list of lists, with ids 0, 1, ...
            missing_label: a further value that marks a missing cell, such as -1.
            classes: as in `from_frame`.
            items, annotators: for an array, the ids of its rows and columns; for a DataFrame, as in `from_frame`.
            annotator_covariates, item_covariates: as in `from_frame`.

        Raises:
            ValueError: as `from_frame`, naming a cell by (item, annotator); a matrix that is not 2-D; ids that repeat; -1 among integers
                when neither `missing_label` nor `classes` says what it means.
        """
        if not isinstance(matrix, pd.DataFrame):
            values = matrix if isinstance(matrix, np.ndarray) else np.array(matrix, dtype=object)
            if values.ndim != 2:
                raise ValueError(
                    f"the matrix must be 2-D, items x annotators, with rows of equal length; its shape is {values.shape}"
                )
            matrix = pd.DataFrame(values)
            for axis, (plural, ids) in enumerate({"items": items, "annotators": annotators}.items()):
                if ids is not None:
                    if len(ids) != values.shape[axis]:
                        raise ValueError(
                            f"{len(ids)} {plural} declared for a matrix of shape {values.shape}, items x annotators"
                        )
                    matrix = matrix.set_axis(declare(ids, plural), axis=axis)
        rows, columns = declare(matrix.index, "items"), declare(matrix.columns, "annotators")
        cells = plain(
            pd.Series(matrix.set_axis(range(len(columns)), axis=1).melt()["value"])
        )  # one column after the other
        codes, values = factorize(cells)
        given = codes >= 0
        if missing_label is not None and len(values):
            given &= ~np.asarray(values.astype(object) == missing_label, dtype=bool)[codes]
        place = np.flatnonzero(given)
        place = place[np.argsort(place % len(rows), kind="stable")]  # row by row
        item, annotator = place % len(rows), place // len(rows)
        labels = cells.iloc[place]
        if len(labels) < len(cells):
            labels = undo_float(labels)
        if isinstance(labels.dtype, pd.CategoricalDtype) and missing_label in labels.cat.categories:
            labels = labels.cat.set_categories(
                labels.cat.categories.drop(missing_label)
            )  # the mark is no class
        labels.index = pd.MultiIndex(
            levels=[rows.astype(object), columns.astype(object)], codes=[item, annotator]
        )
        if missing_label is None and classes is None:
            distinct = undo_float(pd.Series(factorize(labels)[1])).astype(object)
            marked = (
                (labels == -1).to_numpy(bool)
                if infer_dtype(distinct) == "integer"
                else np.zeros(len(labels), dtype=bool)
            )
            reject(
                marked,
                labels,
                "-1 is the usual mark for 'not labelled': say missing_label=-1, or declare classes",
            )
        frame = pd.DataFrame(
            {"item": rows[item], "annotator": columns[annotator], "label": labels.array}, index=labels.index
        )
        items, annotators = rows if items is None else items, columns if annotators is None else annotators
        return cls.from_frame(
            frame,
            items=items,
            annotators=annotators,
            classes=classes,
            annotator_covariates=annotator_covariates,
            item_covariates=item_covariates,
        )

    def to_frame(self) -> pd.DataFrame:
        """The table with columns item, annotator, label, and weight if there is one, under the user's ids and in the order of the rows.

        Ids without rows are not in it; `from_frame` needs them declared (`items=self.items` and so on) to give an equal table back.
        """
        columns = {
            "item": self.items[self.item],
            "annotator": self.annotators[self.annotator],
            "label": self.classes[self.label],
        }
        return pd.DataFrame(columns if self.weight is None else columns | {"weight": self.weight})

    def to_wide(self) -> pd.DataFrame:
        """The labels as an items x annotators table, NaN or NA where there is none; weights are not in it.

        `from_wide` gives an equal table back if the rows are sorted by item and then annotator, and unused classes are declared.

        Raises:
            ValueError: an (item, annotator) pair has several rows, or the table would have more than 10**8 cells.
        """
        cells = self.num_items * self.num_annotators
        if cells > _MAX_CELLS:
            sizes = f"{self.num_items} items x {self.num_annotators} annotators = {cells} cells"
            raise ValueError(
                f"{sizes}, more than {_MAX_CELLS}: use to_frame(), or make a table of fewer items first"
            )
        frame = self.to_frame()
        repeated = frame.duplicated(["item", "annotator"], keep=False).to_numpy()
        if repeated.any():
            pairs = pd.Series(list(zip(frame["item"], frame["annotator"], strict=True)))
            reject(
                repeated,
                pairs,
                "a wide table has one cell per (item, annotator) pair and these have several; use to_frame()",
            )
        index = pd.MultiIndex.from_arrays([self.item, self.annotator])
        wide = pd.Series(self.classes[self.label].array, index=index).unstack()
        wide = wide.reindex(index=range(self.num_items), columns=range(self.num_annotators))
        return wide.set_axis(self.items, axis=0).set_axis(self.annotators, axis=1)

    def equals(self, other: "Annotations") -> bool:
        """Whether both tables have the same rows, ids, covariates and weights, in the same order."""
        same = all(np.array_equal(getattr(self, role), getattr(other, role)) for role in PLURALS)
        same = same and all(
            getattr(self, plural).equals(getattr(other, plural)) for plural in PLURALS.values()
        )
        same = same and all(
            covariates.equal(getattr(self, name), getattr(other, name))
            for name in ("annotator_covariates", "item_covariates")
        )
        if self.weight is None or other.weight is None:
            return same and self.weight is other.weight
        return same and np.array_equal(self.weight, other.weight)

    def counts_per_item(self) -> pd.Series:
        """The number of rows of every item, 0 included; weights play no part."""
        return pd.Series(np.bincount(self.item, minlength=self.num_items), index=self.items, name="count")

    def counts_per_annotator(self) -> pd.Series:
        """The number of rows of every annotator, 0 included; weights play no part."""
        return pd.Series(
            np.bincount(self.annotator, minlength=self.num_annotators), index=self.annotators, name="count"
        )


def find_columns(frame: pd.DataFrame, named: dict[str, Hashable | None]) -> dict[str, pd.Series]:
    """The column of each role; all roles that cannot be decided are reported together."""
    found, problems = {}, []
    for role, name in named.items():
        wanted = _COLUMNS[role] if name is None else (name,)
        found[role] = [column for column in frame.columns if column in wanted]
        if wanted and not found[role]:
            problems.append(f"no column {' or '.join(map(repr, wanted))} for {role}=")
        elif len(found[role]) > 1:
            problems.append(f"several columns {', '.join(map(repr, found[role]))} for {role}=")
    chosen = {role: columns[0] for role, columns in found.items() if columns}
    if not problems and len(set(chosen.values())) < len(chosen):
        problems.append(
            f"one column has two roles ({', '.join(f'{role}={column!r}' for role, column in chosen.items())})"
        )
    if problems:
        raise ValueError(
            f"{'; '.join(problems)}: name one column for each. The columns are {frame.columns.tolist()}"
        )
    return {role: pd.Series(frame[column]) for role, column in chosen.items()}


def _frozen(values: np.ndarray, dtype: type, name: str, length: int) -> np.ndarray:
    """A read-only copy of a one-dimensional array."""
    if values.dtype != dtype or values.shape != (length,):
        wanted = f"{np.dtype(dtype)} of shape ({length},), as `item` is long"
        raise ValueError(f"`{name}` must be {wanted}, not {values.dtype} of shape {values.shape}")
    values = values.copy()
    values.setflags(write=False)
    return values
