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
    labels = rng.integers(L, size=(items, annotators))
    keep = rng.random(labels.shape) < share
    keep[np.arange(items), rng.integers(annotators, size=items)] = True
    return np.where(keep, labels, -1)


def channel(
    labels: np.ndarray,
    how: SoftLabelOptions,
    weights: np.ndarray | None = None,
    seed: int = 1,
    **options: Any,
) -> SoftLabels:
    item, annotator = np.nonzero(labels >= 0)
    rows = Rows(
        item,
        annotator,
        labels[item, annotator],
        np.ones(len(item)),
        np.full(len(labels), -1),
        labels.shape[1],
        L,
    )
    logits = torch.randn(*labels.shape, L, generator=torch.Generator().manual_seed(seed))
    model = SoftLabels(Table(logits), rows, AnnotationTensors.of(rows, dtype=torch.float64), how, **options)
    if weights is not None:
        model.weights.copy_(torch.from_numpy(weights))
    return model


def seen(items: int = I) -> NetworkOutput:
    return NetworkOutput(torch.zeros(items, 0), torch.arange(items, dtype=torch.float64)[:, None])


def loss(model: SoftLabels) -> Tensor:
    return model.loss(seen(len(model.training_labels.items)), model.training_labels)


def value(model: SoftLabels) -> float:
    return float(loss(model).detach())


def by_loops(labels: np.ndarray, p: np.ndarray, weights: np.ndarray, how: SoftLabelOptions) -> float:
    """Sum over labelled and missing pairs, divided by the number of labels."""
    labelled = missing = 0.0
    for i in range(len(labels)):
        for k in range(labels.shape[1]):
            if labels[i, k] >= 0:
                labelled -= math.log(p[i, k, labels[i, k]])
                continue
            peers = (
                range(labels.shape[1])
                if how.missing == "consensus"
                else [j for j in range(labels.shape[1]) if labels[i, j] >= 0]
            )
            w = [1.0 if how.missing == "consensus" else weights[k, j] for j in peers]
            if sum(w) == 0:
                continue
            soft = sum(weight * p[i, j] for weight, j in zip(w, peers, strict=True)) / sum(w)
            if how.divergence == "paper":
                missing += sum(p[i, k, l] * math.log(p[i, k, l] / soft[l]) for l in range(L))
            else:
                missing += sum(soft[l] * math.log(soft[l] / p[i, k, l]) for l in range(L)) / L
    return (labelled + how.kl_weight * missing) / (labels >= 0).sum()


def probabilities(model: SoftLabels) -> np.ndarray:
    assert isinstance(model.predictor, Table)
    return torch.softmax(model.predictor.logits, -1).detach().numpy()


@pytest.mark.parametrize("missing", ["similarity", "uniform", "consensus"])
@pytest.mark.parametrize("divergence", ["paper", "released"])
def test_the_loss_is_that_of_loops(missing: Any, divergence: Any) -> None:
    labels, how = crowd(), SoftLabelOptions(missing, divergence=divergence, kl_weight=0.7)
    weights = np.random.default_rng(5).random((J, J)) * UNIFORM
    weights[2] = [1, 0, 0, 0, 0]  # annotator 2 listens to 0 alone: many items give no term
    model = channel(labels, how, weights if missing == "similarity" else None)
    used = weights if missing == "similarity" else UNIFORM
    assert value(model) == pytest.approx(by_loops(labels, probabilities(model), used, how), abs=1e-12)


def test_batches_are_unbiased_parts_of_the_whole() -> None:
    model = channel(crowd(items=12), SoftLabelOptions())
    parts = list(model.training_labels.batches(3, torch.Generator().manual_seed(0)))
    losses = [
        model.loss(NetworkOutput(torch.zeros(len(part.items), 0), part.items.double()[:, None]), part)
        for part in parts
    ]
    assert (
        float(torch.stack(losses).mean().detach()) == pytest.approx(value(model), abs=1e-12)
        and len(parts) == 4
    )


