"""`Annotations`: equal codes for equivalent inputs, nothing merged silently, errors with place and remedy."""

import dataclasses
import inspect

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probcrowd.data.annotations import Annotations

WIDE = pd.DataFrame(
    [["no", None, "yes"], [None, None, None], ["yes", "no", None]],
    index=["q2", "q1", "q3"],
    columns=["bob", "ann", "cy"],
)


def long_table(**columns) -> pd.DataFrame:
    """Four rows with label codes 1, 0, 1, 1 once sorted; row labels are not positions on purpose."""
    table = {
        "item": ["q2", "q1", "q2", "q3"],
        "annotator": ["bob", "ann", "ann", "bob"],
        "label": ["yes", "no", "yes", "yes"],
    }
    return pd.DataFrame(table | columns, index=["r10", "r11", "r12", "r13"])


def direct(**fields) -> Annotations:
    values = {
        "item": np.array([0, 1]),
        "annotator": np.array([0, 0]),
        "label": np.array([1, 0]),
        "items": pd.Index(["q1", "q2"]),
        "annotators": pd.Index(["ann"]),
        "classes": pd.Index(["no", "yes"]),
    }
    return Annotations(**(values | fields))


def message_of(make, *args, kind: type[Exception] = ValueError, **kwargs) -> str:
    with pytest.raises(kind) as caught:
        make(*args, **kwargs)
    assert type(caught.value) is kind
    return str(caught.value)


def says(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"


def rows_of(table: Annotations) -> list[tuple]:
    return list(table.to_frame().itertuples(index=False, name=None))


# The record


def test_codes_sizes_and_ids():
    table = Annotations.from_frame(long_table())
    assert table.item.tolist() == [0, 1, 0, 2]
    assert table.annotator.tolist() == [0, 1, 1, 0]
    assert table.label.tolist() == [1, 0, 1, 1]
    assert table.items.tolist() == ["q2", "q1", "q3"]  # first appearance
    assert table.annotators.tolist() == ["bob", "ann"]
    assert table.classes.tolist() == ["no", "yes"]  # sorted
    assert (len(table), table.num_items, table.num_annotators, table.num_classes) == (4, 3, 2, 2)
    assert table.weight is None
    assert {table.item.dtype, table.annotator.dtype, table.label.dtype} == {np.dtype(np.int64)}


def test_repr_is_sizes_only():
    expected = "Annotations(4 rows, num_items=3, num_annotators=2, num_classes=2)"
    assert repr(Annotations.from_frame(long_table())) == expected
    assert repr(Annotations.from_frame(long_table(w=2.0), weight="w")) == expected[:-1] + ", weighted)"


def test_arrays_are_read_only_copies():
    codes, weight = np.array([0, 1]), np.array([1.0, 2.0])
    table = direct(item=codes, weight=weight)
    for array in (table.item, table.annotator, table.label, table.weight):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    codes[0], weight[0] = 1, 9.0  # the caller's arrays stay writable and apart
    assert table.item.tolist() == [0, 1] and table.weight.tolist() == [1.0, 2.0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        table.item = codes


def test_ids_are_copies():
    names = np.array(["q1", "q2"], dtype=object)
    index = pd.Index(names, copy=False, name="mine")
    table = direct(items=index)
    names[0] = "changed"
    assert table.items.tolist() == ["q1", "q2"] and index.name == "mine"


@pytest.mark.parametrize(
    "options",
    [{}, {"duplicates": "share", "weight": "w"}, {"missing": "skip", "classes": ["no", "yes", "maybe"]}],
)
def test_the_frame_is_not_altered(options):
    frame = long_table(w=[1, 2, 3, 4])
    before = frame.copy(deep=True)
    Annotations.from_frame(frame, **options)
    pd.testing.assert_frame_equal(frame, before)


def test_the_matrix_is_not_altered():
    frame, array = WIDE.copy(deep=True), np.array([[0, -1], [1, 0]])
    Annotations.from_wide(frame)
    Annotations.from_wide(array, missing_label=-1)
    pd.testing.assert_frame_equal(frame, WIDE)
    assert array.tolist() == [[0, -1], [1, 0]]


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        (
            {"item": np.array([0, 2])},
            ["item codes outside 0 .. 1", "`items`", "1 of 2 rows: 1;", "values: 2)"],
        ),
        (
            {"annotator": np.array([0, -1])},
            ["annotator codes outside 0 .. 0", "1 of 2 rows: 1;", "values: -1)"],
        ),
        (
            {"label": np.array([5, 2])},
            ["label codes outside 0 .. 1", "`classes`", "2 of 2 rows: 0, 1;", "values: 5, 2)"],
        ),
        (
            {"weight": np.array([1.0, 0.0])},
            ["weights must be finite and > 0", "1 of 2 rows: 1;", "values: 0.0)"],
        ),
        (
            {"weight": np.array([np.inf, 1.0])},
            ["weights must be finite and > 0", "1 of 2 rows: 0;", "values: inf)"],
        ),
        (
            {"items": pd.Index(["q1", "q1"])},
            ["repeated ids in `items`", "2 of 2 positions: 0, 1;", "values: 'q1')"],
        ),
        ({"classes": pd.Index(["no", None])}, ["missing ids in `classes`", "1 of 2 positions: 1;"]),
        (
            {"classes": pd.Index([1, "1"])},
            ["ids in `classes` of several kinds", "number 1 (row 0)", "text '1' (row 1)"],
        ),
    ],
)
def test_direct_construction_is_validated(fields, parts):
    says(message_of(direct, **fields), *parts)


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"label": np.array([0])}, ["`label` must be int64 of shape (2,)", "not int64 of shape (1,)"]),
        ({"annotator": np.array([[0, 0]])}, ["`annotator` must be int64 of shape (2,)", "of shape (1, 2)"]),
        ({"item": np.array([0.0, 1.0])}, ["`item` must be int64", "not float64"]),
        ({"weight": np.array([1, 2])}, ["`weight` must be float64", "not int64"]),
    ],
)
def test_direct_construction_checks_arrays_without_the_type_checker(fields, parts, monkeypatch):
    monkeypatch.setattr(Annotations, "__init__", inspect.unwrap(Annotations.__init__))
    says(message_of(direct, **fields), *parts)


