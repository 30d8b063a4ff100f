"""Label switching against every permutation tried, and functionals that no renaming changes against those
that it does.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from probcrowd.data.rows import Rows
from probcrowd.data.table import vote_shares
from probcrowd.inference.posterior.label_switching import (
    alignment,
    invariants,
    realign,
    switching,
)
from probcrowd.models.catalogue import MODELS, Model

ROWS = Rows(
    np.array([0, 0, 0, 1, 3]),
    np.array([0, 1, 1, 0, 2]),
    np.array([2, 2, 0, 1, 0]),
    np.array([1.0, 2.0, 1.0, 0.5, 1.0]),
    np.full(4, -1),
    3,
    3,
)


def total(table: np.ndarray, permutation: tuple[int, ...]) -> float:
    return sum(table[permutation[label], label] for label in range(len(table)))


def some_samples(seed: int, num_classes: int, chains: int = 2, draws: int = 3) -> dict[str, np.ndarray]:
    """One site for every kind of axes that the models have."""
    generator = np.random.default_rng(seed)
    flat = np.ones(num_classes)
    return {
        "class_prior": generator.dirichlet(flat, (chains, draws)),
        "confusion": generator.dirichlet(flat, (chains, draws, 4, num_classes)),  # (j, k, l)
        "annotator_offset": generator.normal(
            size=(chains, draws, 4, num_classes, num_classes)
        ),  # (j, k, logit)
        "mean": generator.normal(size=(chains, draws, num_classes, num_classes)),  # (k, logit)
        "item_offset": generator.normal(size=(chains, draws, 5, num_classes)),  # no axis of classes
        "spam": generator.dirichlet(flat, (chains, draws, 4)),  # (j, l): labels stay
    }


DIMS = MODELS["logistic_random_effects"].dims | {"spam": MODELS["mace"].dims["spam"]}


def test_vote_shares_are_weighted_and_zero_without_rows() -> None:
    expected = [[1 / 4, 0, 3 / 4], [0, 1, 0], [0, 0, 0], [1, 0, 0]]
    np.testing.assert_allclose(vote_shares(ROWS.vote_totals), expected, rtol=0, atol=1e-15)
    unlabelled = replace(
        ROWS, **{name: getattr(ROWS, name)[:0] for name in ("item", "annotator", "label", "weight")}
    )
    assert (
        vote_shares(unlabelled.vote_totals).shape == (4, 3) and not vote_shares(unlabelled.vote_totals).any()
    )


@pytest.mark.parametrize("num_classes", [2, 3, 4, 5])
def test_alignment_has_the_maximum_agreement_of_all_permutations(num_classes: int) -> None:
    agreement = np.random.default_rng(num_classes).random((3, 40, num_classes, num_classes))
    agreement[1] += 0.6 * np.eye(num_classes)  # many of these need no solver
    aligned = alignment(agreement)
    assert (
        0.2 < (aligned[1] == np.arange(num_classes)).all(1).mean()
        and (aligned[0] != np.arange(num_classes)).any(1).mean() > 0.3
    )
    for draw in np.ndindex(3, 40):
        best = max(
            itertools.permutations(range(num_classes)),
            key=lambda permutation: total(agreement[draw], permutation),
        )
        assert tuple(aligned[draw]) == best


def test_alignment_recovers_the_renaming() -> None:
    generator = np.random.default_rng(0)
    shares = generator.dirichlet(np.full(4, 0.3), 60)  # (i, label)
    order = np.array([2, 0, 3, 1])  # class k of the draw is label order[k]
    agreement = (shares[:, order].T @ shares)[None, None]
    aligned = alignment(agreement)[0, 0]
    np.testing.assert_array_equal(order[aligned], np.arange(4))  # x[permutation] is in the labels' order
    np.testing.assert_allclose(agreement[0, 0][aligned], shares.T @ shares, rtol=0, atol=1e-12)
    assert not np.array_equal(aligned, order)  # the order is not its own inverse: the convention is tested


def test_alignment_keeps_the_identity_in_a_tie_and_only_then() -> None:
    turned = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 2.0], [2.0, 0.0, 1.0]])  # 3 as it stands, 6 once turned
    level = turned + np.diag([1.0, 1.0, 1.0])  # 6 either way, and rows have two maxima
    constant = np.full((3, 3), 0.1)
    # Neither rows nor columns have their maximum on the diagonal, so the solver decides, and 0.1 + 0.2 > 0.3
    # by rounding
    rounded = np.array([[0.0, 0.1, 0.0], [0.2, 0.3, 0.0], [0.0, 0.0, 0.0]])
    aligned = alignment(np.stack([turned, level, constant, rounded])[None])[0]
    assert tuple(aligned[0]) != (0, 1, 2) and total(turned, tuple(aligned[0])) == 6
    np.testing.assert_array_equal(aligned[1:], np.tile(np.arange(3), (3, 1)))


@pytest.mark.parametrize("num_classes", [2, 3])
def test_realign_moves_true_classes_and_nothing_else(num_classes: int) -> None:
    samples = some_samples(0, num_classes)
    before = {site: values.copy() for site, values in samples.items()}
    generator = np.random.default_rng(1)
    permutation = np.stack([generator.permutation(num_classes) for _ in range(6)]).reshape(2, 3, num_classes)
    permutation[0, 0] = np.arange(num_classes)[::-1]
    moved = realign(samples, permutation, DIMS)
    assert list(moved) == list(samples)
    for site, values in samples.items():
        np.testing.assert_array_equal(values, before[site])  # the argument is as it was
        for chain, draw in np.ndindex(2, 3):
            expected = before[site][chain, draw]
            if site in ("class_prior", "mean"):
                expected = np.stack([expected[k] for k in permutation[chain, draw]])
            elif site in ("confusion", "annotator_offset"):
                expected = np.stack([expected[:, k] for k in permutation[chain, draw]], 1)
            np.testing.assert_array_equal(moved[site][chain, draw], expected)


def test_realigned_draws_agree_without_another_renaming() -> None:
    generator = np.random.default_rng(2)
    agreement = generator.random((2, 30, 4, 4))
    permutation = alignment(agreement)
    renamed = realign({"agreement": agreement}, permutation, {"agreement": ("true_class", "given_label")})[
        "agreement"
    ]
    assert switching(permutation).share > 0.5 and switching(alignment(renamed)).share == 0


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_realign_permutes_the_true_classes_of_every_model(model: Model) -> None:
    sizes = {"true_class": 3, "given_label": 3, "logit": 2, "annotator": 4, "item": 5, "dimension": 2}
    samples = {
        site: np.random.default_rng(3).random((1, 2, *(sizes.get(axis, 2) for axis in axes)))
        for site, axes in model.dims.items()
    }
    turned = realign(samples, np.tile([1, 2, 0], (1, 2, 1)), model.dims)
    back = realign(turned, np.tile([2, 0, 1], (1, 2, 1)), model.dims)
    for site, axes in model.dims.items():
        assert np.array_equal(turned[site], samples[site]) == ("true_class" not in axes)
        np.testing.assert_array_equal(back[site], samples[site])


def test_switching_counts_by_hand() -> None:
    plain, swapped, turned = [0, 1, 2], [1, 0, 2], [1, 2, 0]
    result = switching(np.array([[plain, plain, swapped, plain], [turned, turned, turned, turned]]))
    assert result.share == 5 / 8
    np.testing.assert_array_equal(result.share_by_chain, [1 / 4, 1])
    np.testing.assert_array_equal(result.changes, [2, 0])
    np.testing.assert_array_equal(result.within_chains, [True, False])
    np.testing.assert_array_equal(result.commonest, [plain, turned])
    assert result.between_chains
    assert list(result.counts.items()) == [((1, 2, 0), 4), ((0, 1, 2), 3), ((1, 0, 2), 1)]
    words = str(result)
    for part in (
        "In 62.5% of the draws",
        "25.0%, 100.0%",
        "different permutations",
        "1 of 2 switch",
        "2 changes",
        "3 permutations occur",
        "classes 1, 2, 0",
        "4 draws",
    ):
        assert part in words, words


def test_no_switching_is_reported() -> None:
    result = switching(np.tile([0, 1], (3, 5, 1)))
    assert (
        result.share == 0
        and not result.between_chains
        and not result.within_chains.any()
        and result.counts == {(0, 1): 15}
    )
    assert "all draws" in str(result)
    together = switching(np.tile([1, 0], (3, 5, 1)))  # all chains renamed alike: nothing differs between them
    assert together.share == 1 and not together.between_chains and "one permutation" in str(together)


@pytest.mark.parametrize("dropped", [(), ("class_prior",), ("confusion",)])
def test_invariants_stay_under_renaming_and_the_trace_does_not(dropped: tuple[str, ...]) -> None:
    samples = {site: values for site, values in some_samples(4, 3).items() if site not in dropped}
    log_likelihood = np.random.default_rng(5).normal(size=(2, 3))
    permutation = np.tile([1, 2, 0], (2, 3, 1))
    before, after = (
        invariants(samples, log_likelihood),
        invariants(realign(samples, permutation, DIMS), log_likelihood),
    )
    expected = {"log_likelihood"}
    expected |= set() if "class_prior" in dropped else {"sorted_class_prior", "prior_concentration"}
    expected |= set() if "confusion" in dropped else {"information"}
    assert set(before) == set(after) == expected
    for name in before:
        np.testing.assert_allclose(before[name], after[name], rtol=0, atol=1e-12)
    if not dropped:
        turned = realign(samples, permutation, DIMS)
        traces = [np.trace(each["confusion"], axis1=-2, axis2=-1) for each in (samples, turned)]
        assert (
            np.abs(traces[0] - traces[1]).max() > 0.1
        )  # labels keep their names, so the diagonal is not the same cells
        assert np.abs(samples["class_prior"] - turned["class_prior"]).max() > 0.1


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("uniform", [False, True])
def test_information_is_that_between_truth_and_label(shared: bool, uniform: bool) -> None:
    samples = some_samples(6, 3)
    samples["confusion"][0, 0, 0] = np.eye(3)  # zeros are no trouble
    if shared:
        samples["confusion"] = samples["confusion"][:, :, 0]
    prior = np.full((2, 3, 3), 1 / 3) if uniform else samples["class_prior"]
    if uniform:
        del samples["class_prior"]
    result = invariants(samples, np.zeros((2, 3)))
    assert result["information"].shape == ((2, 3) if shared else (2, 3, 4))
    for index in np.ndindex(result["information"].shape):
        joint = prior[index[:2]][:, None] * samples["confusion"][index]
        expected = sum(
            joint[k, label] * np.log(joint[k, label] / (joint[k].sum() * joint[:, label].sum()))
            for k, label in np.ndindex(3, 3)
            if joint[k, label] > 0
        )
        assert result["information"][index] == pytest.approx(expected, abs=1e-12)
    if not uniform:
        np.testing.assert_array_equal(
            result["sorted_class_prior"][1, 2], sorted(samples["class_prior"][1, 2])
        )
        assert result["prior_concentration"][1, 2] == pytest.approx(
            sum(p * p for p in samples["class_prior"][1, 2]), abs=1e-15
        )
