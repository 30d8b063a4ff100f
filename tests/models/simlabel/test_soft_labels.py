"""Soft labels against loops over the paper's equations: gradients, limits, imputation, many annotators."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from probcrowd.data.rows import Rows
from probcrowd.data.tensors import AnnotationTensors
from probcrowd.models.crowd.base import NetworkOutput
from probcrowd.models.simlabel import soft_labels
from probcrowd.models.simlabel.base import AnnotatorSelection, Prediction, Predictor
from probcrowd.models.simlabel.imputed_labels import (
    ImputedLabels,
    SoftLabelOptions,
    confidence,
    min_probability,
)
from probcrowd.models.simlabel.similarity import similarity
from probcrowd.models.simlabel.soft_labels import SoftLabels

pytestmark = pytest.mark.usefixtures("double_precision")
I, J, L = 7, 5, 3
UNIFORM = 1 - np.eye(J)


class Table(Predictor):
    """A predictor whose logits are free: the embedding of an item is its number."""

    def __init__(self, logits: Float[Tensor, "i j l"]) -> None:
        super().__init__(logits.shape[1], logits.shape[2])
        self.logits = torch.nn.Parameter(logits)

    def forward(self, embedding: Float[Tensor, "b ..."], annotators: AnnotatorSelection) -> Prediction:
        return Prediction(torch.log_softmax(self.logits[embedding[:, 0].long()][:, annotators], -1))

    def annotator_features(
        self, embedding: Float[Tensor, "b ..."], annotators: AnnotatorSelection
    ) -> Float[Tensor, "b a d"]:
        return self(embedding, annotators).log_label


def crowd(share: float = 0.4, items: int = I, annotators: int = J, seed: int = 0) -> np.ndarray:
    """Labels, -1 where there is none; every item has one at least."""
    rng = np.random.default_rng(seed)
    said = rng.integers(L, size=(items, annotators))
    keep = rng.random(said.shape) < share
    keep[np.arange(items), rng.integers(annotators, size=items)] = True
    return np.where(keep, said, -1)


def channel(
    said: np.ndarray, how: SoftLabelOptions, weights: np.ndarray | None = None, seed: int = 1, **options: Any
) -> SoftLabels:
    item, annotator = np.nonzero(said >= 0)
    rows = Rows(
        item, annotator, said[item, annotator], np.ones(len(item)), np.full(len(said), -1), said.shape[1], L
    )
    logits = torch.randn(*said.shape, L, generator=torch.Generator().manual_seed(seed))
    made = SoftLabels(Table(logits), rows, AnnotationTensors.of(rows, dtype=torch.float64), how, **options)
    if weights is not None:
        made.weights.copy_(torch.from_numpy(weights))
    return made


def seen(items: int = I) -> NetworkOutput:
    return NetworkOutput(torch.zeros(items, 0), torch.arange(items, dtype=torch.float64)[:, None])


def loss(made: SoftLabels) -> Tensor:
    return made.loss(seen(len(made.training_labels.items)), made.training_labels)


def value(made: SoftLabels) -> float:
    return float(loss(made).detach())


def by_loops(said: np.ndarray, p: np.ndarray, weights: np.ndarray, how: SoftLabelOptions) -> float:
    """Sum over labelled and missing pairs, divided by the number of labels."""
    labelled = missing = 0.0
    for i in range(len(said)):
        for k in range(said.shape[1]):
            if said[i, k] >= 0:
                labelled -= math.log(p[i, k, said[i, k]])
                continue
            peers = (
                range(said.shape[1])
                if how.missing == "consensus"
                else [j for j in range(said.shape[1]) if said[i, j] >= 0]
            )
            w = [1.0 if how.missing == "consensus" else weights[k, j] for j in peers]
            if sum(w) == 0:
                continue
            soft = sum(weight * p[i, j] for weight, j in zip(w, peers, strict=True)) / sum(w)
            if how.divergence == "paper":
                missing += sum(p[i, k, l] * math.log(p[i, k, l] / soft[l]) for l in range(L))
            else:
                missing += sum(soft[l] * math.log(soft[l] / p[i, k, l]) for l in range(L)) / L
    return (labelled + how.kl_weight * missing) / (said >= 0).sum()


def probabilities(made: SoftLabels) -> np.ndarray:
    assert isinstance(made.predictor, Table)
    return torch.softmax(made.predictor.logits, -1).detach().numpy()


@pytest.mark.parametrize("missing", ["similarity", "uniform", "consensus"])
@pytest.mark.parametrize("divergence", ["paper", "released"])
def test_the_loss_is_that_of_loops(missing: Any, divergence: Any) -> None:
    said, how = crowd(), SoftLabelOptions(missing, divergence=divergence, kl_weight=0.7)
    weights = np.random.default_rng(5).random((J, J)) * UNIFORM
    weights[2] = [1, 0, 0, 0, 0]  # annotator 2 listens to 0 alone: many items give no term
    made = channel(said, how, weights if missing == "similarity" else None)
    used = weights if missing == "similarity" else UNIFORM
    assert value(made) == pytest.approx(by_loops(said, probabilities(made), used, how), abs=1e-12)


def test_batches_are_unbiased_parts_of_the_whole() -> None:
    made = channel(crowd(items=12), SoftLabelOptions())
    parts = list(made.training_labels.batches(3, torch.Generator().manual_seed(0)))
    losses = [
        made.loss(NetworkOutput(torch.zeros(len(part.items), 0), part.items.double()[:, None]), part)
        for part in parts
    ]
    assert (
        float(torch.stack(losses).mean().detach()) == pytest.approx(value(made), abs=1e-12)
        and len(parts) == 4
    )


def test_gradients_are_the_closed_forms_and_soft_labels_have_none() -> None:
    """Of D(p | soft): p (log(p / soft) - D); of D(soft | p): p - soft. Peers' come from labels alone."""
    said = np.array([[0, 1, -1]])
    for divergence in ("paper", "released"):
        made = channel(said, SoftLabelOptions("uniform", divergence=divergence, kl_weight=2.0))
        assert isinstance(made.predictor, Table)
        p = probabilities(made)[0]
        soft = p[:2].mean(0)
        loss(made).backward()
        grad = made.predictor.logits.grad
        assert grad is not None
        expected = (
            p[2] * (np.log(p[2] / soft) - (p[2] * np.log(p[2] / soft)).sum())
            if divergence == "paper"
            else (p[2] - soft) / L
        )
        np.testing.assert_allclose(grad[0, 2].numpy(), 2.0 * expected / 2, atol=1e-12)
        np.testing.assert_allclose(grad[0, :2].numpy(), (p[:2] - np.eye(L)[[0, 1]]) / 2, atol=1e-12)


