"""Objectives of LIA: the specification's worked example, loops over its equations, gradients and limits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from probcrowd.data.rows import Rows
from probcrowd.inference.lia import objectives as gem
from probcrowd.models.lia.lia import LIABatch, Parameters, label_log_likelihood, log_joint, log_truth
from probcrowd.models.lia.prior import Inputs, LIAPrior, sites

MATRICES = np.array([[[0.8, 0.2], [0.3, 0.7]], [[0.9, 0.1], [0.4, 0.6]], [[0.5, 0.5], [0.5, 0.5]]])
OBJECTIVES = gem.OBJECTIVES
Q = torch.tensor([[0.4, 0.6]], dtype=torch.float64)


def close(
    left: Tensor,
    right: Tensor | np.ndarray | list[list[float]] | list[float] | float,
    tolerance: float = 1e-10,
) -> None:
    torch.testing.assert_close(left, torch.as_tensor(right, dtype=torch.float64), rtol=0, atol=tolerance)


def table_of(
    item: list[int],
    annotator: list[int],
    label: list[int],
    gold: list[int],
    classes: int,
    weight: list[float] | None = None,
) -> Rows:
    counts = np.ones(len(item)) if weight is None else np.array(weight)
    codes = [np.array(each, dtype=np.int64) for each in (item, annotator, label, gold)]
    return Rows(*codes[:3], counts, codes[3], max(annotator, default=-1) + 1, classes)


def blind(rows: Rows, class_prior: np.ndarray, confusion: np.ndarray) -> tuple[Parameters, LIABatch]:
    """Parameters whose h and Q are these, for items of which nothing is known."""
    inputs, prior, classes = Inputs(np.zeros((rows.num_items, 1))), LIAPrior(), rows.num_classes
    mean = torch.from_numpy(sites(rows, inputs, prior)["competence_mean"].loc)
    parameters = {
        "truth_weight": torch.zeros(1, classes, dtype=torch.float64),
        "difficulty_weight": torch.zeros(1, classes, classes, 1, dtype=torch.float64),
        "truth_bias": torch.from_numpy(class_prior).log(),
        "competence_mean": mean,
        "competence_offset": torch.from_numpy(confusion).log()[..., None] - mean,
    }
    return parameters, LIABatch.of(rows, inputs, torch.float64)


def worked_example() -> tuple[Parameters, LIABatch]:
    """Specification, section 15: one item, labels 0, 1, 1."""
    return blind(table_of([0, 0, 0], [0, 1, 2], [0, 1, 1], [-1], 2), np.array([0.6, 0.4]), MATRICES)


def some_problem(
    seed: int = 0, *, gold: bool = True, weights: bool = True, classes: int = 3, latent: int = 2
) -> tuple[Parameters, LIABatch, Rows, Inputs, LIAPrior]:
    """Weighted rows of items with features, of which one has no rows; and a random point."""
    rng = np.random.default_rng(seed)
    item = np.sort(rng.choice([0, 1, 2, 4, 5], 16))
    weight = rng.uniform(0.5, 2, 16) if weights else np.ones(16)
    known = np.array([-1, 2, -1, 0, -1, 1]) if gold else np.full(6, -1)
    rows = Rows(
        item,
        rng.integers(0, 3, 16),
        rng.integers(0, classes, 16),
        weight,
        np.minimum(known, classes - 1),
        3,
        classes,
    )
    inputs, prior = Inputs(rng.normal(size=(6, 2))), LIAPrior(latent=latent, hidden=(3,))
    parameters = {
        name: torch.from_numpy(site.loc + site.scale * rng.normal(size=site.loc.shape))
        for name, site in sites(rows, inputs, prior).items()
    }
    return parameters, LIABatch.of(rows, inputs, torch.float64), rows, inputs, prior


def h_and_rows(parameters: Parameters, batch: LIABatch) -> tuple[np.ndarray, np.ndarray]:
    """h (i, k) and Q[i_n, j_n, k, l_n] (n, k)."""
    return log_truth(parameters, batch).exp().numpy(), label_log_likelihood(parameters, batch).exp().numpy()


def random_q(batch: LIABatch, seed: int = 0) -> Tensor:
    free = (
        torch.rand(batch.possible.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        * batch.possible
    )
    return free / free.sum(1, keepdim=True)


def test_the_worked_example_of_the_e_step() -> None:
    parameters, batch = worked_example()
    joint = log_joint(log_truth(parameters, batch), label_log_likelihood(parameters, batch), batch)
    close(joint.exp(), [[0.024, 0.036]], 1e-10)
    for name, objective in OBJECTIVES.items():
        q, value = gem.e_step(parameters, batch, replace(objective, hard=False))
        close(value, -2.813411, 1e-6)
        close(q, [[0.307692, 0.692308]] if name == "as_coded" else [[0.4, 0.6]], 1e-6)
    close(gem.e_step(parameters, batch, OBJECTIVES["as_coded"])[0], [[0.0, 1.0]], 0)


def test_the_worked_example_of_the_last_objective() -> None:
    parameters, batch = worked_example()
    expected = {"joint": -2.813411, "composite": -2.407946, "as_coded": -2.407946, "as_written": -2.146581}
    for name, objective in OBJECTIVES.items():
        close(gem.last_objective(parameters, batch, objective), expected[name], 1e-6)


def test_the_worked_example_of_the_m_step() -> None:
    parameters, batch = worked_example()
    more = 2 * (
        0.4 * math.log(0.6) + 0.6 * math.log(0.4)
    )  # log h twice more, for three labels instead of one item
    expected = {
        "joint": -3.486422,
        "composite": -3.486422,
        "as_written": -3.225058,
        "as_coded": -3.486422 + more,
    }
    for name, objective in OBJECTIVES.items():
        close(gem.m_step_objective(parameters, batch, Q, objective), expected[name], 1e-6)


def test_the_switches_are_those_of_the_table() -> None:
    table = {
        "joint": (True, False, False, False, "joint", True, "posterior"),
        "composite": (True, False, False, False, "composite", True, "posterior"),
        "as_written": (True, False, True, False, "composite", False, "posterior"),
        "as_coded": (False, True, False, True, "composite", False, "truth network"),
    }
    assert {name: tuple(vars(objective).values()) for name, objective in OBJECTIVES.items()} == table


def test_the_column_normaliser_cancels_in_the_e_step() -> None:
    parameters, batch, rows, _, _ = some_problem(gold=False, weights=False)
    h, chance = h_and_rows(parameters, batch)
    shares = np.zeros_like(h)
    for i in range(rows.num_items):  # equation 3, literally
        for k in range(rows.num_classes):
            shares[i, k] = h[i, k]
            for n in np.flatnonzero(rows.item == i):
                shares[i, k] *= chance[n, k] / sum(chance[n])
    shares /= shares.sum(1, keepdims=True)
    for name in ("joint", "as_written"):
        close(gem.e_step(parameters, batch, OBJECTIVES[name])[0], shares)


def test_q_with_weights_gold_and_without_h_is_a_loop() -> None:
    parameters, batch, rows, _, _ = some_problem()
    h, chance = h_and_rows(parameters, batch)
    for flat in (False, True):
        shares, value = np.zeros_like(h), 0.0
        for i in range(rows.num_items):
            weights = np.zeros(rows.num_classes)
            for k in range(rows.num_classes):
                if rows.gold[i] in (-1, k):
                    weights[k] = np.prod(
                        [chance[n, k] ** rows.weight[n] for n in np.flatnonzero(rows.item == i)]
                    )
            value += math.log(h[i] @ weights)
            shares[i] = weights if flat else weights * h[i]
            shares[i] /= shares[i].sum()
        q, likelihood = gem.e_step(parameters, batch, gem.Objective(truth_in_e_step=not flat))
        close(q, shares)
        close(likelihood, value)  # with h, whatever the E step does


def test_a_hard_posterior_has_two_classes_in_a_tie_and_perhaps_none_of_three() -> None:
    mirror = np.array([[[0.7, 0.3], [0.3, 0.7]]] * 2)
    rows = table_of([0, 0, 1, 1, 2, 2], [0, 1] * 3, [0, 1, 1, 1, 0, 1], [-1, -1, 1, -1], 2)
    q, _ = gem.e_step(*blind(rows, np.array([0.9, 0.1]), mirror), OBJECTIVES["as_coded"])
    close(
        q, [[1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [1.0, 1.0]], 0
    )  # a tie; agreement; gold in a tie; no labels at all
    matrix = np.full((3, 3, 3), 0.2) + 0.4 * np.eye(3)
    rows = table_of([0, 0, 0, 1], [0, 1, 2, 0], [0, 1, 2, 2], [-1, -1, 0, -1], 3)
    q, _ = gem.e_step(*blind(rows, np.full(3, 1 / 3), matrix), OBJECTIVES["as_coded"])
    close(q, [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], 0)


def test_the_start_is_the_share_of_votes() -> None:
    _, batch, rows, inputs, _ = some_problem()
    against = replace(rows, gold=np.where(np.arange(6) == 5, 0, rows.gold))  # item 5 has no label 0
    against = replace(against, label=np.where(rows.item == 5, 1, rows.label))
    for table, record in ((rows, batch), (against, LIABatch.of(against, inputs, torch.float64))):
        shares = np.zeros((6, 3))
        for i in range(6):
            for n in np.flatnonzero(table.item == i):
                shares[i, table.label[n]] += table.weight[n]
            if table.gold[i] >= 0:
                shares[i] = np.arange(3) == table.gold[i]
            elif not shares[i].any():
                shares[i] = 1
            shares[i] /= shares[i].sum()
        close(gem.initial_responsibilities(record), shares)
    none = table_of([], [], [], [-1, 1], 2)
    close(
        gem.initial_responsibilities(LIABatch.of(none, Inputs(np.zeros((2, 1))), torch.float64)),
        [[0.5, 0.5], [0.0, 1.0]],
        0,
    )


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=list(OBJECTIVES))
def test_gold_is_respected_by_every_objective(objective: gem.Objective) -> None:
    parameters, batch, rows, inputs, _ = some_problem()
    q, value = gem.e_step(parameters, batch, objective)
    start = gem.initial_responsibilities(batch)
    for i in np.flatnonzero(rows.gold >= 0):
        close(q[i], np.eye(3)[rows.gold[i]], 0)
        close(start[i], np.eye(3)[rows.gold[i]], 0)
    without_gold = LIABatch.of(replace(rows, gold=np.full(6, -1)), inputs, torch.float64)
    free, freely = gem.e_step(parameters, without_gold, objective)
    unknown = torch.from_numpy(rows.gold < 0)
    close(q[unknown], free[unknown], 0)
    assert float(value) < float(freely)
    h, chance = h_and_rows(parameters, batch)
    if objective.column_normaliser:
        chance = chance / chance.sum(1, keepdims=True)
    if objective.last == "joint":
        return close(gem.last_objective(parameters, batch, objective), value)
    total = 0.0
    for n, i in enumerate(rows.item):
        allowed = range(3) if rows.gold[i] < 0 else [rows.gold[i]]
        total += rows.weight[n] * math.log(sum(h[i, k] * chance[n, k] for k in allowed))
    close(gem.last_objective(parameters, batch, objective), total)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=list(OBJECTIVES))
def test_the_m_step_counts_log_h_once_per_item_or_once_per_label(objective: gem.Objective) -> None:
    parameters, batch, rows, _, _ = some_problem()
    q, (h, chance) = random_q(batch), h_and_rows(parameters, batch)
    if objective.column_normaliser:
        chance = chance / chance.sum(1, keepdims=True)
    total = gap = 0.0
    for i in range(rows.num_items):
        own = np.flatnonzero(rows.item == i)
        for k in range(rows.num_classes):
            times = sum(rows.weight[own]) if objective.truth_per_label else 1
            total += float(q[i, k]) * times * math.log(h[i, k])
            total += float(q[i, k]) * sum(rows.weight[n] * math.log(chance[n, k]) for n in own)
            gap += float(q[i, k]) * (sum(rows.weight[own]) - 1) * math.log(h[i, k])
    close(gem.m_step_objective(parameters, batch, q, objective), total)
    per_label, per_item = (
        gem.m_step_objective(parameters, batch, q, replace(objective, truth_per_label=each))
        for each in (True, False)
    )
    close(per_label - per_item, gap)
    assert abs(gap) > 1


def slopes(value: Tensor, leaves: Parameters) -> Tensor:
    return torch.cat([each.flatten() for each in torch.autograd.grad(value, list(leaves.values()))])


@pytest.mark.parametrize(
    ("name", "equal"), [("joint", True), ("composite", False), ("as_written", False), ("as_coded", False)]
)
def test_the_likelihoods_gradient_is_that_of_the_m_step_at_q(name: gem.ObjectiveName, equal: bool) -> None:
    parameters, batch, _, _, _ = some_problem()
    leaves = {key: value.clone().requires_grad_() for key, value in parameters.items()}
    q = gem.e_step(leaves, batch, OBJECTIVES[name])[0].detach()
    last = slopes(gem.last_objective(leaves, batch, OBJECTIVES[name]), leaves)
    held = slopes(gem.m_step_objective(leaves, batch, q, OBJECTIVES[name]), leaves)
    gap = float((last - held).abs().max())
    assert gap < 1e-10 if equal else gap > 0.1


def test_composite_is_flat_where_all_items_share_h() -> None:
    rng = np.random.default_rng(0)
    items, share_of_zeros = 30, 0.64  # how often each annotator says 0
    label = [int(value) for value in (rng.random(3 * items) > share_of_zeros)]
    rows = table_of([i for i in range(items) for _ in range(3)], [0, 1, 2] * items, label, [-1] * items, 2)
    composite, joint = [], []
    for share, first in [(0.5, 0.9), (0.7, 0.8), (0.2, 0.4), (0.6, 0.64)]:
        second = (share_of_zeros - share * first) / (1 - share)
        matrix = np.array([[first, 1 - first], [second, 1 - second]])
        np.testing.assert_allclose([share, 1 - share] @ matrix, [share_of_zeros, 1 - share_of_zeros])
        parameters, table = blind(rows, np.array([share, 1 - share]), np.repeat(matrix[None], 3, 0))
        composite.append(float(gem.last_objective(parameters, table, OBJECTIVES["composite"])))
        joint.append(float(gem.last_objective(parameters, table, OBJECTIVES["joint"])))
    expected = sum(math.log(share_of_zeros if each == 0 else 1 - share_of_zeros) for each in label)
    np.testing.assert_allclose(composite, expected, rtol=0, atol=1e-10)
    assert joint[3] == pytest.approx(expected)  # rows alike: labels of an item are independent
    assert min(abs(joint[a] - joint[b]) for a in range(4) for b in range(a)) > 0.1
    moved = blind(rows, np.array([0.5, 0.5]), np.repeat([[[0.9, 0.1], [0.5, 0.5]]], 3, 0))  # another marginal
    assert float(gem.last_objective(*moved, OBJECTIVES["composite"])) < expected - 0.1


def test_free_class_probabilities_lead_to_the_best_class_of_each_item() -> None:
    _, _, rows, _, _ = some_problem(gold=False)
    rng = np.random.default_rng(1)
    matrices, size = rng.dirichlet(np.ones(3), size=(3, 3)), 1e3
    inputs, prior = Inputs(), LIAPrior(item_embedding=3)
    parameters, _ = blind(rows, np.full(3, 1 / 3), matrices)
    parameters |= {
        "truth_weight": torch.eye(3, dtype=torch.float64),
        "difficulty_weight": torch.zeros(3, 3, 3, 1, dtype=torch.float64),
    }
    batch = LIABatch.of(rows, inputs, torch.float64)
    assert set(parameters) | {"item_embedding"} == set(sites(rows, inputs, prior))
    best, bound = [], 0.0
    for i in range(rows.num_items):
        own = np.flatnonzero(rows.item == i)
        log = [
            sum(rows.weight[n] * math.log(matrices[rows.annotator[n], k, rows.label[n]]) for n in own)
            for k in range(3)
        ]
        best.append(int(np.argmax(log)))
        bound += max(log)

    def likelihood(embedding: np.ndarray) -> float:
        return float(
            gem.last_objective(
                parameters | {"item_embedding": torch.from_numpy(embedding)}, batch, OBJECTIVES["joint"]
            )
        )

    assert likelihood(size * np.eye(3)[best]) == pytest.approx(bound, abs=1e-10)
    assert max(likelihood(3 * rng.normal(size=(rows.num_items, 3))) for _ in range(50)) < bound
    assert likelihood(size * np.eye(3)[[(k + 1) % 3 for k in best]]) < bound - 1


def test_the_prior_is_normal_less_its_value_at_the_centre() -> None:
    rows, inputs = some_problem()[2], Inputs(None, None, np.zeros(6, int), 2)
    prior = LIAPrior(
        truth=0.7,
        difficulty=0.3,
        competence=1.4,
        population=0.2,
        class_logit=2.0,
        hidden=(3,),
        annotator_embedding=2,
    )
    declared = sites(rows, inputs, prior)
    rng, total = np.random.default_rng(0), torch.zeros((), dtype=torch.float64)
    parameters = {
        name: torch.from_numpy(site.loc + rng.normal(size=site.loc.shape)) for name, site in declared.items()
    }
    for name, site in declared.items():
        centre = torch.from_numpy(site.loc)
        normal = torch.distributions.Normal(centre, site.scale)
        total = total + (normal.log_prob(parameters[name]) - normal.log_prob(centre)).sum()
    close(gem.log_prior(parameters, declared), total)
    centres = {name: torch.from_numpy(site.loc) for name, site in declared.items()}
    close(gem.log_prior(centres, declared), 0.0, 0)
