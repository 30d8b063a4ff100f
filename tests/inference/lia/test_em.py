"""Fits of LIA: monotone EM, the paper's M step in closed form, resuming bit for bit, batches, recovery."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logsumexp
from threadpoolctl import threadpool_info

from probcrowd import DawidSkene
from probcrowd.data.annotations import Annotations
from probcrowd.data.rows import Rows
from probcrowd.inference.lia import em
from probcrowd.inference.lia.em import Fitted, Schedule, State, fit_lia
from probcrowd.inference.lia.objectives import (
    OBJECTIVES,
    ObjectiveName,
    e_step,
    initial_responsibilities,
    last_objective,
    log_prior,
    m_step_objective,
)
from probcrowd.models.lia.lia import LIABatch, Parameters, log_truth
from probcrowd.models.lia.prior import Inputs, LIAPrior, sites

BIRDS = pytest.mark.skipif(
    not os.environ.get("PROBCROWD_DATA"), reason="PROBCROWD_DATA is not set: no labels of birds"
)
SHORT = Schedule(rounds=3, steps=4, last_steps=12)
BATCHES = Schedule(rounds=3, steps=4, last_steps=6, batch=20, learning_rate=0.01)


def simulated(
    seed: int,
    items: int,
    annotators: int,
    accuracy: tuple[float, float],
    *,
    classes: int = 3,
    labels: int = 3,
    width: int = 3,
) -> tuple[Rows, np.ndarray, np.ndarray]:
    """A table by annotators of different skill; features that decide the truth up to chance; the truth."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(items, width))
    truth = (features @ (8 * rng.normal(size=(width, classes))) + rng.gumbel(size=(items, classes))).argmax(1)
    skill = np.linspace(*accuracy, annotators)
    annotator = np.concatenate([rng.choice(annotators, labels, replace=False) for _ in range(items)])
    item = np.repeat(np.arange(items), labels)
    wrong = (truth[item] + rng.integers(1, classes, len(item))) % classes
    label = np.where(rng.random(len(item)) < skill[annotator], truth[item], wrong)
    return (
        Rows(item, annotator, label, np.ones(len(item)), np.full(items, -1), annotators, classes),
        features,
        truth,
    )


def small(seed: int = 0) -> tuple[Rows, Inputs]:
    """Weighted rows of 12 items, of which two have none; gold for some."""
    rng = np.random.default_rng(seed)
    item = np.sort(rng.choice([0, 1, 2, 3, 5, 6, 7, 8, 9, 10], 40))
    gold = np.where(np.arange(12) % 5 == 1, np.arange(12) % 3, -1)
    rows = Rows(item, rng.integers(0, 4, 40), rng.integers(0, 3, 40), rng.uniform(0.5, 2, 40), gold, 4, 3)
    return rows, Inputs(rng.normal(size=(12, 2)))


def right(posterior: np.ndarray, truth: np.ndarray) -> float:
    return float((posterior.argmax(1) == truth).mean())


@pytest.mark.parametrize("latent", [1, 2])
@pytest.mark.parametrize("hidden", [(), (4,)])
def test_the_log_posterior_never_falls(hidden: tuple[int, ...], latent: int) -> None:
    rows, features, _ = simulated(0, 40, 5, (0.4, 0.9))
    prior, schedule = (
        LIAPrior(hidden=hidden, latent=latent),
        Schedule(rounds=6, steps=5, last_steps=120, tolerance=0.0),
    )
    fitted = fit_lia(rows, Inputs(features), prior, OBJECTIVES["joint"], schedule)
    assert len(fitted.values) > 7 and np.diff(fitted.values).min() >= -1e-7
    assert fitted.values[0] < fitted.values[5] - 1 < fitted.values[-1] - 1