def test_one_divergence_vanishes_at_certainty_and_the_other_does_not() -> None:
    said = np.array([[0, 0, -1]])
    size = {}
    for divergence in ("paper", "released"):
        made = channel(said, SoftLabelOptions("uniform", divergence=divergence))
        assert isinstance(made.predictor, Table)
        with torch.no_grad():
            made.predictor.logits[0] = torch.tensor(
                [[20.0, 0, 0], [20.0, 0, 0], [0, 20.0, 0]]
            )  # surely wrong
        loss(made).backward()
        assert made.predictor.logits.grad is not None
        size[divergence] = float(made.predictor.logits.grad[0, 2].abs().max())
    assert size["paper"] < 1e-6 and size["released"] > 0.1


def test_known_divergences_and_confidences() -> None:
    p, q = torch.tensor([[[0.7, 0.3]]]), torch.tensor([[[0.5, 0.5]]])
    for divergence, known, scale in (("paper", 0.08228, 1), ("released", 0.08718, 2)):
        made = channel(crowd(), SoftLabelOptions(divergence=divergence))
        assert float(made._divergence(p.log(), q)) * scale == pytest.approx(known, abs=1e-5)
        assert float(made._divergence(p.log(), p)) == pytest.approx(0.0, abs=1e-15)
    rest = [0.9, *[0.1 / 7] * 7]
    for soft, known in (
        ([0.9, 0.1], 0.4779),
        ([0.95, 0.05], 0.6779),
        ([0.8, 0.1, 0.1], 0.3347),
        (rest, 0.6751),
        ([1.0, 0], 1),
        ([0.25] * 4, 0),
    ):
        assert float(confidence(torch.tensor(soft))) == pytest.approx(known, abs=1e-4)