def test_a_table_without_rows_is_legal_when_made_directly():
    empty = np.array([], dtype=np.int64)
    table = direct(item=empty, annotator=empty, label=empty)
    assert (len(table), table.num_items, table.counts_per_item().tolist()) == (0, 2, [0, 0])


# Equivalent inputs

TEXT = ["b", "a", "b", "c"]
NUMBER = [5, -2, 5, 7]
BOOLEAN = [True, False, True, True]
DICTIONARY = pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string()))
COLUMNS = [
    *[
        pytest.param(TEXT, dtype, id=f"text-{name}")
        for name, dtype in {
            "str": "str",
            "object": object,
            "category": "category",
            "string": "string",
            "pyarrow": "string[pyarrow]",
            "arrow": pd.ArrowDtype(pa.string()),
            "dictionary": DICTIONARY,
        }.items()
    ],
    *[
        pytest.param(NUMBER, dtype, id=f"number-{name}")
        for name, dtype in {
            "int64": "int64",
            "int8": "int8",
            "object": object,
            "category": "category",
            "Int64": "Int64",
            "float": float,
            "Float64": "Float64",
            "arrow": pd.ArrowDtype(pa.int64()),
            "arrow-float": pd.ArrowDtype(pa.float64()),
        }.items()
    ],
    *[
        pytest.param(BOOLEAN, dtype, id=f"bool-{name}")
        for name, dtype in {
            "bool": bool,
            "object": object,
            "category": "category",
            "boolean": "boolean",
            "arrow": pd.ArrowDtype(pa.bool_()),
        }.items()
    ],
    pytest.param(
        list(pd.to_datetime(["2020-02-01", "2020-01-01", "2020-02-01", "2020-03-01"])), None, id="datetime"
    ),
]


@pytest.mark.parametrize(("values", "dtype"), COLUMNS)
def test_labels_of_every_dtype_give_the_same_codes(values, dtype):
    frame = long_table().assign(label=pd.Series(values, dtype=dtype).array)
    ranks = [sorted(set(values)).index(value) for value in values]
    table = Annotations.from_frame(frame)
    assert table.label.tolist() == ranks
    assert table.classes.tolist() == sorted(set(values))
    assert Annotations.from_frame(table.to_frame()).equals(table)
    # the same through declared classes of the plain dtype, in another order
    declared = Annotations.from_frame(frame, classes=sorted(set(values), reverse=True))
    assert declared.label.tolist() == [len(set(values)) - 1 - rank for rank in ranks]
    # and the declared classes of this dtype hold for plain labels
    back = Annotations.from_frame(long_table(label=values), classes=table.classes)
    assert back.label.tolist() == ranks


@pytest.mark.parametrize(("values", "dtype"), COLUMNS)
def test_items_of_every_dtype_give_the_same_codes(values, dtype):
    frame = long_table(annotator=["a1", "a2", "a3", "a4"]).assign(item=pd.Series(values, dtype=dtype).array)
    expected = [list(dict.fromkeys(values)).index(value) for value in values]
    table = Annotations.from_frame(frame)
    assert table.item.tolist() == expected
    assert table.items.tolist() == list(dict.fromkeys(values))
    declared = Annotations.from_frame(frame, items=[*sorted(set(values))])
    assert rows_of(declared) == rows_of(table)