def test_gradients_are_the_closed_forms_and_soft_labels_have_none() -> None:
    """Of D(p | soft): p (log(p / soft) - D); of D(soft | p): p - soft. Peers' come from labels alone."""
    labels = np.array([[0, 1, -1]])
    for divergence in ("paper", "released"):
        model = channel(labels, SoftLabelOptions("uniform", divergence=divergence, kl_weight=2.0))
        assert isinstance(model.predictor, Table)
        p = probabilities(model)[0]
        soft = p[:2].mean(0)
        loss(model).backward()
        grad = model.predictor.logits.grad
        assert grad is not None
        expected = (
            p[2] * (np.log(p[2] / soft) - (p[2] * np.log(p[2] / soft)).sum())
            if divergence == "paper"
            else (p[2] - soft) / L
        )
        np.testing.assert_allclose(grad[0, 2].numpy(), 2.0 * expected / 2, atol=1e-12)
        np.testing.assert_allclose(grad[0, :2].numpy(), (p[:2] - np.eye(L)[[0, 1]]) / 2, atol=1e-12)


def test_one_divergence_vanishes_at_certainty_and_the_other_does_not() -> None:
    labels = np.array([[0, 0, -1]])
    size = {}
    for divergence in ("paper", "released"):
        model = channel(labels, SoftLabelOptions("uniform", divergence=divergence))
        assert isinstance(model.predictor, Table)
        with torch.no_grad():
            model.predictor.logits[0] = torch.tensor(
                [[20.0, 0, 0], [20.0, 0, 0], [0, 20.0, 0]]
            )  # surely wrong
        loss(model).backward()
        assert model.predictor.logits.grad is not None
        size[divergence] = float(model.predictor.logits.grad[0, 2].abs().max())
    assert size["paper"] < 1e-6 and size["released"] > 0.1


def test_known_divergences_and_confidences() -> None:
    p, q = torch.tensor([[[0.7, 0.3]]]), torch.tensor([[[0.5, 0.5]]])
    for divergence, known, scale in (("paper", 0.08228, 1), ("released", 0.08718, 2)):
        model = channel(crowd(), SoftLabelOptions(divergence=divergence))
        assert float(model._divergence(p.log(), q)) * scale == pytest.approx(known, abs=1e-5)
        assert float(model._divergence(p.log(), p)) == pytest.approx(0.0, abs=1e-15)
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
    labels = crowd(0.5)
    model = channel(labels, SoftLabelOptions(), np.random.default_rng(0).random((J, J)) * UNIFORM)
    log_label = model.predictor(seen().require_features(), slice(None)).log_label
    has = torch.from_numpy(labels >= 0)
    soft, usable = model.soft(log_label, has, slice(None))
    assert usable.equal(~has) and not soft.requires_grad
    torch.testing.assert_close(soft[usable].sum(-1), torch.ones(int(usable.sum())))
    p = torch.where(has[..., None], log_label.exp(), torch.nan)
    low, high = p.nan_to_num(torch.inf).amin(1, keepdim=True), p.nan_to_num(-torch.inf).amax(1, keepdim=True)
    assert bool(((soft >= low - 1e-12) & (soft <= high + 1e-12))[usable].all())
    silent = log_label.detach().clone()
    silent[~has] = torch.log_softmax(
        torch.randn(int((~has).sum()), L), -1
    )  # what those say who did not label the item
    torch.testing.assert_close(model.soft(silent, has, slice(None))[0][usable], soft[usable])