@pytest.mark.parametrize(
    ("labels", "even", "one"),
    [
        (2, 0.9325, 0.9325),
        (3, 0.9075, 0.8861),
        (5, 0.8846, 0.8333),
        (8, 0.8689, 0.7942),
        (10, 0.8628, 0.7787),
    ],
)
def test_what_passes_the_threshold_depends_on_the_number_of_labels(
    labels: int, even: float, one: float
) -> None:
    for top, rest in (
        (even, lambda p: [(1 - p) / (labels - 1)] * (labels - 1)),
        (one, lambda p: [1 - p] + [0.0] * (labels - 2)),
    ):
        below, above = (float(confidence(torch.tensor([p, *rest(p)]))) for p in (top - 1e-4, top + 1e-4))
        assert below < 0.6 < above
    assert min_probability(0.6, labels) == pytest.approx(one, abs=1e-4)


@pytest.mark.parametrize("labels", [2, 3, 8])
@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.6, 0.9, 1.0])
def test_no_soft_label_below_the_least_probability_reaches_the_threshold(
    labels: int, threshold: float
) -> None:
    soft = torch.distributions.Dirichlet(torch.full((labels,), 0.3)).sample((20_000,))
    least = min_probability(threshold, labels)
    assert not bool((confidence(soft)[soft.amax(-1) < least] >= threshold).any())
    if threshold == 0.6:
        assert 0 < int((confidence(soft) >= threshold).sum()) < int((soft.amax(-1) >= threshold).sum())


def test_soft_labels_are_mixtures_of_the_peers_who_labelled() -> None:
    said = crowd(0.5)
    made = channel(said, SoftLabelOptions(), np.random.default_rng(0).random((J, J)) * UNIFORM)
    log_label = made.predictor(seen().require_features(), slice(None)).log_label
    has = torch.from_numpy(said >= 0)
    soft, usable = made.soft(log_label, has, slice(None))
    assert usable.equal(~has) and not soft.requires_grad
    torch.testing.assert_close(soft[usable].sum(-1), torch.ones(int(usable.sum())))
    p = torch.where(has[..., None], log_label.exp(), torch.nan)
    low, high = p.nan_to_num(torch.inf).amin(1, keepdim=True), p.nan_to_num(-torch.inf).amax(1, keepdim=True)
    assert bool(((soft >= low - 1e-12) & (soft <= high + 1e-12))[usable].all())
    silent = log_label.detach().clone()
    silent[~has] = torch.log_softmax(
        torch.randn(int((~has).sum()), L), -1
    )  # what those say who did not label the item
    torch.testing.assert_close(made.soft(silent, has, slice(None))[0][usable], soft[usable])


def test_a_twin_is_the_soft_label_and_nobody_gives_none() -> None:
    said = np.array([[0, 1, -1, -1], [-1, -1, -1, -1]])
    weights = np.array([[0, 0.0, 0, 1], [0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0]])
    made = channel(np.maximum(said, [[-1] * 4, [0, -1, -1, -1]]), SoftLabelOptions(), weights)
    log_label = made.predictor(seen(2).require_features(), slice(None)).log_label
    soft, usable = made.soft(log_label, torch.from_numpy(said >= 0), slice(None))
    torch.testing.assert_close(soft[0, 2], log_label[0, 0].exp().detach())  # 2 listens to 0 alone
    assert usable.tolist() == [
        [False, False, True, False],
        [False] * 4,
    ]  # 3 listens to 2, who said nothing; nobody said anything of the second item