def test_to_frame_keeps_the_dtypes():
    frame = long_table(
        item=pd.array([2, 1, 2, 3], dtype="Int64"),
        label=pd.array(TEXT, dtype="string[pyarrow]"),
        w=[1.0, 2.0, 3.0, 4.0],
    )
    expected = frame.reset_index(drop=True).rename(columns={"w": "weight"})
    pd.testing.assert_frame_equal(Annotations.from_frame(frame, weight="w").to_frame(), expected)
    pd.testing.assert_frame_equal(Annotations.from_frame(frame).to_frame(), expected.drop(columns="weight"))


def test_tuples_may_be_ids():
    frame = long_table(item=[("d1", 1), ("d1", 2), ("d1", 1), ("d2", 1)])
    table = Annotations.from_frame(frame, items=[("d2", 1), ("d1", 1), ("d1", 2)])
    assert table.item.tolist() == [1, 2, 1, 0]
    assert Annotations.from_frame(table.to_frame(), items=table.items).equals(table)
    wide = pd.DataFrame(
        [[1, 0], [0, 0]], index=pd.MultiIndex.from_tuples([("d1", 1), ("d2", 1)]), columns=["a", "b"]
    )
    assert Annotations.from_wide(wide).items.tolist() == [("d1", 1), ("d2", 1)]
    says(message_of(Annotations.from_wide, wide, classes=[0]), "rows: (('d1', 1), 'a')")


def test_categories_give_the_order_and_the_unused_classes():
    labels = pd.Categorical(["yes", "no", "yes", "yes"], categories=["yes", "unsure", "no"])
    table = Annotations.from_frame(long_table(label=labels))
    assert table.classes.tolist() == ["yes", "unsure", "no"] and table.label.tolist() == [0, 2, 0, 0]
    items = pd.Categorical(["q2", "q1", "q2", "q3"], categories=["q0", "q1", "q2", "q3"])
    assert Annotations.from_frame(long_table(item=items)).items.tolist() == [
        "q2",
        "q1",
        "q3",
    ]  # first appearance, used ones


def test_declared_ids_give_order_and_unused_places():
    table = Annotations.from_frame(
        long_table(),
        items=["q0", "q1", "q2", "q3"],
        annotators=pd.Index(["ann", "bob", "new"]),
        classes=("yes", "no", "maybe"),
    )
    assert (
        table.item.tolist() == [2, 1, 2, 3]
        and table.annotator.tolist() == [1, 0, 0, 1]
        and table.label.tolist() == [0, 1, 0, 0]
    )
    assert (table.num_items, table.num_annotators, table.num_classes) == (4, 3, 3)
    assert table.counts_per_item().to_dict() == {"q0": 0, "q1": 1, "q2": 2, "q3": 1}
    assert table.counts_per_annotator().to_dict() == {"ann": 2, "bob": 2, "new": 0}
    declared = {"items": table.items, "annotators": table.annotators, "classes": table.classes}
    assert Annotations.from_frame(table.to_frame(), **declared).equals(table)


def test_integral_floats_stay_floats_unless_missing_labels_made_them():
    assert Annotations.from_frame(long_table(label=[1.0, 0.0, 1.0, 1.0])).classes.dtype == np.float64
    skipped = Annotations.from_frame(long_table(label=[1.0, None, 0.0, 1.0]), missing="skip")
    assert skipped.classes.dtype == np.int64 and skipped.label.tolist() == [1, 0, 1]
    halves = Annotations.from_frame(long_table(label=[1.0, None, 0.5, 1.0]), missing="skip")
    assert halves.classes.tolist() == [0.5, 1.0]


# Names of columns


@pytest.mark.parametrize(
    "names",
    [
        ("item", "annotator", "label"),
        ("task", "worker", "label"),
        ("item", "rater", "label"),
        ("task", "user", "label"),
    ],
)
def test_usual_column_names_are_recognised(names):
    frame = long_table().set_axis(list(names), axis=1)
    assert Annotations.from_frame(frame).equals(Annotations.from_frame(long_table()))


def test_named_columns_and_extra_columns():
    frame = long_table().set_axis([0, "who", "answer"], axis=1).assign(label="unused", item="unused")
    assert Annotations.from_frame(frame, item=0, annotator="who", label="answer").equals(
        Annotations.from_frame(long_table())
    )


