r"""SimLabel (Zhang et al. 2025, arXiv:2504.09525): soft labels for missing annotations from peers.

    p[i, k] = P(annotator k gives . | x_i) of a predictor                     has[i, k]: k labelled i

    labelled      - log p[i, k][label]                                                             equation 1
    missing       D( p[i, k] | soft[i, k] )                                                        equation 2
    soft[i, k]    sum_k' w[k, k'] has[i, k'] p[i, k'] / sum_k' w[k, k'] has[i, k']                 equation 3
    confidence    max(soft) (1 - entropy(soft) / log L)                                            equation 4

    loss          mean of the first over labels + kl_weight * sum of the second over missing pairs / labels

so a labelled and a missing pair count alike, and without missing pairs, or with kl_weight 0, the loss is that
of "skip". A pair has no term if no annotator who labelled the item has a weight for it. `soft` carries no
gradient; it comes from the same forward pass, with dropout on.

    missing       "skip"         no second term
                  "similarity"   w from the similarity of annotators (`probcrowd.models.simlabel.similarity`)
                  "uniform"      equal w: the control that shows what similarity adds
                  "consensus"    soft[i] = mean over annotators of p[i, k]: self-training
    divergence    "paper"        D(p | soft), as printed: no gradient where p is certain, right or wrong
                  "released"     D(soft | p) / L, as in the released code: the gradient of soft cross-entropy

Imputation, from the second epoch on: for missing pairs of a batch whose confidence reaches the threshold, the
most probable label of `soft` is imputed. At the end of the epoch the similarity is recomputed from all
observed labels and those imputed in this epoch; earlier ones are dropped. With imputed="loss" the imputed
label also replaces the soft label in the loss of the batch. Agreement with labels derived from agreement is
no evidence: it almost always raises the similarity of annotators, whether they are similar or not; `metrics`
shows by how much.

Memory of a step: a few times batch x annotators x L numbers. With more than `MAX_EXTRA_ANNOTATORS`
annotators, a step predicts those who labelled something in the batch and a random sample of that many others,
weighted to represent all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probcrowd.data.rows import Rows
from probcrowd.data.tensors import AnnotationTensors
from probcrowd.metrics.agreement import pair_shares
from probcrowd.models.crowd.base import Channel, NetworkOutput, safe_log
from probcrowd.models.simlabel.base import AnnotatorSelection, Prediction, Predictor
from probcrowd.models.simlabel.imputed_labels import (
    ImputedLabels,
    SoftLabelOptions,
    confidence,
    min_probability,
)
from probcrowd.models.simlabel.similarity import Similarity, similarity

MAX_EXTRA_ANNOTATORS = 256  # annotators predicted in a step besides those who labelled some of the batch
CHUNK_NUMBERS = 2**22  # numbers (items x annotators x labels^2) held at once without gradients


class SoftLabels(Channel):
    """A predictor trained with soft labels.

    rows: the training annotations. values: numeric values of the classes, for a correlation. withdrawn: pairs
    that are never imputed, as item * annotators + annotator.
    """

    needs_embedding = True
    weight_decay = True
    weights: Tensor

    def __init__(
        self,
        predictor: Predictor,
        rows: Rows,
        labels: AnnotationTensors,
        options: SoftLabelOptions,
        values: Float[np.ndarray, " l"] | None = None,
        withdrawn: Int[np.ndarray, " w"] | None = None,
    ) -> None:
        super().__init__()
        self.predictor, self.options, self.rows, self.values = predictor, options, rows, values
        self.training_labels = labels
        self.withdrawn = np.zeros(0, np.int64) if withdrawn is None else withdrawn
        self.total = float(rows.weight.sum())
        self.share = pair_shares(rows.item, rows.annotator, rows.weight, rows.num_annotators)
        self.imputed: list[ImputedLabels] = []  # by batch of the epoch
        self.active = options.missing != "skip" and options.kl_weight > 0
        self.imputes = False
        if options.missing == "similarity":
            weights = torch.from_numpy(self.similarity().weights()).to(labels.weight)
        elif options.missing == "uniform":
            weights = 1 - torch.eye(rows.num_annotators, device=labels.item.device)
        else:
            weights = torch.zeros(0)
        self.register_buffer("weights", weights)

    def similarity(self, imputed: ImputedLabels | None = None) -> Similarity:
        """The similarity of annotators, from the training labels and imputed ones."""
        rows, options = self.rows, self.options
        parts = [rows.item, rows.annotator, rows.label, self.share]
        if imputed is not None:
            more = [part.cpu().numpy() for part in (imputed.item, imputed.annotator, imputed.label)]
            parts = [np.concatenate(both) for both in zip(parts, [*more, np.ones(len(more[0]))], strict=True)]
        sizes = {"num_annotators": rows.num_annotators, "num_labels": rows.num_classes}
        return similarity(*parts, **sizes, kind=options.kind, shrink=options.shrink, values=self.values)

    def metrics(self) -> dict[str, float]:
        """With imputation: the number of labels imputed in the epoch, and the mean weight of a pair."""
        if self.options.threshold is None:
            return {}
        pairs = max(self.rows.num_annotators * (self.rows.num_annotators - 1), 1)
        return {
            "imputed": float(sum(len(part.item) for part in self.imputed)),
            "mean_weight": float(self.weights.sum()) / pairs,
        }

    def loss(self, output: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, ""]:
        """The loss of labelled pairs, plus that of missing pairs in epochs that use them."""
        annotators, column, represents = self._annotators(labels)
        prediction = self.predictor(output.require_features(), annotators)
        loss = self._labelled_loss(prediction, labels, column)
        if not self.active:
            return loss
        log_label = prediction.log_label
        has = _cells(labels.item, column, log_label.shape[:2])
        soft, usable = self.soft(log_label, has, annotators)
        terms = torch.where(usable, self._divergence(log_label, soft), 0.0)
        if self.imputes and self.options.threshold is not None:
            row, place, label, sure = self._confident(soft, usable, self.options.threshold)
            annotator = place if isinstance(annotators, slice) else annotators[place]
            imputed = ImputedLabels(labels.items[row], annotator, label, sure)
            if len(self.withdrawn):
                allowed = self._allowed(imputed)
                imputed, row, place = imputed.select(allowed), row[allowed], place[allowed]
            self.imputed.append(imputed)
            if self.options.imputed == "loss":
                hard = -log_label.gather(-1, soft.argmax(-1, keepdim=True))[..., 0]
                terms = torch.where(_cells(row, place, terms.shape), hard, terms)
        number = len(labels.items) * labels.weight_per_item
        return loss + self.options.kl_weight * (terms * represents).sum() / number

    def _labelled_loss(
        self, prediction: Prediction, labels: AnnotationTensors, column: Int[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        weight = self.predictor.annotator_weight()
        terms = -prediction.log_label[labels.item, column].gather(1, labels.label[:, None])[:, 0]
        loss = labels.weighted_mean(terms if weight is None else weight[labels.annotator] * terms)
        if self.predictor.trains_common and prediction.log_common is not None:
            loss = loss + labels.cross_entropy(prediction.log_common[labels.item])
        penalty = self.predictor.penalty(self.total)
        return loss if penalty is None else loss + penalty

    def soft(
        self, log_label: Float[Tensor, "b a l"], has: Bool[Tensor, "b a"], annotators: AnnotatorSelection
    ) -> tuple[Float[Tensor, "b a l"], Bool[Tensor, "b a"]]:
        """Soft labels, and where they are usable: missing pairs whose weights do not sum to 0."""
        p = log_label.detach().exp()
        if self.options.missing == "consensus":
            return p.mean(1, keepdim=True).expand_as(p), ~has
        rows = self.weights[annotators]
        weights = rows if isinstance(annotators, slice) else rows[:, annotators]
        known = has.to(p.dtype)
        total = known @ weights.T  # (b, a), over the peers of each annotator
        mixed = torch.einsum("kj,bjl->bkl", weights, p * known[..., None])
        return mixed / total.clamp_min(torch.finfo(p.dtype).tiny)[..., None], ~has & (total > 0)

    def log_label(self, output: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, "n l"]:
        """log P(label | item, annotator) for every row."""
        annotators, column = labels.annotator.unique(return_inverse=True)
        result = output.log_truth.new_empty(len(labels.item), self.rows.num_classes)
        low = 0
        for part in self._predictions(output, annotators):
            high = low + len(part.log_label)
            rows = (labels.item >= low) & (labels.item < high)
            result[rows] = part.log_label[labels.item[rows] - low, column[rows]]
            low = high
        return result

    def log_truth(self, output: NetworkOutput) -> Float[Tensor, "b k"]:
        """The annotators' common part, or else the mean of all annotators' predictions."""
        parts = [
            torch.logsumexp(part.log_label, 1) - math.log(self.rows.num_annotators)
            if part.log_common is None
            else part.log_common
            for part in self._predictions(output, slice(None))
        ]
        return torch.cat(parts)

    def annotator_features(self, output: NetworkOutput) -> Float[Tensor, "j d"]:
        """The predictor's annotator features, averaged over items."""
        features, total = output.require_features(), []
        with _evaluating(self.predictor):
            for part in features.split(self._chunk_items):
                total.append(self.predictor.annotator_features(part, slice(None)).sum(0))
        return torch.stack(total).sum(0) / len(features)

    def start_epoch(self, epoch: int, epochs: int, evaluate: Callable[[], NetworkOutput]) -> None:
        """Decide whether missing labels count in this epoch, and whether they are imputed."""
        options = self.options
        self.active = options.missing != "skip" and options.kl_weight > 0 and epoch >= options.warm_up
        self.imputes, self.imputed = self.active and options.threshold is not None and epoch > 0, []

    def end_epoch(self) -> None:
        """Recompute the weights from observed labels and those imputed in this epoch."""
        if self.imputes and self.options.missing == "similarity":
            weights = self.similarity(ImputedLabels.concatenate(self.imputed)).weights()
            self.weights.copy_(torch.from_numpy(weights))

    @torch.no_grad()
    def impute(self, output: NetworkOutput, threshold: float) -> ImputedLabels:
        """Impute missing labels of all training items whose confidence reaches the threshold."""
        labels, low, parts = self.training_labels, 0, [ImputedLabels.empty(output.log_truth.device)]
        for prediction in self._predictions(output, slice(None)):
            high = low + len(prediction.log_label)
            rows = slice(*labels.starts[[low, high]].tolist())
            has = _cells(labels.item[rows] - low, labels.annotator[rows], prediction.log_label.shape[:2])
            soft, usable = self.soft(prediction.log_label, has, slice(None))
            row, annotator, label, sure = self._confident(soft, usable, threshold)
            parts.append(ImputedLabels(row + low, annotator, label, sure))
            low = high
        imputed = ImputedLabels.concatenate(parts)
        return imputed.select(self._allowed(imputed))

    def _confident(
        self, soft: Float[Tensor, "b a l"], usable: Bool[Tensor, "b a"], threshold: float
    ) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, " n"], Float[Tensor, " n"]]:
        """Rows, columns, labels and confidences of the soft labels whose confidence reaches the threshold."""
        candidates = usable & (soft.amax(-1) >= min_probability(threshold, soft.shape[-1]))
        row, column = torch.nonzero(candidates, as_tuple=True)
        probabilities = soft[row, column]
        sure = confidence(probabilities)
        retained = sure >= threshold
        return row[retained], column[retained], probabilities[retained].argmax(-1), sure[retained]

    def _allowed(self, imputed: ImputedLabels) -> Bool[Tensor, " n"]:
        """Whether each pair may be imputed."""
        pair = imputed.item * self.rows.num_annotators + imputed.annotator
        return ~torch.isin(pair, torch.from_numpy(self.withdrawn).to(pair.device))

    @property
    def _chunk_items(self) -> int:
        """Items per chunk of a pass without gradients."""
        return max(CHUNK_NUMBERS // (self.rows.num_annotators * self.rows.num_classes**2), 1)

    def _predictions(self, output: NetworkOutput, annotators: AnnotatorSelection) -> Iterator[Prediction]:
        """Predictions without dropout, a chunk of items at a time, in order."""
        for part in output.require_features().split(self._chunk_items):
            with _evaluating(self.predictor):
                prediction = self.predictor(part, annotators)
            yield prediction

    def _annotators(
        self, labels: AnnotationTensors
    ) -> tuple[AnnotatorSelection, Int[Tensor, " n"], Float[Tensor, " a"] | float]:
        """The annotators to predict, each row's position among them, and how many each represents."""
        total = self.rows.num_annotators
        if total <= MAX_EXTRA_ANNOTATORS:
            return slice(None), labels.annotator, 1.0
        present = labels.annotator.unique()
        if not self.active:
            return present, torch.searchsorted(present, labels.annotator), 1.0
        absent = torch.ones(total, dtype=torch.bool, device=present.device)
        absent[present] = False
        others = torch.nonzero(absent)[:, 0]
        drawn = others[torch.randperm(len(others), device=others.device)[:MAX_EXTRA_ANNOTATORS]]
        annotators = torch.cat([present, drawn]).sort().values
        represents = torch.where(absent[annotators], len(others) / max(len(drawn), 1), 1.0)
        return annotators, torch.searchsorted(annotators, labels.annotator), represents

    def _divergence(
        self, log_label: Float[Tensor, "b a l"], soft: Float[Tensor, "b a l"]
    ) -> Float[Tensor, "b a"]:
        log_soft = safe_log(soft)
        if self.options.divergence == "released":
            return (soft * (log_soft - log_label)).sum(-1) / soft.shape[-1]
        return (log_label.exp() * (log_label - log_soft)).sum(-1)


@contextmanager
def _evaluating(predictor: Predictor) -> Iterator[None]:
    """Switch the predictor to evaluation mode, and back."""
    training = predictor.training
    predictor.eval()
    try:
        yield
    finally:
        predictor.train(training)


def _cells(row: Int[Tensor, " n"], column: Int[Tensor, " n"], shape: torch.Size) -> Bool[Tensor, "b a"]:
    cells = torch.zeros(shape, dtype=torch.bool, device=row.device)
    cells[row, column] = True
    return cells