def test_without_missing_labels_or_weight_the_loss_is_that_of_skipping() -> None:
    whole, some = crowd(1.0), crowd()
    for missing in ("similarity", "uniform", "consensus"):
        assert value(channel(whole, SoftLabelOptions(missing))) == value(
            channel(whole, SoftLabelOptions("skip"))
        )
        assert value(channel(some, SoftLabelOptions(missing, kl_weight=0.0))) == value(
            channel(some, SoftLabelOptions("skip"))
        )
        assert (
            value(channel(some, SoftLabelOptions(missing)))
            > value(channel(some, SoftLabelOptions("skip"))) + 1e-3
        )


def test_equal_similarities_are_uniform_weights() -> None:
    said = np.repeat(np.random.default_rng(0).integers(L, size=(30, 1)), 3, 1)  # three who always agree
    said[np.arange(30), np.arange(30) % 3] = -1
    alike, uniform = (
        channel(said, SoftLabelOptions(missing, shrink=False)) for missing in ("similarity", "uniform")
    )
    torch.testing.assert_close(alike.weights, uniform.weights)
    assert value(alike) == pytest.approx(value(uniform), abs=1e-14)


def test_the_similarity_is_that_of_the_labels_trained_on() -> None:
    said = crowd(0.9, items=40)
    made = channel(said, SoftLabelOptions(kind="krippendorff", shrink=False))
    item, annotator = np.nonzero(said >= 0)
    expected = similarity(
        item,
        annotator,
        said[item, annotator],
        num_annotators=J,
        num_labels=L,
        kind="krippendorff",
        shrink=False,
    )
    np.testing.assert_allclose(made.weights.numpy(), expected.weights())


def test_renaming_annotators_and_classes_changes_nothing() -> None:
    said, who, name = (
        crowd(0.6, items=20),
        np.random.default_rng(0).permutation(J),
        np.random.default_rng(1).permutation(L),
    )
    made = channel(said, SoftLabelOptions(threshold=0.1))
    assert isinstance(made.predictor, Table)
    other_said = np.full_like(said, -1)
    other_said[:, who] = np.where(said >= 0, name[said], -1)
    other = channel(other_said, SoftLabelOptions(threshold=0.1))
    assert isinstance(other.predictor, Table)
    with torch.no_grad():
        other.predictor.logits[:, torch.from_numpy(who)[:, None], torch.from_numpy(name)] = (
            made.predictor.logits
        )
    assert value(other) == pytest.approx(value(made), abs=1e-12)
    found, again = (one.impute(seen(20), 0.1) for one in (made, other))
    expected = sorted(
        zip(found.item.tolist(), who[found.annotator.numpy()], name[found.label.numpy()], strict=True)
    )
    assert (
        sorted(zip(again.item.tolist(), again.annotator.tolist(), again.label.tolist(), strict=True))
        == expected
    )


def test_what_is_imputed_is_missing_sure_and_by_the_soft_label(monkeypatch: pytest.MonkeyPatch) -> None:
    said = crowd(0.5, items=20)
    made = channel(said, SoftLabelOptions(threshold=0.2))
    soft, usable = made.soft(
        made.predictor(seen(20).require_features(), slice(None)).log_label,
        torch.from_numpy(said >= 0),
        slice(None),
    )
    for at_once in (1, 3 * J * L**2, 2**22):
        monkeypatch.setattr(soft_labels, "CHUNK_NUMBERS", at_once)
        found = made.impute(seen(20), 0.2)
        pairs = set(zip(found.item.tolist(), found.annotator.tolist(), strict=True))
        assert (
            pairs
            == {
                (i, k)
                for i, k in zip(*np.nonzero(said < 0), strict=True)
                if usable[i, k] and confidence(soft[i, k]) >= 0.2
            }
            and pairs
        )
        assert found.label.equal(soft[found.item, found.annotator].argmax(-1))
        torch.testing.assert_close(found.confidence, confidence(soft[found.item, found.annotator]))