def test_a_weight_column_counts_only_when_named():
    frame = long_table(weight=[1, 2, 3, 4])
    assert Annotations.from_frame(frame).weight is None
    assert Annotations.from_frame(frame, weight="weight").weight.tolist() == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("frame", "options", "parts"),
    [
        (long_table(task="t"), {}, ["several columns 'item', 'task' for item=", "name one"]),
        (
            long_table(user="u", worker="w"),
            {},
            ["several columns 'annotator', 'user', 'worker' for annotator="],
        ),
        (
            long_table().drop(columns=["item", "label"]),
            {},
            ["no column 'item' or 'task' for item=", "no column 'label' for label=", "are ['annotator']"],
        ),
        (
            long_table(),
            {"item": "doc", "weight": "w"},
            ["no column 'doc' for item=", "no column 'w' for weight=", "['item', 'annotator', 'label']"],
        ),
        (long_table(), {"label": "item"}, ["one column has two roles", "item='item'", "label='item'"]),
        (
            pd.concat([long_table(), long_table()[["label"]]], axis=1),
            {},
            ["several columns 'label', 'label' for label="],
        ),
    ],
)
def test_undecided_columns(frame, options, parts):
    says(message_of(Annotations.from_frame, frame, **options), *parts)


def test_ambiguity_is_settled_by_naming():
    assert Annotations.from_frame(long_table(task="t"), item="item").num_items == 3


def test_only_a_data_frame():
    unchecked = inspect.unwrap(Annotations.from_frame.__func__)
    message = message_of(unchecked, Annotations, [["q1", "ann", "yes"]], kind=TypeError)
    says(message, "must be a pandas DataFrame, not list", "from_wide")


@pytest.mark.parametrize(
    ("name", "options"),
    [("duplicates", "error, first, last, count, share"), ("missing", "error, skip")],
)
def test_unknown_options(name, options):
    says(
        message_of(Annotations.from_frame, long_table(), **{name: "drop"}),
        f"{name}='drop': choose one of {options}",
    )


# Repeated pairs


def repeated_table(**columns) -> pd.DataFrame:
    pairs = {
        "item": ["q1", "q2", "q1", "q1"],
        "annotator": ["ann", "ann", "ann", "bob"],
        "label": ["no", "no", "yes", "no"],
    }
    return pd.DataFrame(pairs | columns, index=["r0", "r1", "r2", "r3"])


@pytest.mark.parametrize(
    ("duplicates", "labels", "weights"),
    [
        ("first", ["no", "no", "no"], [1.0, 2.0, 8.0]),
        ("last", ["no", "yes", "no"], [2.0, 4.0, 8.0]),
        ("count", ["no", "no", "yes", "no"], [1.0, 2.0, 4.0, 8.0]),
        ("share", ["no", "no", "yes", "no"], [0.5, 2.0, 2.0, 8.0]),
    ],
)
def test_policies_for_repeated_pairs(duplicates, labels, weights):
    frame = repeated_table(w=[1, 2, 4, 8])
    table = Annotations.from_frame(frame, duplicates=duplicates)
    assert table.to_frame()["label"].tolist() == labels
    assert table.weight is None if duplicates != "share" else table.weight.tolist() == [0.5, 1.0, 0.5, 1.0]
    assert Annotations.from_frame(frame, duplicates=duplicates, weight="w").weight.tolist() == weights


def test_repeated_pairs_are_an_error_by_default():
    says(
        message_of(Annotations.from_frame, repeated_table()),
        "2 of 4 rows: 'r0', 'r2'",
        "('q1', 'ann')",
        "duplicates='first'",
        "'share'",
    )


def test_long_messages_show_five_and_count_all():
    frame = pd.DataFrame({"item": range(9), "annotator": "ann", "label": [f"x{i}" for i in range(9)]}).astype(
        {"item": object}
    )
    message = message_of(Annotations.from_frame, frame, classes=["x8"])
    says(message, "8 of 9 rows: 0, 1, 2, 3, 4, ...;", "values: 'x0', 'x1', 'x2', 'x3', 'x4', ...)")
    assert "x5" not in message


# Missing, infinite and foreign values


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(["yes", None, "no", np.nan], id="str"),
        pytest.param(pd.Series(["yes", None, "no", pd.NA], dtype=object).array, id="object"),
        pytest.param(pd.array([1, None, 0, pd.NA], dtype="Int64"), id="Int64"),
        pytest.param([1.0, np.nan, 0.0, np.nan], id="float"),
        pytest.param(pd.to_datetime(["2020-01-02", None, "2020-01-01", pd.NaT]), id="NaT"),
        pytest.param(pd.Categorical(["yes", None, "no", None]), id="category"),
        pytest.param(pd.array(["yes", None, "no", None], dtype=DICTIONARY), id="dictionary"),
        pytest.param(
            pd.arrays.ArrowExtensionArray(pa.array([1.0, np.nan, 0.0, np.nan])), id="arrow"
        ),  # NaN that is not null
    ],
)
def test_missing_labels(labels):
    message = message_of(Annotations.from_frame, long_table().assign(label=labels))
    says(message, "missing labels", "2 of 4 rows: 'r11', 'r13'", "missing='skip'")
    table = Annotations.from_frame(long_table().assign(label=labels), missing="skip")
    assert table.label.tolist() == [1, 0]
    assert table.item.tolist() == [0, 0] and table.items.tolist() == [
        "q2",
        "q1",
        "q3",
    ]  # ids of skipped rows stay known
    assert table.counts_per_item().tolist() == [2, 0, 0]


