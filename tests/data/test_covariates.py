"""Covariates of annotators and items: validated, aligned to the ids, coded for models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from probcrowd import Annotations
from probcrowd.data.covariates import Covariates, align
from probcrowd.data.rows import Rows

TABLE = pd.DataFrame({"item": ["q2", "q1", "q1"], "annotator": ["bob", "ann", "bob"], "label": [0, 1, 1]})
GROUPS = pd.DataFrame(
    {"group": ["expert", "novice", "novice"], "years": [9, 1, 2]}, index=["ann", "cid", "bob"]
)
LENGTHS = pd.DataFrame({"length": [3.5, 0.5]}, index=["q1", "q2"])


def annotations(**options: pd.DataFrame) -> Annotations:
    return Annotations.from_frame(TABLE, **options)  # pyright: ignore[reportArgumentType]


def test_covariates_follow_the_order_of_the_ids() -> None:
    table = annotations(annotator_covariates=GROUPS, item_covariates=LENGTHS)
    assert table.annotator_covariates is not None and table.item_covariates is not None
    pd.testing.assert_frame_equal(
        table.annotator_covariates, GROUPS.loc[["bob", "ann"]].rename_axis("annotators")
    )
    assert table.item_covariates["length"].tolist() == [0.5, 3.5]


def test_covariates_are_copied() -> None:
    own = GROUPS.copy()
    table = annotations(annotator_covariates=own)
    own.loc["ann", "years"] = 100
    assert table.annotator_covariates is not None and table.annotator_covariates["years"].tolist() == [2, 9]


def test_from_wide_and_replace_keep_covariates() -> None:
    wide = Annotations.from_wide(
        pd.DataFrame([[1, 0], [None, 1]], ["q1", "q2"], ["ann", "bob"]),
        annotator_covariates=GROUPS,
        item_covariates=LENGTHS,
    )
    again = replace(wide, weight=np.full(3, 2.0))
    for table in (wide, again):
        assert table.annotator_covariates is not None and table.item_covariates is not None
        assert table.annotator_covariates["group"].tolist() == ["expert", "novice"]
        assert table.item_covariates["length"].tolist() == [3.5, 0.5]


@pytest.mark.parametrize("name", ["annotator_covariates", "item_covariates"])
def test_equals_compares_covariates(name: str) -> None:
    frame = {"annotator_covariates": GROUPS, "item_covariates": LENGTHS}[name]
    one = annotations(**{name: frame})
    assert one.equals(annotations(**{name: frame.copy()})) and not one.equals(annotations())
    assert not one.equals(annotations(**{name: frame.assign(more=1)}))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (GROUPS.drop("ann"), "annotators without covariates.*'ann'"),
        (pd.concat([GROUPS, GROUPS.loc[["bob"]]]), "annotators with several rows of covariates.*'bob'"),
        (GROUPS.assign(years=[np.nan, 1, 2]), "missing values of the covariate 'years'.*'ann'"),
        (GROUPS.assign(years=[np.inf, 1, 2]), "covariate 'years' that are not finite.*'ann'"),
        (GROUPS.set_axis(["years", "years"], axis=1), "repeated columns"),
    ],
)
def test_invalid_covariates_are_refused(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        annotations(annotator_covariates=frame)


def test_covariates_must_be_a_frame() -> None:
    with pytest.raises(
        TypeError, match="covariates of annotators must be a DataFrame indexed by id, not dict"
    ):
        align({"group": 1}, pd.Index(["ann"]), "annotators")


def test_a_repeated_row_of_an_unknown_annotator_is_dropped() -> None:
    frame = pd.concat([GROUPS, GROUPS.loc[["cid"]]])
    table = annotations(annotator_covariates=frame)
    assert table.annotator_covariates is not None and len(table.annotator_covariates) == 2


def test_models_get_codes_and_numbers() -> None:
    rows = Rows.from_annotations(annotations(annotator_covariates=GROUPS, item_covariates=LENGTHS))
    groups = rows.annotator_covariates
    assert groups["group"].tolist() == [1, 0] and groups.level_names("group") == ("expert", "novice")
    assert groups["years"].tolist() == [2.0, 9.0] and rows.item_covariates["length"].tolist() == [0.5, 3.5]
    with pytest.raises(ValueError, match="needs the covariate 'age'; the table has group, years"):
        groups["age"]
    with pytest.raises(ValueError, match="'years' holds numbers, not groups"):
        groups.level_names("years")
    assert Covariates.from_frame(None) == Covariates()


@pytest.mark.parametrize(
    "column", [pd.Categorical(["b", "a", "b"]), [True, False, True], np.array(["b", "a", "b"], object)]
)
def test_text_categories_and_booleans_are_coded_alike(column: object) -> None:
    covariates = Covariates.from_frame(pd.DataFrame({"x": column}))
    assert covariates["x"].tolist() == [1, 0, 1] and len(covariates.level_names("x")) == 2
