"""Agreement of pairs against scikit-learn, krippendorff and NumPy; uncertainty; the value of shrinkage."""

from __future__ import annotations

import itertools
import tracemalloc

import krippendorff
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from probcrowd.metrics import agreement
from probcrowd.metrics.agreement import COEFFICIENTS, as_matrix, coefficients, pair_shares, pair_tables
from probcrowd.models.simlabel import similarity as home
from probcrowd.models.simlabel.similarity import similarity


def panel(
    items: int = 60, annotators: int = 5, labels: int = 4, share: float = 0.5, seed: int = 0
) -> np.ndarray:
    """Labels of annotators who agree more or less, -1 where there is none."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(labels, size=items)
    right = rng.random((items, annotators)) < np.linspace(0.9, 0.3, annotators)
    given = np.where(right, truth[:, None], rng.integers(labels, size=(items, annotators)))
    return np.where(rng.random(given.shape) < share, given, -1)


def rows(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    item, annotator = np.nonzero(matrix >= 0)
    return item, annotator, matrix[item, annotator]


def tables_of(matrix: np.ndarray, labels: int = 4):
    return pair_tables(*rows(matrix), num_annotators=matrix.shape[1], num_labels=labels)


def from_table(table: list[list[int]]):
    """Two annotators whose labels have these joint counts."""
    pairs = [(k, l) for k, row in enumerate(table) for l, count in enumerate(row) for _ in range(count)]
    return tables_of(np.array(pairs), len(table))


def test_every_pair_has_the_coefficients_of_other_libraries() -> None:
    matrix = panel()
    tables = tables_of(matrix)
    found = {kind: as_matrix(tables, coefficients(tables, kind)[0], 5) for kind in COEFFICIENTS}
    for j, other in itertools.combinations(range(5), 2):
        both = matrix[(matrix[:, j] >= 0) & (matrix[:, other] >= 0)][:, [j, other]]
        assert found["kappa"][j, other] == pytest.approx(cohen_kappa_score(both[:, 0], both[:, 1]), abs=1e-12)
        alpha = krippendorff.alpha(both.T.astype(float), level_of_measurement="nominal")
        assert found["krippendorff"][other, j] == pytest.approx(alpha, abs=1e-12)
        assert found["pearson"][j, other] == pytest.approx(np.corrcoef(both.T)[0, 1], abs=1e-12)
        agree = (both[:, 0] == both[:, 1]).mean()
        assert found["bennett"][j, other] == pytest.approx((agree - 1 / 4) / (1 - 1 / 4), abs=1e-12)


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_full_panels_are_multiplied_in_blocks_to_the_same_counts(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix, found = panel(share=share, items=101), []
    monkeypatch.setattr(agreement, "_BLOCK_SIZE", 70)
    for faster in (0, 10**9):
        monkeypatch.setattr(agreement, "_DENSE_SPEEDUP", faster)
        tables = tables_of(matrix)
        order = np.lexsort((tables.right_label, tables.left_label, tables.pair))
        found.append(
            [
                tables.left,
                tables.right,
                *(getattr(tables, name)[order] for name in ("pair", "left_label", "right_label", "count")),
            ]
        )
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_correlations_are_of_the_values_of_the_labels() -> None:
    matrix, values = panel(), np.array([1.0, 2.0, 5.0, -3.0])
    tables = tables_of(matrix)
    found = coefficients(tables, "pearson", values)[0]
    for left, right, r in zip(tables.left, tables.right, found, strict=True):
        both = values[matrix[(matrix[:, left] >= 0) & (matrix[:, right] >= 0)][:, [left, right]]]
        assert r == pytest.approx(np.corrcoef(both.T)[0, 1], abs=1e-12)


def test_known_tables() -> None:
    for table, kappa, bennett in (([[20, 5], [10, 15]], 0.4, 0.4), ([[45, 15], [25, 15]], 0.1304, 0.2)):
        assert coefficients(from_table(table))[0][0] == pytest.approx(kappa, abs=5e-5)
        assert coefficients(from_table(table), "bennett")[0][0] == pytest.approx(bennett, abs=5e-5)


def test_nothing_but_one_label_is_no_agreement_beyond_chance() -> None:
    tables = from_table([[30, 0], [0, 0]])
    assert np.isnan([coefficients(tables, kind)[0][0] for kind in ("kappa", "krippendorff", "pearson")]).all()
    assert coefficients(tables, "bennett")[0][0] == 1  # which takes chance as known
    assert similarity(*rows(np.zeros((9, 2), int)), num_annotators=2, num_labels=2).matrix().tolist() == [
        [1, 0],
        [0, 1],
    ]


def test_pairs_without_items_in_common_are_absent_and_0_unless_others_tell() -> None:
    matrix = panel(200, 4, 3, 1.0)
    matrix[:100, 3], matrix[100:, 0] = -1, -1
    tables = tables_of(matrix, 3)
    assert (0, 3) not in set(zip(tables.left.tolist(), tables.right.tolist(), strict=True)) and len(
        tables.left
    ) == 5
    plain = similarity(*rows(matrix), num_annotators=4, num_labels=3, shrink=False)
    assert plain.matrix()[0, 3] == 0 and plain.mean == 0
    shrunk = similarity(*rows(matrix), num_annotators=4, num_labels=3)
    assert shrunk.matrix()[0, 3] == shrunk.mean > 0.1


def test_order_names_and_weights_do_not_matter_where_they_should_not() -> None:
    matrix = panel()
    item, annotator, label = rows(matrix)
    expected = as_matrix(tables_of(matrix), coefficients(tables_of(matrix))[0], 5)
    order = np.random.default_rng(1).permutation(len(item))
    place, name = np.random.default_rng(2).permutation(5), np.random.default_rng(3).permutation(4)
    renamed = pair_tables(
        item[order], place[annotator][order], name[label][order], num_annotators=5, num_labels=4
    )
    np.testing.assert_allclose(
        as_matrix(renamed, coefficients(renamed)[0], 5)[np.ix_(place, place)], expected, atol=1e-12
    )
    twice = [np.tile(part, 2) for part in (item, annotator, label)]
    doubled = pair_tables(
        *twice, pair_shares(*twice[:2], np.ones(2 * len(item)), 5), num_annotators=5, num_labels=4
    )
    np.testing.assert_allclose(doubled.items, tables_of(matrix).items)  # two labels of a pair share its place
    np.testing.assert_allclose(coefficients(doubled)[0], coefficients(tables_of(matrix))[0], atol=1e-12)
    split = pair_tables(
        np.array([0, 0, 0, 1, 1]),
        np.array([0, 0, 1, 0, 1]),
        np.array([0, 1, 0, 1, 1]),
        pair_shares(np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 0, 1]), np.array([3.0, 1, 1, 1, 1]), 2),
        num_annotators=2,
        num_labels=2,
    )
    assert split.agreement[0] == pytest.approx((0.75 + 1) / 2) and split.items[0] == 2


@pytest.mark.parametrize("kind", COEFFICIENTS)
@pytest.mark.parametrize("items", [20, 100])
def test_standard_errors_are_those_of_repeated_panels(kind: str, items: int) -> None:
    rng, found, errors = np.random.default_rng(0), [], []
    for _ in range(300):
        truth = rng.integers(3, size=items)
        both = np.where(rng.random((items, 2)) < 0.8, truth[:, None], rng.integers(3, size=(items, 2)))
        value, error = coefficients(tables_of(both, 3), kind)
        found.append(value[0])
        errors.append(error[0])
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.2)


def groups(overlap: int, seed: int, share: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Labels of ten annotators of two groups who share about so many items, and the true kappas."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(4, size=(round(overlap / share**2), 2))  # each group has a truth of its own
    skill = rng.uniform(0.6, 0.95, 10)
    given = np.stack(
        [
            np.where(rng.random(len(truth)) < skill[j], truth[:, j // 5], rng.integers(4, size=len(truth)))
            for j in range(10)
        ],
        1,
    )
    matrix = np.eye(10)
    for j, other in itertools.permutations(range(10), 2):
        matrix[j, other] = skill[j] * skill[other] if j // 5 == other // 5 else 0.0
    return np.where(rng.random(given.shape) < share, given, -1), matrix


@pytest.mark.parametrize("overlap", [8, 30])
def test_shrinkage_is_closer_to_the_truth_and_its_uncertainty_is_right(overlap: int) -> None:
    upper, lost, covered = np.triu_indices(10, 1), [], []
    for seed in range(40):
        given, true = groups(overlap, seed)
        found = similarity(*rows(given), num_annotators=10, num_labels=4)
        raw = similarity(*rows(given), num_annotators=10, num_labels=4, shrink=False)
        lost.append([np.mean((one.matrix() - true)[upper] ** 2) for one in (found, raw)])
        covered.extend(
            np.abs(found.value - true[found.tables.left, found.tables.right]) < 1.96 * found.value_error
        )
    shrunk, plain = np.mean(lost, 0)
    assert shrunk < (0.85 if overlap == 8 else 1.0) * plain
    assert 0.88 < np.mean(covered) < 0.99


def test_mean_and_spread_of_all_pairs_are_those_of_dersimonian_and_laird() -> None:
    found = similarity(*rows(panel(80, 6)), num_annotators=6, num_labels=4)
    c, s2 = found.coefficient, found.standard_error**2
    w = [1 / one for one in s2]
    fixed = sum(a * b for a, b in zip(w, c, strict=True)) / sum(w)
    q = sum(a * (b - fixed) ** 2 for a, b in zip(w, c, strict=True))
    v = max(0.0, (q - (len(c) - 1)) / (sum(w) - sum(a**2 for a in w) / sum(w)))
    m = sum(b / (one + v) for b, one in zip(c, s2, strict=True)) / sum(1 / (one + v) for one in s2)
    assert v > 0.01 and found.mean == pytest.approx(m) and found.scale**2 == pytest.approx(v)
    np.testing.assert_allclose(found.value, (v * c + s2 * m) / (v + s2))
    np.testing.assert_allclose(found.value_error**2, v * s2 / (v + s2))


def test_with_much_overlap_nothing_is_shrunk_and_with_none_in_the_truth_all_is() -> None:
    given, _ = groups(20_000, 0, 1.0)
    found, raw = (
        similarity(*rows(given), num_annotators=10, num_labels=4, shrink=shrink) for shrink in (True, False)
    )
    np.testing.assert_allclose(found.value, raw.value, atol=1e-3)
    rng = np.random.default_rng(0)
    noise = similarity(*rows(rng.integers(4, size=(40, 10))), num_annotators=10, num_labels=4)
    assert np.ptp(noise.value) < 0.25 * np.ptp(noise.coefficient)


def test_weights_are_never_negative_and_a_row_of_zeros_becomes_equal() -> None:
    rng = np.random.default_rng(0)
    given = np.repeat(rng.integers(2, size=(50, 1)), 4, 1)
    given[:, 3] = 1 - given[:, 3]  # an annotator who inverts labels
    weights = similarity(*rows(given), num_annotators=4, num_labels=2, shrink=False).weights()
    assert weights[:3, 3].tolist() == [0, 0, 0] and weights[3].tolist() == [1, 1, 1, 0]
    np.testing.assert_allclose(weights[:3, :3], 1 - np.eye(3))
    shrunk = similarity(*rows(given), num_annotators=4, num_labels=2).weights()
    assert (
        (shrunk >= 0).all() and shrunk[3].tolist() == [0, 0, 0, 0] and shrunk[0, 1] > 0
    )  # known to disagree: no annotator predicts this one
    strangers = np.array([[0, -1, -1], [-1, 1, -1], [-1, -1, 0]])
    for shrink in (True, False):
        alone = similarity(*rows(strangers), num_annotators=3, num_labels=2, shrink=shrink).weights()
        np.testing.assert_array_equal(alone, 1 - np.eye(3))


def test_the_frame_is_under_the_users_ids() -> None:
    given = np.array([[0, 0, 1], [1, 1, 1], [0, 1, -1], [1, 1, 0]])
    found = similarity(*rows(given), num_annotators=3, num_labels=2, shrink=False).frame(
        pd.Index(["ann", "bob", "eve"])
    )
    assert found[["annotator", "other", "items"]].to_numpy().tolist() == [
        ["ann", "bob", 4],
        ["ann", "eve", 3],
        ["bob", "eve", 3],
    ]
    assert found["agreement"].tolist() == pytest.approx([3 / 4, 1 / 3, 1 / 3])


def test_long_sparse_tables_are_never_made_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    item, annotator = np.repeat(np.arange(20_000), 3), rng.integers(4_000, size=60_000)
    sizes = {"num_annotators": 4_000, "num_labels": 10}
    tracemalloc.start()
    tables = pair_tables(item, annotator, rng.integers(10, size=60_000), **sizes)
    coefficients(tables)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(tables.left) > 50_000 and peak < 8 * 4_000**2 / 2
    monkeypatch.setattr(home, "MAX_ANNOTATORS", 10)
    with pytest.raises(ValueError, match=r"4,000 annotators: a similarity matrix would take 0\.1 GB"):
        similarity(item, annotator, np.zeros(60_000, int), **sizes)


def test_an_unknown_coefficient_is_refused() -> None:
    with pytest.raises(
        ValueError, match="similarity='fleiss': choose one of kappa, bennett, krippendorff, pearson"
    ):
        coefficients(from_table([[1, 0], [0, 1]]), "fleiss")