def test_a_skipped_row_neither_repeats_a_pair_nor_needs_a_weight():
    frame = repeated_table(label=["no", "no", None, "yes"], w=[1.0, 1.0, np.nan, 2.0])
    table = Annotations.from_frame(frame, missing="skip", weight="w")
    assert table.weight.tolist() == [1.0, 1.0, 2.0]


@pytest.mark.parametrize("role", ["item", "annotator"])
@pytest.mark.parametrize("missing", ["error", "skip"])
def test_missing_ids_are_always_an_error(role, missing):
    frame = long_table(**{role: ["a", None, "b", None]})
    says(
        message_of(Annotations.from_frame, frame, missing=missing),
        f"missing {role} ids",
        "2 of 4 rows: 'r11', 'r13'",
        "remove these rows",
    )


@pytest.mark.parametrize("dtype", [float, object, "Float64", "category", pd.ArrowDtype(pa.float64())])
@pytest.mark.parametrize("options", [{}, {"missing": "skip"}, {"classes": [0.0, 1.0, np.inf]}])
def test_infinite_labels_are_always_an_error(dtype, options):
    frame = long_table().assign(label=pd.Series([0.0, np.inf, 1.0, -np.inf], dtype=dtype).array)
    says(
        message_of(Annotations.from_frame, frame, **options),
        "infinite label",
        "2 of 4 rows: 'r11', 'r13'",
        "inf, -inf",
    )


@pytest.mark.parametrize(
    "frame", [long_table().iloc[:0], pd.DataFrame({"item": [], "annotator": [], "label": []})]
)
def test_a_table_without_rows(frame):
    says(message_of(Annotations.from_frame, frame), "no annotation", "0 rows")


def test_a_table_without_labels():
    says(
        message_of(Annotations.from_frame, long_table(label=None), missing="skip"), "no annotation", "4 rows"
    )


@pytest.mark.parametrize(
    ("role", "plural", "declared", "rows", "values"),
    [
        ("label", "classes", ["yes", "maybe"], "1 of 4 rows: 'r11'", "'no'"),
        ("item", "items", ["q1"], "3 of 4 rows: 'r10', 'r12', 'r13'", "'q2', 'q3'"),
        ("annotator", "annotators", ["bob"], "2 of 4 rows: 'r11', 'r12'", "'ann'"),
    ],
)
def test_values_outside_the_declared_ids(role, plural, declared, rows, values):
    message = message_of(Annotations.from_frame, long_table(), **{plural: declared})
    says(
        message,
        f"{role} values outside the declared `{plural}`",
        rows,
        f"values: {values})",
        "declare these values",
    )
    assert "types differ" not in message


@pytest.mark.parametrize(
    ("labels", "classes", "kinds"),
    [
        ([1, 0, 1, 1], ["0", "1"], ("number", "text")),
        (["1", "0", "1", "1"], [0, 1], ("text", "number")),
        ([True, False, True, True], [0, 1], ("boolean", "number")),
        ([1.0, 0.0, 1.0, 1.0], [False, True], ("number", "boolean")),
    ],
)
def test_classes_of_another_kind(labels, classes, kinds):
    message = message_of(Annotations.from_frame, long_table(label=labels), classes=classes)
    says(
        message,
        "outside the declared `classes`",
        "4 of 4 rows: 'r10'",
        f"types differ: the column is {kinds[0]}, `classes` is {kinds[1]}",
    )


@pytest.mark.parametrize("ids", [["yes", "no", "yes"], pd.Index(["no", "yes", "no"])])
def test_declared_ids_must_be_unique(ids):
    says(
        message_of(Annotations.from_frame, long_table(), classes=ids),
        "repeated ids in `classes`",
        "2 of 3 positions: 0, 2",
        repr(ids[0]),
        "each must be there once",
    )