def test_the_soft_label_is_that_of_a_twin_and_without_peers_there_is_none() -> None:
    labels = np.array([[0, 1, -1, -1], [-1, -1, -1, -1]])
    weights = np.array([[0, 0.0, 0, 1], [0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0]])
    model = channel(np.maximum(labels, [[-1] * 4, [0, -1, -1, -1]]), SoftLabelOptions(), weights)
    log_label = model.predictor(seen(2).require_features(), slice(None)).log_label
    soft, usable = model.soft(log_label, torch.from_numpy(labels >= 0), slice(None))
    torch.testing.assert_close(soft[0, 2], log_label[0, 0].exp().detach())  # 2 listens to 0 alone
    assert usable.tolist() == [
        [False, False, True, False],
        [False] * 4,
    ]  # 3 depends on 2, who gave no label; the second item has no labels


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
    labels = np.repeat(np.random.default_rng(0).integers(L, size=(30, 1)), 3, 1)  # three who always agree
    labels[np.arange(30), np.arange(30) % 3] = -1
    alike, uniform = (
        channel(labels, SoftLabelOptions(missing, shrink=False)) for missing in ("similarity", "uniform")
    )
    torch.testing.assert_close(alike.weights, uniform.weights)
    assert value(alike) == pytest.approx(value(uniform), abs=1e-14)


def test_the_similarity_is_that_of_the_labels_trained_on() -> None:
    labels = crowd(0.9, items=40)
    model = channel(labels, SoftLabelOptions(kind="krippendorff", shrink=False))
    item, annotator = np.nonzero(labels >= 0)
    expected = similarity(
        item,
        annotator,
        labels[item, annotator],
        num_annotators=J,
        num_labels=L,
        kind="krippendorff",
        shrink=False,
    )
    np.testing.assert_allclose(model.weights.numpy(), expected.weights())


def test_renaming_annotators_and_classes_changes_nothing() -> None:
    labels, who, name = (
        crowd(0.6, items=20),
        np.random.default_rng(0).permutation(J),
        np.random.default_rng(1).permutation(L),
    )
    model = channel(labels, SoftLabelOptions(threshold=0.1))
    assert isinstance(model.predictor, Table)
    other_labels = np.full_like(labels, -1)
    other_labels[:, who] = np.where(labels >= 0, name[labels], -1)
    other = channel(other_labels, SoftLabelOptions(threshold=0.1))
    assert isinstance(other.predictor, Table)
    with torch.no_grad():
        other.predictor.logits[:, torch.from_numpy(who)[:, None], torch.from_numpy(name)] = (
            model.predictor.logits
        )
    assert value(other) == pytest.approx(value(model), abs=1e-12)
    imputed, again = (one.impute(seen(20), 0.1) for one in (model, other))
    expected = sorted(
        zip(imputed.item.tolist(), who[imputed.annotator.numpy()], name[imputed.label.numpy()], strict=True)
    )
    assert (
        sorted(zip(again.item.tolist(), again.annotator.tolist(), again.label.tolist(), strict=True))
        == expected
    )