def pass_through(made: SoftLabels, epoch: int, batch: int = 9) -> ImputedLabels:
    """An epoch without steps of the optimizer: what was imputed in it."""
    made.start_epoch(epoch, 9, lambda: seen(len(made.training_labels.items)))
    for part in made.training_labels.batches(batch, torch.Generator().manual_seed(epoch)):
        made.loss(NetworkOutput(torch.zeros(len(part.items), 0), part.items.double()[:, None]), part)
    made.end_epoch()
    return ImputedLabels.concatenate([*made.imputed, ImputedLabels.empty(torch.device("cpu"))])


def test_similarities_are_refreshed_by_what_is_imputed_now_and_nothing_else() -> None:
    said = crowd(0.5, items=40)
    made = channel(said, SoftLabelOptions(threshold=0.1, shrink=False))
    first = made.weights.clone()
    assert not len(pass_through(made, 0).item) and made.weights.equal(
        first
    )  # at first the network knows nothing
    for epoch in range(1, 4):  # forgotten, not added up
        expected = made.impute(seen(40), 0.1)
        found = pass_through(made, epoch)
        assert sorted(
            zip(found.item.tolist(), found.annotator.tolist(), found.label.tolist(), strict=True)
        ) == sorted(
            zip(expected.item.tolist(), expected.annotator.tolist(), expected.label.tolist(), strict=True)
        )
        filled = said.copy()
        filled[found.item, found.annotator] = found.label
        item, annotator = np.nonzero(filled >= 0)
        weights = similarity(
            item, annotator, filled[item, annotator], num_annotators=J, num_labels=L, shrink=False
        ).weights()
        np.testing.assert_allclose(made.weights.numpy(), weights, atol=1e-12)
        assert made.metrics()["imputed"] == len(found.item) > 0
    assert (made.weights - first).abs().max() > 0.01


def test_warming_up_skips_missing_labels() -> None:
    made, skipped = (
        channel(crowd(), SoftLabelOptions(missing, warm_up=2)) for missing in ("uniform", "skip")
    )
    for epoch in (0, 1, 2):
        made.start_epoch(epoch, 9, lambda: seen())
        assert (value(made) == value(skipped)) == (epoch < 2)