@pytest.mark.parametrize("plural", ["items", "annotators", "classes"])
def test_declared_ids_must_be_present(plural):
    says(
        message_of(Annotations.from_frame, long_table(), **{plural: ["yes", None]}),
        f"missing ids in `{plural}`",
        "positions: 1",
    )


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([1, 2, "1", 2], ["number 1 (row 'r10')", "text '1' (row 'r12')"]),
        ([True, 1, True, False], ["boolean True (row 'r10')", "number 1 (row 'r11')"]),
        ([1.0, True, 0.0, 0.0], ["number 1.0 (row 'r10')", "boolean True (row 'r11')"]),
        ([2.5, 1, 1, True], ["number 2.5 (row 'r10')", "boolean True (row 'r13')"]),
        ([None, "a", b"a", "a"], ["text 'a' (row 'r11')", "bytes b'a' (row 'r12')"]),
    ],
)
@pytest.mark.parametrize("role", ["item", "annotator", "label"])
def test_mixed_kinds(values, found, role):
    if role != "label":
        values = [values[1] if value is None else value for value in values]
        found = [part.replace("text 'a' (row 'r11')", "text 'a' (row 'r10')") for part in found]
    frame = long_table(**{role: pd.Series(values, dtype=object).array})
    says(
        message_of(Annotations.from_frame, frame, missing="skip"),
        f"{role} values of several kinds",
        *found,
        "convert them to one kind",
    )


def test_mixed_categories():
    labels = pd.Categorical([1, "1", 1, 1], categories=pd.Index([1, "1"], dtype=object))
    says(
        message_of(Annotations.from_frame, long_table().assign(label=labels)),
        "number 1 (row 'r10')",
        "text '1' (row 'r11')",
    )


def test_integers_and_floats_in_one_object_column_are_one_kind():
    labels = pd.Series([1, 0.0, 1.0, 1], dtype=object).array
    assert Annotations.from_frame(long_table(label=labels)).label.tolist() == [1, 0, 1, 1]


def test_the_mark_of_missing_cells_is_no_class_even_if_it_is_a_category():
    matrix = pd.DataFrame([["b", "?"], ["a", "b"]]).astype(pd.CategoricalDtype(["b", "?", "a", "c"]))
    table = Annotations.from_wide(matrix, missing_label="?")
    assert table.classes.tolist() == ["b", "a", "c"] and table.label.tolist() == [0, 1, 0]


def test_lists_are_no_labels():
    frame = long_table(label=[["a"], ["b"], None, ["a", "b"]])
    says(
        message_of(Annotations.from_frame, frame, missing="skip"),
        "must be single values",
        "3 of 3 rows: 'r10', 'r11', 'r13'",
        "['a', 'b']",
    )
    says(
        message_of(Annotations.from_frame, frame.assign(label=[["a"], "b", "b", "b"])),
        "list ['a'] (row 'r10')",
        "text 'b' (row 'r11')",
    )
    matrix = pd.DataFrame([[["a"], ["b"]], [["a"], None]], index=["q1", "q2"])
    says(message_of(Annotations.from_wide, matrix), "must be single values", "['a'], ['b']")


def test_labels_without_order_need_declared_classes():
    frame = long_table(label=pd.Series([range(1), range(2), range(1), range(1)], dtype=object).array)
    says(message_of(Annotations.from_frame, frame), "no order", "range(0, 1)", "declare classes")
    classes = pd.Index([range(2), range(1)], dtype=object)
    assert Annotations.from_frame(frame, classes=classes).label.tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ([1.0, 0.0, -2.0, 1.0], ["finite and > 0", "2 of 4 rows: 'r11', 'r12'", "0.0, -2.0"]),
        ([1.0, np.nan, np.inf, 1.0], ["finite and > 0", "2 of 4 rows: 'r11', 'r12'", "nan, inf"]),
        (pd.array([1, None, 1, 1], dtype="Int64"), ["finite and > 0", "1 of 4 rows: 'r11'", "<NA>"]),
        ([1.0, "2", None, 1.0], ["must be numbers", "2 of 4 rows: 'r11', 'r12'", "'2', None"]),
        ([True, True, False, True], ["must be numbers", "4 of 4 rows: 'r10'", "True, False"]),
    ],
)
def test_bad_weights(weights, parts):
    says(message_of(Annotations.from_frame, long_table().assign(w=weights), weight="w"), *parts)


@pytest.mark.parametrize("dtype", ["int64", "Int64", "float32", object, pd.ArrowDtype(pa.float64())])
def test_weights_of_every_numeric_dtype(dtype):
    frame = long_table().assign(w=pd.Series([1, 2, 3, 4], dtype=dtype).array)
    weight = Annotations.from_frame(frame, weight="w").weight
    assert weight.dtype == np.float64 and weight.tolist() == [1.0, 2.0, 3.0, 4.0]


# Wide tables