def test_imputed_labels_are_missing_confident_and_from_the_soft_label(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = crowd(0.5, items=20)
    model = channel(labels, SoftLabelOptions(threshold=0.2))
    soft, usable = model.soft(
        model.predictor(seen(20).require_features(), slice(None)).log_label,
        torch.from_numpy(labels >= 0),
        slice(None),
    )
    for at_once in (1, 3 * J * L**2, 2**22):
        monkeypatch.setattr(soft_labels, "CHUNK_NUMBERS", at_once)
        imputed = model.impute(seen(20), 0.2)
        pairs = set(zip(imputed.item.tolist(), imputed.annotator.tolist(), strict=True))
        assert (
            pairs
            == {
                (i, k)
                for i, k in zip(*np.nonzero(labels < 0), strict=True)
                if usable[i, k] and confidence(soft[i, k]) >= 0.2
            }
            and pairs
        )
        assert imputed.label.equal(soft[imputed.item, imputed.annotator].argmax(-1))
        torch.testing.assert_close(imputed.confidence, confidence(soft[imputed.item, imputed.annotator]))


def pass_through(model: SoftLabels, epoch: int, batch: int = 9) -> ImputedLabels:
    """An epoch without steps of the optimizer: what was imputed in it."""
    model.start_epoch(epoch, 9, lambda: seen(len(model.training_labels.items)))
    for part in model.training_labels.batches(batch, torch.Generator().manual_seed(epoch)):
        model.loss(NetworkOutput(torch.zeros(len(part.items), 0), part.items.double()[:, None]), part)
    model.end_epoch()
    return ImputedLabels.concatenate([*model.imputed, ImputedLabels.empty(torch.device("cpu"))])


def test_similarities_are_refreshed_by_what_is_imputed_now_and_nothing_else() -> None:
    labels = crowd(0.5, items=40)
    model = channel(labels, SoftLabelOptions(threshold=0.1, shrink=False))
    first = model.weights.clone()
    assert not len(pass_through(model, 0).item) and model.weights.equal(
        first
    )  # at first the network knows nothing
    for epoch in range(1, 4):  # forgotten, not added up
        expected = model.impute(seen(40), 0.1)
        imputed = pass_through(model, epoch)
        assert sorted(
            zip(imputed.item.tolist(), imputed.annotator.tolist(), imputed.label.tolist(), strict=True)
        ) == sorted(
            zip(expected.item.tolist(), expected.annotator.tolist(), expected.label.tolist(), strict=True)
        )
        filled = labels.copy()
        filled[imputed.item, imputed.annotator] = imputed.label
        item, annotator = np.nonzero(filled >= 0)
        weights = similarity(
            item, annotator, filled[item, annotator], num_annotators=J, num_labels=L, shrink=False
        ).weights()
        np.testing.assert_allclose(model.weights.numpy(), weights, atol=1e-12)
        assert model.metrics()["imputed"] == len(imputed.item) > 0
    assert (model.weights - first).abs().max() > 0.01


def test_warming_up_skips_missing_labels() -> None:
    model, skipped = (
        channel(crowd(), SoftLabelOptions(missing, warm_up=2)) for missing in ("uniform", "skip")
    )
    for epoch in (0, 1, 2):
        model.start_epoch(epoch, 9, lambda: seen())
        assert (value(model) == value(skipped)) == (epoch < 2)


def test_agreement_of_imputed_labels_stays_bounded_when_it_is_replaced() -> None:
    """Two groups without agreement: imputed labels lift it above 0, repeated imputation no further."""
    rng = np.random.default_rng(0)
    truth = rng.integers(L, size=(400, 2))
    labels = np.where(rng.random((400, 8)) < 0.9, truth[:, np.arange(8) // 4], rng.integers(L, size=(400, 8)))
    labels = np.where(rng.random(labels.shape) < 0.5, labels, -1)
    model = channel(labels, SoftLabelOptions("similarity", threshold=0.3, shrink=False))
    assert isinstance(model.predictor, Table)
    with torch.no_grad():  # predictors that know the labels they saw, and nothing of the others
        model.predictor.logits[:] = (
            4
            * torch.nn.functional.one_hot(torch.from_numpy(np.maximum(labels, 0)), L).double()
            * torch.from_numpy(labels >= 0)[..., None]
        )
    between = lambda similarity: float(similarity.matrix()[:4, 4:].mean())
    observed = between(model.similarity())
    drift = [between(model.similarity(pass_through(model, epoch))) for epoch in range(1, 4)]
    assert observed == pytest.approx(0, abs=0.1) and drift[0] > observed + 0.02
    assert max(drift) - min(drift) < 0.1


def test_withdrawn_pairs_are_never_imputed() -> None:
    labels = crowd(0.5, items=20)
    imputed = channel(labels, SoftLabelOptions(threshold=0.1)).impute(seen(20), 0.1)
    pairs = (imputed.item * J + imputed.annotator).numpy()
    left = channel(labels, SoftLabelOptions(threshold=0.1), withdrawn=pairs[::2]).impute(seen(20), 0.1)
    assert set((left.item * J + left.annotator).tolist()) == set(pairs[1::2].tolist())


@pytest.mark.parametrize("most", [256, 1])
def test_imputed_labels_replace_soft_ones_in_the_loss(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_labels, "MAX_EXTRA_ANNOTATORS", most)
    labels = crowd(0.5, items=20)
    how = SoftLabelOptions("uniform", threshold=0.1, imputed="loss", kl_weight=0.5)
    some = (
        channel(labels, how).impute(seen(20), 0.1).item * J
        + channel(labels, how).impute(seen(20), 0.1).annotator
    ).numpy()[::2]
    model, plain = channel(labels, how, withdrawn=some), channel(labels, replace(how, imputed="similarity"))
    log_label = model.predictor(seen(20).require_features(), slice(None)).log_label.detach()
    soft = model.soft(log_label, torch.from_numpy(labels >= 0), slice(None))[0]
    imputed, change = model.impute(seen(20), 0.1), 0.0
    for i, k, l in zip(
        imputed.item.tolist(), imputed.annotator.tolist(), imputed.label.tolist(), strict=True
    ):
        change += float(-log_label[i, k, l] - model._divergence(log_label, soft)[i, k])
    if most == 1:  # every annotator labelled something: all are drawn, each for itself alone
        assert set(np.nonzero(labels >= 0)[1]) == set(range(J))
    for one in (model, plain):
        one.start_epoch(1, 9, lambda: seen(20))
    assert value(model) == pytest.approx(
        value(plain) + 0.5 * change / (labels >= 0).sum(), abs=1e-12
    ) and len(imputed.item)
    assert pass_through(model, 1, 6).item.sort().values.equal(imputed.item)


def test_a_random_subset_represents_many_annotators(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = crowd(0.3, items=6, annotators=12)
    labels[:, 6:] = -1  # six have labelled nothing of the batch
    model = channel(labels, SoftLabelOptions("uniform"))
    expected = value(model)
    monkeypatch.setattr(soft_labels, "MAX_EXTRA_ANNOTATORS", 2)
    torch.manual_seed(0)
    drawn = [value(model) for _ in range(400)]
    assert np.std(drawn) > 0
    assert np.mean(drawn) == pytest.approx(expected, abs=4 * np.std(drawn) / 20)
    skipped = channel(labels, SoftLabelOptions("skip"))
    few = value(skipped)
    monkeypatch.setattr(soft_labels, "MAX_EXTRA_ANNOTATORS", 256)
    assert few == pytest.approx(value(skipped), abs=1e-14)


def test_chunk_sizes_do_not_change_results(monkeypatch: pytest.MonkeyPatch) -> None:
    model = channel(crowd(0.5, items=20), SoftLabelOptions())
    labels = model.training_labels
    whole = (
        model.log_label(seen(20), labels),
        model.log_truth(seen(20)),
        model.annotator_features(seen(20)),
        model.item_log_likelihood(seen(20), labels),
    )
    assert bool((whole[3] < 0).all()) and whole[3].shape == (20,)
    monkeypatch.setattr(soft_labels, "CHUNK_NUMBERS", 3 * J * L**2)
    for one, other in zip(
        whole,
        (
            model.log_label(seen(20), labels),
            model.log_truth(seen(20)),
            model.annotator_features(seen(20)),
            model.item_log_likelihood(seen(20), labels),
        ),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(
        whole[1], torch.from_numpy(probabilities(model)).mean(1).log()
    )  # what they have in common: the mean
    p = torch.from_numpy(probabilities(model)).log()
    torch.testing.assert_close(whole[0], p[labels.item, labels.annotator])


def test_nothing_imputed_is_a_table_without_rows() -> None:
    none = ImputedLabels.empty(torch.device("cpu"))
    assert len(none.item) == 0 and len(none.select(torch.zeros(0, dtype=torch.bool)).label) == 0