def test_agreement_made_of_agreement_confirms_and_stays_bounded_when_it_is_replaced() -> None:
    """Two groups without agreement: imputed labels lift it above 0, repeated imputation no further."""
    rng = np.random.default_rng(0)
    truth = rng.integers(L, size=(400, 2))
    said = np.where(rng.random((400, 8)) < 0.9, truth[:, np.arange(8) // 4], rng.integers(L, size=(400, 8)))
    said = np.where(rng.random(said.shape) < 0.5, said, -1)
    made = channel(said, SoftLabelOptions("similarity", threshold=0.3, shrink=False))
    assert isinstance(made.predictor, Table)
    with torch.no_grad():  # predictors that know the labels they saw, and nothing of the others
        made.predictor.logits[:] = (
            4
            * torch.nn.functional.one_hot(torch.from_numpy(np.maximum(said, 0)), L).double()
            * torch.from_numpy(said >= 0)[..., None]
        )
    between = lambda found: float(found.matrix()[:4, 4:].mean())
    observed = between(made.similarity())
    drift = [between(made.similarity(pass_through(made, epoch))) for epoch in range(1, 4)]
    assert observed == pytest.approx(0, abs=0.1) and drift[0] > observed + 0.02
    assert max(drift) - min(drift) < 0.1


def test_withdrawn_pairs_are_never_imputed() -> None:
    said = crowd(0.5, items=20)
    found = channel(said, SoftLabelOptions(threshold=0.1)).impute(seen(20), 0.1)
    pairs = (found.item * J + found.annotator).numpy()
    left = channel(said, SoftLabelOptions(threshold=0.1), withdrawn=pairs[::2]).impute(seen(20), 0.1)
    assert set((left.item * J + left.annotator).tolist()) == set(pairs[1::2].tolist())


@pytest.mark.parametrize("most", [256, 1])
def test_imputed_labels_take_the_place_of_soft_ones_in_the_loss(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soft_labels, "MAX_EXTRA_ANNOTATORS", most)
    said = crowd(0.5, items=20)
    how = SoftLabelOptions("uniform", threshold=0.1, imputed="loss", kl_weight=0.5)
    some = (
        channel(said, how).impute(seen(20), 0.1).item * J + channel(said, how).impute(seen(20), 0.1).annotator
    ).numpy()[::2]
    made, plain = channel(said, how, withdrawn=some), channel(said, replace(how, imputed="similarity"))
    log_label = made.predictor(seen(20).require_features(), slice(None)).log_label.detach()
    soft = made.soft(log_label, torch.from_numpy(said >= 0), slice(None))[0]
    found, change = made.impute(seen(20), 0.1), 0.0
    for i, k, l in zip(found.item.tolist(), found.annotator.tolist(), found.label.tolist(), strict=True):
        change += float(-log_label[i, k, l] - made._divergence(log_label, soft)[i, k])
    if most == 1:  # every annotator labelled something: all are asked, and each stands for itself alone
        assert set(np.nonzero(said >= 0)[1]) == set(range(J))
    for one in (made, plain):
        one.start_epoch(1, 9, lambda: seen(20))
    assert value(made) == pytest.approx(value(plain) + 0.5 * change / (said >= 0).sum(), abs=1e-12) and len(
        found.item
    )
    assert pass_through(made, 1, 6).item.sort().values.equal(found.item)


def test_of_many_annotators_some_are_drawn_who_stand_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    said = crowd(0.3, items=6, annotators=12)
    said[:, 6:] = -1  # six have labelled nothing of the batch
    made = channel(said, SoftLabelOptions("uniform"))
    expected = value(made)
    monkeypatch.setattr(soft_labels, "MAX_EXTRA_ANNOTATORS", 2)
    torch.manual_seed(0)
    drawn = [value(made) for _ in range(400)]
    assert np.std(drawn) > 0
    assert np.mean(drawn) == pytest.approx(expected, abs=4 * np.std(drawn) / 20)
    skipped = channel(said, SoftLabelOptions("skip"))
    few = value(skipped)
    monkeypatch.setattr(soft_labels, "MAX_EXTRA_ANNOTATORS", 256)
    assert few == pytest.approx(value(skipped), abs=1e-14)


def test_answers_are_the_same_however_many_items_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = channel(crowd(0.5, items=20), SoftLabelOptions())
    labels = made.training_labels
    whole = (
        made.log_label(seen(20), labels),
        made.log_truth(seen(20)),
        made.annotator_features(seen(20)),
        made.item_log_likelihood(seen(20), labels),
    )
    assert bool((whole[3] < 0).all()) and whole[3].shape == (20,)
    monkeypatch.setattr(soft_labels, "CHUNK_NUMBERS", 3 * J * L**2)
    for one, other in zip(
        whole,
        (
            made.log_label(seen(20), labels),
            made.log_truth(seen(20)),
            made.annotator_features(seen(20)),
            made.item_log_likelihood(seen(20), labels),
        ),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(
        whole[1], torch.from_numpy(probabilities(made)).mean(1).log()
    )  # what they have in common: the mean
    p = torch.from_numpy(probabilities(made)).log()
    torch.testing.assert_close(whole[0], p[labels.item, labels.annotator])


def test_nothing_imputed_is_a_table_without_rows() -> None:
    none = ImputedLabels.empty(torch.device("cpu"))
    assert len(none.item) == 0 and len(none.select(torch.zeros(0, dtype=torch.bool)).label) == 0