def test_wide_frame_keeps_empty_items_and_annotators():
    table = Annotations.from_wide(WIDE)
    assert rows_of(table) == [
        ("q2", "bob", "no"),
        ("q2", "cy", "yes"),
        ("q3", "bob", "yes"),
        ("q3", "ann", "no"),
    ]
    assert table.items.tolist() == ["q2", "q1", "q3"] and table.annotators.tolist() == ["bob", "ann", "cy"]
    assert table.counts_per_item().tolist() == [2, 0, 2] and table.counts_per_annotator().tolist() == [
        2,
        1,
        1,
    ]


@pytest.mark.parametrize(
    ("matrix", "missing_label"),
    [
        ([[1, None], [0, 1]], None),
        (np.array([[1, np.nan], [0, 1]]), None),
        (np.array([[1, -1], [0, 1]]), -1),
        ([[1, "?"], [0, 1]], "?"),
        (np.array([[1.0, -1.0], [0.0, 1.0]]), -1),
        (np.ma.masked_equal(np.array([[1, 9], [0, 1]]), 9), None),
        (pd.DataFrame([[1, None], [0, 1]], dtype="Int64"), None),
        (pd.DataFrame({0: [1, 0], 1: [None, 1]}).astype({0: "int8", 1: "Float64"}), None),
        (pd.DataFrame([[1, pd.NA], [0, 1]], dtype=object), pd.NA),
    ],
)
def test_marks_of_missing_cells(matrix, missing_label):
    table = Annotations.from_wide(matrix, missing_label=missing_label)
    assert rows_of(table) == [(0, 0, 1), (1, 0, 0), (1, 1, 1)]
    assert pd.api.types.is_integer_dtype(table.classes.dtype)  # also where NaN had made them floats


def test_wide_floats_that_are_no_integers_stay():
    assert Annotations.from_wide([[0.5, np.nan], [1.0, 0.5]]).classes.tolist() == [0.5, 1.0]
    assert (
        Annotations.from_wide(np.array([[0.0, 1.0]])).classes.dtype == np.float64
    )  # nothing missing: the user's own floats


@pytest.mark.parametrize(
    "matrix",
    [np.array([[0, -1], [1, -1]]), [[0, -1, None], [1, -1, 0]], np.array([[0.0, -1.0], [1.0, -1.0]])],
)
def test_minus_one_is_never_a_silent_class(matrix):
    message = message_of(Annotations.from_wide, matrix)
    says(
        message,
        "-1 usually marks 'not labelled': set missing_label=-1, or declare classes",
        "rows: (0, 1), (1, 1);",
    )
    assert Annotations.from_wide(matrix, missing_label=-1).classes.tolist() == [0, 1]
    assert Annotations.from_wide(matrix, classes=[-1, 0, 1]).label.tolist().count(0) == 2


def test_minus_one_is_a_value_among_non_integers_or_beside_another_mark():
    assert Annotations.from_wide([[-1, 9], [1, 0]], missing_label=9).classes.tolist() == [-1, 0, 1]
    assert Annotations.from_wide([[-1, 0.5], [1, 0.5]]).classes.tolist() == [-1.0, 0.5, 1.0]
    assert Annotations.from_wide([["-1", "a"]]).classes.tolist() == ["-1", "a"]


def test_wide_errors_name_the_cell():
    message = message_of(Annotations.from_wide, WIDE, classes=["yes", "maybe"])
    says(message, "2 of 4 rows: ('q2', 'bob'), ('q3', 'ann')", "values: 'no'")
    says(message_of(Annotations.from_wide, [[0, "0"]]), "number 0 (row (0, 0))", "text '0' (row (0, 1))")
    says(message_of(Annotations.from_wide, [[0.5, np.inf]]), "infinite label", "1 of 2 rows: (0, 1)")


def test_declared_ids_of_an_array_name_its_rows_and_columns():
    table = Annotations.from_wide([[1, 0], [0, 1], [1, 1]], items=["x", "y", "z"], annotators=["b", "a"])
    assert rows_of(table)[:3] == [("x", "b", 1), ("x", "a", 0), ("y", "b", 0)]
    says(message_of(Annotations.from_wide, [[1, 0]], items=["x", "y"]), "2 items declared", "shape (1, 2)")
    says(
        message_of(Annotations.from_wide, [[1, 0]], annotators=["x"]), "1 annotators declared", "shape (1, 2)"
    )


def test_declared_ids_of_a_wide_frame_give_order_and_unused_places():
    table = Annotations.from_wide(WIDE, items=["q0", "q1", "q2", "q3"], annotators=["ann", "bob", "cy"])
    assert sorted(rows_of(table)) == sorted(rows_of(Annotations.from_wide(WIDE)))
    assert table.items.tolist() == ["q0", "q1", "q2", "q3"] and table.num_items == 4
    says(
        message_of(Annotations.from_wide, WIDE, items=["q2"]),
        "item values outside the declared `items`",
        "'q3'",
    )