def test_a_converged_fit_is_at_a_mode_and_reports_it() -> None:
    rows, inputs = small()
    prior = LIAPrior()
    fitted = fit_lia(rows, inputs, prior, OBJECTIVES["joint"], Schedule(last_steps=2000, tolerance=1e-9))
    batch, declared = LIABatch.of(rows, inputs, torch.float64), sites(rows, inputs, prior)
    leaves = {name: value.clone().requires_grad_() for name, value in fitted.parameters.items()}
    value = last_objective(leaves, batch, OBJECTIVES["joint"]) + log_prior(leaves, declared)
    slopes = torch.autograd.grad(value, list(leaves.values()))
    assert fitted.converged
    assert (
        max(
            float(slope.abs().max()) * declared[name].scale
            for name, slope in zip(leaves, slopes, strict=True)
        )
        < 1e-3
    )
    assert fitted.values[-1] == pytest.approx(float(value.detach()), abs=1e-9)
    np.testing.assert_allclose(
        fitted.posterior, e_step(fitted.parameters, batch, OBJECTIVES["joint"])[0], rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(fitted.truth, log_truth(fitted.parameters, batch).exp(), rtol=0, atol=1e-12)
    known = rows.gold >= 0
    np.testing.assert_array_equal(fitted.posterior[known], np.eye(3)[rows.gold[known]])
    assert not fit_lia(
        rows, inputs, prior, OBJECTIVES["joint"], Schedule(last_steps=10, tolerance=0.0)
    ).converged
    soon = fit_lia(rows, inputs, prior, OBJECTIVES["joint"], Schedule(rounds=2, tolerance=math.inf))
    assert soon.converged and len(soon.values) == 3


@pytest.mark.parametrize("name", ["composite", "as_written", "as_coded"])
def test_other_objectives_take_all_steps_and_return_soft_posteriors(
    name: ObjectiveName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(em, "LBFGS_CHUNK", 5)
    rows, inputs = small()
    schedule = Schedule(rounds=2, steps=3, last_steps=12, tolerance=math.inf)
    fitted = fit_lia(rows, inputs, LIAPrior(), OBJECTIVES[name], schedule)
    assert len(fitted.values) == schedule.units == 2 + 3 and not fitted.converged
    batch = LIABatch.of(rows, inputs, torch.float64)
    q, value = e_step(fitted.parameters, batch, replace(OBJECTIVES[name], hard=False))
    np.testing.assert_allclose(fitted.posterior, q, rtol=0, atol=1e-12)
    assert ((fitted.posterior > 0) & (fitted.posterior < 1)).any()
    extra = (
        float(log_prior(fitted.parameters, sites(rows, inputs, LIAPrior()))) if name == "composite" else 0.0
    )
    assert fitted.values[-1] == pytest.approx(float(value) + extra, abs=1e-9)


def two_classes(seed: int, items: int, annotators: int) -> tuple[Rows, np.ndarray]:
    """A complete table of two classes; each annotator errs in their own way. The truth."""
    rng = np.random.default_rng(seed)
    truth = (rng.random(items) < 0.4).astype(int)
    accuracy = rng.uniform(0.55, 0.9, (annotators, 2))
    item, annotator = np.repeat(np.arange(items), annotators), np.tile(np.arange(annotators), items)
    label = np.where(rng.random(len(item)) < accuracy[annotator, truth[item]], truth[item], 1 - truth[item])
    return Rows(item, annotator, label, np.ones(len(item)), np.full(items, -1), annotators, 2), truth


def equation_7(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best column-normalised P and Q for counts (k, l) of an annotator: two classes, R = 1, no features.

    P = Q / its column sums has rows that some c >= 0 turns into rows with sum 1, so P[0,0] >= 1/2 >= P[0,1]
    or the reverse: shares, truncated at 1/2.
    """
    share = counts[0] / np.maximum(counts.sum(0), 1e-300)
    choices = [share]
    if (share[0] - 0.5) * (share[1] - 0.5) > 0:
        choices = [np.array([share[0], 0.5]), np.array([0.5, share[1]])]
    tables = [np.stack([choice, 1 - choice]) for choice in choices]
    table = max(tables, key=lambda each: objective_7(counts, each))
    column = np.abs(1 - 2 * table[0, ::-1])
    column = 2 * column / column.sum() if column.sum() > 0 else np.ones(2)
    return table, table * column


def objective_7(counts: np.ndarray, table: np.ndarray) -> float:
    return float((counts * np.log(np.maximum(table, 1e-300))).sum())


def exact_em(rows: Rows, rounds: int, *, written: bool) -> tuple[np.ndarray, np.ndarray]:
    """Run EM with exact M steps from the vote shares; return q and the log marginal likelihoods."""

    def log_joint(share: np.ndarray, table: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            scores = np.tile(np.log(share), (rows.num_items, 1))
            np.add.at(scores, rows.item, np.log(table)[rows.annotator, :, rows.label])
        return scores

    q = np.zeros((rows.num_items, 2))
    np.add.at(q, (rows.item, rows.label), 1)
    q, values = q / q.sum(1, keepdims=True), []
    for _ in range(rounds):
        counts = np.zeros((rows.num_annotators, 2, 2))
        np.add.at(counts, (rows.annotator, slice(None), rows.label), q[rows.item])
        share, chance = q.mean(0), counts / counts.sum(2, keepdims=True).clip(1e-300)
        table = chance
        if written:
            table, chance = (
                np.stack(each) for each in zip(*(equation_7(each) for each in counts), strict=True)
            )
        values.append(logsumexp(log_joint(share, chance), axis=1).sum())
        scores = log_joint(share, np.maximum(table, 1e-300))
        q = np.exp(scores - logsumexp(scores, axis=1, keepdims=True))
    return q, np.array(values)


def test_equation_7_has_this_closed_form() -> None:
    rng = np.random.default_rng(0)
    for counts in ([[9.0, 2.0], [3.0, 6.0]], [[9.0, 5.0], [3.0, 4.0]], [[2.0, 3.0], [5.0, 30.0]]):
        table, chance = equation_7(np.array(counts))
        np.testing.assert_allclose(chance.sum(1), 1, atol=1e-12)
        np.testing.assert_allclose((table * chance.sum(0)), chance, atol=1e-12)
        rows = rng.beta(0.3, 0.3, (20_000, 2))
        others = np.stack([rows, 1 - rows], 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            best = np.nanmax((np.array(counts) * np.log(others / others.sum(1, keepdims=True))).sum((1, 2)))
        assert objective_7(np.array(counts), table) - 0.1 < best <= objective_7(np.array(counts), table)


def test_em_as_written_solved_exactly_collapses_and_loses_likelihood() -> None:
    rows, truth = two_classes(0, 60, 15)
    frame = pd.DataFrame({"item": rows.item, "annotator": rows.annotator, "label": rows.label})
    assert (DawidSkene(dependence="ignore").fit(frame).labels_.to_numpy() == truth).mean() > 0.9
    q, values = exact_em(rows, 60, written=True)
    assert q[:, 0].min() > 1 - 1e-6 and values[-1] == -np.inf and values[2] < values[1] - 10
    q, values = exact_em(rows, 60, written=False)
    assert right(q, truth) > 0.9 and np.diff(values).min() > -1e-9
    ours = {}
    for name in ("as_written", "joint"):
        schedule = Schedule(rounds=6, steps=30, last_steps=0)
        fitted = fit_lia(
            rows, Inputs(np.zeros((60, 1))), LIAPrior(), replace(OBJECTIVES[name], prior=False), schedule
        )
        expected = exact_em(rows, 2, written=name == "as_written")[1]
        np.testing.assert_allclose(fitted.values[:2], expected, rtol=0, atol=0.01)
        ours[name] = fitted
    assert np.diff(ours["as_written"].values).min() < -100 and ours["as_written"].posterior[:, 0].min() > 0.99
    assert np.diff(ours["joint"].values).min() >= -1e-7 and right(ours["joint"].posterior, truth) > 0.9


@BIRDS
def test_bluebirds_give_the_published_figures() -> None:
    folder = Path(os.environ["PROBCROWD_DATA"]) / "bluebirds"
    annotations = Annotations.from_frame(
        pd.read_parquet(folder / "annotations.parquet")[["task", "worker", "label"]], duplicates="first"
    )
    gold = pd.read_parquet(folder / "gold.parquet").set_index("task")["label"]
    truth = Rows.from_annotations(annotations, gold).gold
    rows = Rows.from_annotations(annotations)
    q, _ = exact_em(rows, 200, written=True)
    assert round(108 * right(q, truth)) == 60
    q, values = exact_em(rows, 200, written=False)
    assert round(108 * right(q, truth)) == 97 and abs(values[-1] - -1888.1) < 0.05
    fitted = DawidSkene(prior="flat", confidence="plug-in", dependence="ignore").fit(annotations)
    matrices = fitted.confusion_.to_numpy().reshape(-1, 2, 2).clip(1e-12)
    parameters, birds = blind(rows, fitted.class_prior_.to_numpy(), matrices)
    assert abs(float(last_objective(parameters, birds, OBJECTIVES["joint"])) - -1888.1) < 0.05
    assert abs(float(last_objective(parameters, birds, OBJECTIVES["composite"])) - -2340.66) < 0.005


def blind(rows: Rows, class_prior: np.ndarray, confusion: np.ndarray) -> tuple[Parameters, LIABatch]:
    """Parameters whose h and Q are these, for items of which nothing is known."""
    classes = rows.num_classes
    parameters = {
        "truth_weight": torch.zeros(1, classes, dtype=torch.float64),
        "difficulty_weight": torch.zeros(1, classes, classes, 1, dtype=torch.float64),
        "truth_bias": torch.tensor(class_prior).log(),
        "competence_mean": torch.zeros(classes, classes, 1, dtype=torch.float64),
        "competence_offset": torch.tensor(confusion).log()[..., None],
    }
    return parameters, LIABatch.of(rows, Inputs(np.zeros((rows.num_items, 1))), torch.float64)


def same(left: Fitted, right: Fitted) -> bool:
    tables = [torch.equal(left.parameters[name], right.parameters[name]) for name in left.parameters]
    arrays = [
        np.array_equal(getattr(left, name), getattr(right, name)) for name in ("posterior", "truth", "values")
    ]
    return all(tables) and all(arrays) and left.converged == right.converged


@pytest.mark.parametrize("schedule", [SHORT, BATCHES], ids=["all at once", "batches"])
@pytest.mark.parametrize("name", ["joint", "as_coded"])
def test_a_resumed_fit_has_the_bits_of_one_that_was_never_interrupted(
    name: ObjectiveName, schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(em, "LBFGS_CHUNK", 5)
    rows, inputs = small()
    prior, objective = LIAPrior(hidden=(3,), annotator_embedding=2), OBJECTIVES[name]
    states: list[State] = []
    whole = fit_lia(rows, inputs, prior, objective, schedule, seed=3, keep=states.append)
    assert [state.unit for state in states] == list(range(1, len(whole.values) + 1)) and len(states) >= 5
    assert all(state.values == whole.values[: state.unit].tolist() for state in states)
    assert [state.steps for state in states] == ([4, 8, 12, 16, 18] if schedule.batch else [0] * len(states))
    for state in states:
        later: list[State] = []
        assert same(
            fit_lia(rows, inputs, prior, objective, schedule, seed=3, state=state, keep=later.append), whole
        ), state.unit
        assert [each.unit for each in later] == [each.unit for each in states[state.unit :]]
    assert same(fit_lia(rows, inputs, prior, objective, schedule, seed=3), whole)
    assert not same(fit_lia(rows, inputs, prior, objective, schedule, seed=4), whole)


def test_only_batches_come_from_the_seed_and_the_unit() -> None:
    rows, inputs = small()
    states: list[State] = []
    fit_lia(rows, inputs, LIAPrior(), OBJECTIVES["joint"], BATCHES, seed=3, keep=states.append)
    ends = [
        fit_lia(rows, inputs, LIAPrior(), OBJECTIVES["joint"], BATCHES, seed=seed, state=states[0])
        for seed in (3, 4)
    ]
    assert not same(*ends)  # the same start, other batches
    whole: list[State] = []
    fit_lia(rows, inputs, LIAPrior(), OBJECTIVES["joint"], SHORT, seed=3, keep=whole.append)
    assert same(
        *(
            fit_lia(rows, inputs, LIAPrior(), OBJECTIVES["joint"], SHORT, seed=seed, state=whole[0])
            for seed in (3, 4)
        )
    )


def test_moments_carry_over_between_units() -> None:
    rows, inputs = small()
    fits = []
    for steps in (8, 4, 2):  # eight steps on the same objective and all the data, in one unit, two and four
        schedule = Schedule(rounds=0, steps=steps, last_steps=8, batch=1000, learning_rate=0.1)
        fits.append(fit_lia(rows, inputs, LIAPrior(), OBJECTIVES["joint"], schedule))
    assert [len(fit.values) for fit in fits] == [1, 2, 4]
    for fit in fits[1:]:
        assert all(torch.equal(value, fits[0].parameters[name]) for name, value in fit.parameters.items())


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The batches that fits from now on will draw."""
    seen: list[torch.Tensor] = []
    part = LIABatch.select
    monkeypatch.setattr(LIABatch, "select", lambda self, items: seen.append(items) or part(self, items))
    return seen


def test_batches_are_unbiased_estimates_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, inputs = small()
    prior, objective = LIAPrior(hidden=(3,)), OBJECTIVES["joint"]
    batches = drawn(monkeypatch)
    slow = Schedule(
        rounds=2, steps=4, last_steps=0, batch=10, learning_rate=1e-20
    )  # 40 labels of 12 items: 3 items at a time
    states: list[State] = []
    fit_lia(rows, inputs, prior, objective, slow, keep=states.append)
    assert [len(items) for items in batches] == [3] * 8
    for turn in (batches[:4], batches[4:]):
        assert sorted(torch.cat(turn).tolist()) == list(range(12))  # each item once
    assert torch.cat(batches[:4]).tolist() != torch.cat(batches[4:]).tolist()
    monkeypatch.undo()

    batch, declared = LIABatch.of(rows, inputs, torch.float64), sites(rows, inputs, prior)
    leaves = {name: value.double().requires_grad_() for name, value in states[0].parameters.items()}
    q = initial_responsibilities(batch)
    parts = [batch.select(items) for items in batches[:4]]
    counts = torch.bincount(batch.annotations.item, minlength=12)
    assert [len(part.annotations.item) for part in parts] == [
        int(counts[items].sum()) for items in batches[:4]
    ]  # all rows of an item
    scaled = [12 / 3 * m_step_objective(leaves, part, q[part.annotations.items], objective) for part in parts]
    torch.testing.assert_close(
        torch.stack(scaled).mean(), m_step_objective(leaves, batch, q, objective), rtol=0, atol=1e-10
    )
    lasts = [12 / 3 * last_objective(leaves, part, objective) for part in parts]
    torch.testing.assert_close(
        torch.stack(lasts).mean(), last_objective(leaves, batch, objective), rtol=0, atol=1e-10
    )
    # Adam's first moment after four steps is .1 (.9^3 g1 + .9^2 g2 + .9 g3 + g4).
    # Steps of 1e-20 move nothing.
    losses = [-(value + log_prior(leaves, declared)) / 40 for value in scaled]
    moment = torch.stack([0.1 * 0.9 ** (3 - step) * loss for step, loss in enumerate(losses)]).sum()
    for name, slope in zip(leaves, torch.autograd.grad(moment, list(leaves.values())), strict=True):
        torch.testing.assert_close(states[0].moments[f"{name}/exp_avg"].double(), slope, rtol=1e-4, atol=1e-7)


def test_an_incomplete_batch_is_left_for_the_next_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, inputs = small()
    batches = drawn(monkeypatch)
    schedule = Schedule(rounds=1, steps=6, last_steps=0, batch=17)  # 5 of 12 items
    fit_lia(rows, inputs, LIAPrior(), OBJECTIVES["joint"], schedule)
    turns = [batches[at : at + 2] for at in (0, 2, 4)]
    assert len(batches) == 6 and all(len(set(torch.cat(turn).tolist())) == 10 for turn in turns)
    assert len({tuple(torch.cat(turn).tolist()) for turn in turns}) == 3


def test_a_batch_larger_than_the_data_is_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, inputs = small()
    batches = drawn(monkeypatch)
    fits = [
        fit_lia(rows, inputs, LIAPrior(), OBJECTIVES["joint"], replace(BATCHES, batch=batch))
        for batch in (40, 41, 10**9)
    ]
    assert not batches and same(fits[0], fits[1]) and same(fits[0], fits[2])


@pytest.mark.parametrize("at_once", [1, 2, 7, 20, 1000])
def test_concatenated_parts_equal_the_whole(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, inputs = small()
    more = replace(
        rows, gold=np.concatenate([rows.gold, [-1, 2, -1]])
    )  # three more items without rows, at the end
    assert inputs.item_features is not None
    known = Inputs(np.concatenate([inputs.item_features, np.ones((3, 2))]))
    prior, batch = LIAPrior(hidden=(3,)), LIABatch.of(more, known, torch.float64)
    rng = np.random.default_rng(0)
    parameters = {
        name: torch.from_numpy(rng.normal(size=site.loc.shape))
        for name, site in sites(more, known, prior).items()
    }
    expected = [
        em.posteriors(parameters, batch, OBJECTIVES["joint"]),
        em.predict(parameters, batch, OBJECTIVES["as_coded"]),
    ]
    monkeypatch.setattr(em, "CHUNK_SIZE", at_once)
    split = list(em.chunks(batch))
    assert torch.equal(torch.cat([part.annotations.items for part in split]), torch.arange(15))
    assert (len(split) == 1) == (at_once == 1000) and all(len(part.annotations.items) for part in split)
    largest = int(torch.bincount(batch.annotations.item).max()) + 1
    assert all(
        len(part.annotations.item) + len(part.annotations.items) < at_once + 2 * largest for part in split
    )
    results = [
        em.posteriors(parameters, batch, OBJECTIVES["joint"]),
        em.predict(parameters, batch, OBJECTIVES["as_coded"]),
    ]
    for left, wanted in zip(results, expected, strict=True):
        for one, other in zip(left, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("schedule", [SHORT, BATCHES], ids=["all at once", "batches"])
@pytest.mark.parametrize("items", [0, 3])
def test_a_table_without_rows_leaves_the_prior(items: int, schedule: Schedule) -> None:
    none = np.zeros(0, np.int64)
    rows, inputs = Rows(none, none, none, np.zeros(0), np.full(items, -1), 2, 3), Inputs(np.ones((items, 2)))
    fitted = fit_lia(
        rows, inputs, LIAPrior(), OBJECTIVES["joint"], replace(schedule, steps=60, learning_rate=0.05)
    )
    assert fitted.posterior.shape == fitted.truth.shape == (items, 3)
    np.testing.assert_allclose(fitted.posterior, 1 / 3, atol=0.02)
    assert fitted.values[-1] == pytest.approx(0, abs=0.01)


def test_a_fit_without_rounds_of_em_is_a_climb_on_the_last_objective() -> None:
    rows, inputs = small()
    fitted = fit_lia(rows, inputs, LIAPrior(), OBJECTIVES["joint"], Schedule(rounds=0, last_steps=500))
    assert fitted.converged and len(fitted.values) < 10 and np.diff(fitted.values).min() >= -1e-7


def test_an_absurd_learning_rate_is_reported() -> None:
    rows, inputs = small()
    states: list[State] = []
    with pytest.raises(
        FloatingPointError, match=r"the objective is (nan|-?inf) after round 1: lower the learning rate"
    ):
        fit_lia(
            rows,
            inputs,
            LIAPrior(),
            OBJECTIVES["joint"],
            replace(BATCHES, learning_rate=1e30),
            keep=states.append,
        )
    assert not states


def test_small_fits_use_one_thread_and_restore_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, inputs = small()
    seen: list[tuple[int, int]] = []

    def look(state: State | None = None) -> None:
        blas = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
        seen.append((torch.get_num_threads(), max(blas, default=1)))

    torch.set_num_threads(2)
    look()
    fit_lia(rows, inputs, LIAPrior(), OBJECTIVES["joint"], Schedule(1, 1, 0), keep=look)
    look()
    with pytest.raises(FloatingPointError):
        fit_lia(rows, inputs, LIAPrior(), OBJECTIVES["joint"], replace(BATCHES, learning_rate=1e30))
    look()
    monkeypatch.setattr(em, "SMALL", 0)
    fit_lia(rows, inputs, LIAPrior(), OBJECTIVES["joint"], Schedule(1, 1, 0), keep=look)
    assert seen[1] == (1, 1) and seen[0] == seen[2] == seen[3] == seen[4]


@pytest.mark.parametrize(
    "schedule", [Schedule(1, 20, 0), Schedule(1, 80, 0, 1000, 0.03)], ids=["all at once", "batches"]
)
def test_initial_values_replace_the_vote_shares(schedule: Schedule) -> None:
    rows, features, truth = simulated(0, 60, 5, (0.6, 0.9))
    inputs, prior, objective = Inputs(features), LIAPrior(), OBJECTIVES["joint"]
    votes = initial_responsibilities(LIABatch.of(rows, inputs, torch.float64)).numpy()
    plain = fit_lia(rows, inputs, prior, objective, schedule)
    assert right(plain.truth, truth) > 0.7
    assert same(fit_lia(rows, inputs, prior, objective, schedule, start=votes), plain)
    other = np.eye(3)[(truth + 1) % 3]
    assert right(fit_lia(rows, inputs, prior, objective, schedule, start=other).truth, (truth + 1) % 3) > 0.7


def test_features_help_where_they_decide_and_shuffled_ones_do_not() -> None:
    every, features, truth = simulated(0, 600, 12, (0.35, 0.8), width=8)
    rows = Rows(
        *(array[:1200] for array in (every.item, every.annotator, every.label, every.weight)),
        every.gold[:400],
        12,
        3,
    )
    seen, none = features[:400], np.zeros(0, np.int64)
    new = LIABatch.of(
        Rows(none, none, none, np.zeros(0), every.gold[400:], 12, 3), Inputs(features[400:]), torch.float64
    )
    votes = initial_responsibilities(LIABatch.of(rows, Inputs(seen), torch.float64)).numpy()
    ties = votes >= votes.max(1, keepdims=True)
    majority = float((ties / ties.sum(1, keepdims=True))[np.arange(400), truth[:400]].mean())
    fitted, heard = {}, {}
    for kind, known in (("features", seen), ("shuffled", np.random.default_rng(0).permutation(seen))):
        fit = fit_lia(
            rows, Inputs(known), LIAPrior(), OBJECTIVES["joint"], Schedule(rounds=5, last_steps=100)
        )
        fitted[kind], heard[kind] = (
            right(fit.posterior, truth[:400]),
            right(log_truth(fit.parameters, new).exp().numpy(), truth[400:]),
        )
    assert fitted["features"] > majority + 0.1 and heard["features"] > 0.8
    chance = np.bincount(truth[400:]).max() / 200
    assert heard["shuffled"] < chance + 3 * math.sqrt(chance * (1 - chance) / 200)
    assert fitted["shuffled"] < fitted["features"] - 0.1