def test_repeated_ids_of_a_wide_frame():
    says(
        message_of(Annotations.from_wide, WIDE.set_axis(["q1", "q2", "q1"])),
        "repeated ids in `items`",
        "positions: 0, 2",
        "'q1'",
    )
    columns = WIDE.set_axis(["ann", "bob", "bob"], axis=1)
    says(
        message_of(Annotations.from_wide, columns), "repeated ids in `annotators`", "positions: 1, 2", "'bob'"
    )


@pytest.mark.parametrize(
    ("matrix", "shape"), [([[0, 1], [1]], "(2,)"), ([0, 1], "(2,)"), (np.zeros((2, 2, 2)), "(2, 2, 2)")]
)
def test_only_two_dimensions(matrix, shape):
    says(message_of(Annotations.from_wide, matrix), "must be 2-D, items x annotators", f"shape is {shape}")


@pytest.mark.parametrize(
    "matrix", [np.zeros((0, 3)), np.zeros((3, 0)), np.full((2, 2), np.nan), WIDE.iloc[[1]]]
)
def test_a_matrix_without_labels(matrix):
    says(message_of(Annotations.from_wide, matrix), "no annotation")


def test_to_wide():
    table = Annotations.from_frame(long_table(), annotators=["ann", "new", "bob"])
    wide = table.to_wide()
    assert wide.index.tolist() == ["q2", "q1", "q3"] and wide.columns.tolist() == ["ann", "new", "bob"]
    assert wide.astype(object).where(wide.notna(), None).to_numpy().tolist() == [
        ["yes", None, "yes"],
        ["no", None, None],
        [None, None, "yes"],
    ]


def test_to_wide_refuses_a_repeated_pair():
    table = Annotations.from_frame(repeated_table(), duplicates="count")
    says(message_of(table.to_wide), "('q1', 'ann')", "2 of 4 rows: 0, 2", "to_frame()")


def test_to_wide_refuses_too_many_cells():
    table = direct(items=pd.RangeIndex(10**5), annotators=pd.RangeIndex(1001))
    says(message_of(table.to_wide), "100000 items x 1001 annotators = 100100000 cells", "to_frame()")


# Equality and round trips


@pytest.mark.parametrize(
    "fields",
    [
        {"item": np.array([1, 1])},
        {"annotator": np.array([0, 1]), "annotators": pd.Index(["ann", "bob"])},
        {"label": np.array([0, 0])},
        {"items": pd.Index(["q1", "q9"])},
        {"annotators": pd.Index(["ann", "bob"])},
        {"classes": pd.Index(["no", "YES"])},
        {"weight": np.array([1.0, 1.0])},
    ],
)
def test_equals_compares_every_field(fields):
    assert direct().equals(direct())
    assert not direct().equals(direct(**fields)) and not direct(**fields).equals(direct())
    assert direct(**fields).equals(direct(**fields))


def test_equals_compares_annotator_codes_and_weights():
    two = {"annotators": pd.Index(["ann", "bob"])}
    assert not direct(**two).equals(direct(**two, annotator=np.array([0, 1])))
    assert not direct(weight=np.array([1.0, 1.0])).equals(direct(weight=np.array([1.0, 2.0])))


@st.composite
def tables(draw) -> pd.DataFrame:
    ids = draw(st.sampled_from([st.integers(-3, 3), st.text("ab1", max_size=2), st.booleans()]))
    labels = draw(
        st.sampled_from([st.integers(0, 3), st.text("xy0", max_size=2), st.booleans(), st.floats(-1, 1)])
    )
    pairs = draw(st.lists(st.tuples(ids, st.integers(0, 4)), min_size=1, max_size=12, unique=True))
    return pd.DataFrame([(*pair, draw(labels)) for pair in pairs], columns=["item", "annotator", "label"])


@settings(max_examples=60, deadline=None)
@given(tables(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(frame, random):
    order = list(range(len(frame)))
    random.shuffle(order)
    table, shuffled = Annotations.from_frame(frame), Annotations.from_frame(frame.iloc[order])
    assert (
        sorted(rows_of(table))
        == sorted(rows_of(shuffled))
        == sorted(frame.itertuples(index=False, name=None))
    )
    assert table.classes.equals(shuffled.classes)


@settings(max_examples=60, deadline=None)
@given(tables())
def test_round_trips(frame):
    table = Annotations.from_frame(frame)
    assert Annotations.from_frame(table.to_frame()).equals(table)
    rows = np.lexsort((table.annotator, table.item))  # a wide table holds its rows by item, then annotator
    ordered = dataclasses.replace(
        table, item=table.item[rows], annotator=table.annotator[rows], label=table.label[rows]
    )
    assert Annotations.from_wide(table.to_wide(), classes=table.classes).equals(ordered)
