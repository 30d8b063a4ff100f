r"""Soft labels for what an annotator has not labelled, of those who have (SimLabel: Zhang et al. 2025, arXiv:2504.09525).

    p[i, k] = P(annotator k says . | x_i) of a predictor                     has[i, k]: k labelled i

    labelled      - log p[i, k][label]                                                                                   equation 1
    missing       D( p[i, k] | soft[i, k] ),   soft[i, k] = sum_k' w[k, k'] has[i, k'] p[i, k'] / sum_k' w[k, k'] has[i, k']      equations 2, 3
    confidence    max(soft) (1 - entropy(soft) / log L)                                                                  equation 4

    loss          mean over labels of the first + kl_weight * sum over missing pairs of the second / number of labels

so that a labelled and a missing pair count alike, and without missing pairs, or at kl_weight 0, the loss is that of skipping them. A pair none of whose
labelled peers has a weight has no term. `soft` carries no gradient; it is made of the same pass, in which dropout is on.

    missing       "skip"         no second term
                  "similarity"   w from the similarity of annotators (`probcrowd.models.simlabel.similarity`)
                  "uniform"      w equal: what the similarity is worth is what it gains on this
                  "consensus"    soft[i] = mean over all annotators of p[i, k], labelled or not: self-training towards the consensus
    divergence    "paper"        D(p | soft), as printed: mode-seeking, its gradient vanishes as p becomes sure, right or wrong
                  "released"     D(soft | p) / L, as the released code has it: the gradient of soft cross-entropy

Imputation, from the second epoch on: for missing pairs of a batch whose confidence reaches the threshold, the most probable label of `soft` is taken for a
label when, at the end of the epoch, the similarity is computed anew from all labels observed and those imputed in this epoch; earlier ones are forgotten.
With imputed="loss" it takes the place of the soft label in the loss of the batch as well. Agreement with labels that were made of agreement is no evidence: the similarity of
annotators rises by it almost always, whether they are alike or not, and `notes` shows how far.

Memory of a step: batch x annotators x L numbers, a few times; of more than `MOST` annotators those are asked who labelled something in the batch, and
so many others drawn at random, which stand for all others.
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
from probcrowd.models.crowd.base import Channel, LabelBuffers, NetworkOutput, safe_log
from probcrowd.models.simlabel.base import AnnotatorSelection, Prediction, Predictor
from probcrowd.models.simlabel.imputed import ImputedLabels, SoftLabelOptions, confidence, min_probability
from probcrowd.models.simlabel.similarity import Similarity, similarity

MOST = 256  # annotators who are asked about a batch, besides those who labelled some of it
AT_ONCE = 2**22  # numbers of an item, an annotator and a label that are held at once without gradients


class SoftLabels(Channel):
    """A predictor and its soft labels. rows: those trained on. values: of the classes, for a correlation. withdrawn: pairs (item, annotator) that
    are never imputed, as item * annotators + annotator."""

    needs_embedding = True
    weight_decay = True
    shared_truth = False
    weights: Tensor

    def __init__(
        self,
        predictor: Predictor,
        rows: Rows,
        labels: AnnotationTensors,
        how: SoftLabelOptions,
        values: Float[np.ndarray, " l"] | None = None,
        withdrawn: Int[np.ndarray, " w"] | None = None,
    ) -> None:
        super().__init__()
        self.predictor, self.options, self.rows, self.values = predictor, how, rows, values
        self.training_labels = LabelBuffers(labels)
        self.withdrawn = np.zeros(0, np.int64) if withdrawn is None else withdrawn
        self.total = float(rows.weight.sum())
        self.share = pair_shares(rows.item, rows.annotator, rows.weight, rows.num_annotators)
        self.imputed: list[ImputedLabels] = []  # by batch of the epoch
        self.active = how.missing != "skip" and how.kl_weight > 0
        self.imputes = False
        count = rows.num_annotators
        if how.missing == "similarity":
            weights = torch.from_numpy(self.similarity().weights()).to(labels.weight)
        else:
            weights = (
                1 - torch.eye(count, device=labels.item.device)
                if how.missing == "uniform"
                else torch.zeros(0)
            )
        self.register_buffer("weights", weights)

    def similarity(self, imputed: ImputedLabels | None = None) -> Similarity:
        """Of the annotators, by the labels trained on and those imputed."""
        rows, how = self.rows, self.options
        parts = [rows.item, rows.annotator, rows.label, self.share]
        if imputed is not None:
            more = [part.cpu().numpy() for part in (imputed.item, imputed.annotator, imputed.label)]
            parts = [np.concatenate(both) for both in zip(parts, [*more, np.ones(len(more[0]))], strict=True)]
        sizes = {"num_annotators": rows.num_annotators, "num_labels": rows.num_classes}
        return similarity(*parts, **sizes, kind=how.kind, shrink=how.shrink, values=self.values)

    def confusion(self) -> Float[Tensor, "j k l"]:
        """There is none: annotators have no truth in common here."""
        raise NotImplementedError("predictors of single annotators know no truth that they would confuse")

    def metrics(self) -> dict[str, float]:
        """How many labels were imputed in the epoch, and the mean weight of two annotators for each other, where these move."""
        if self.options.threshold is None:
            return {}
        pairs = max(self.rows.num_annotators * (self.rows.num_annotators - 1), 1)
        return {
            "imputed": float(sum(len(part.item) for part in self.imputed)),
            "mean_weight": float(self.weights.sum()) / pairs,
        }

    def loss(self, seen: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, ""]:
        """See above."""
        asked, place, share = self._asked(labels)
        spoken = self.predictor(seen.require_features(), asked)
        log_label = spoken.log_label
        weight = self.predictor.annotator_weight()
        picked = -log_label[labels.item, place].gather(1, labels.label[:, None])[:, 0]
        loss = labels.mean(picked if weight is None else weight[labels.annotator] * picked)
        if self.predictor.trains_common and spoken.log_common is not None:
            loss = loss + labels.cross_entropy(spoken.log_common[labels.item])
        penalty = self.predictor.penalty(self.total)
        if penalty is not None:
            loss = loss + penalty
        if not self.active:
            return loss
        has = _cells(labels.item, place, log_label.shape[:2])
        soft, usable = self.soft(log_label, has, asked)
        terms = torch.where(usable, self._divergence(log_label, soft), 0.0)
        if self.imputes and self.options.threshold is not None:
            row, seat, label, sure = self._sure(soft, usable, self.options.threshold)
            found = ImputedLabels(
                labels.items[row], seat if isinstance(asked, slice) else asked[seat], label, sure
            )
            if len(self.withdrawn):
                allowed = self._allowed(found)
                found, row, seat = found.select(allowed), row[allowed], seat[allowed]
            self.imputed.append(found)
            if self.options.imputed == "loss":
                hard = -log_label.gather(-1, soft.argmax(-1, keepdim=True))[..., 0]
                terms = torch.where(_cells(row, seat, terms.shape), hard, terms)
        return loss + self.options.kl_weight * (terms * share).sum() / (
            len(labels.items) * labels.weight_per_item
        )

    def soft(
        self, log_label: Float[Tensor, "b a l"], has: Bool[Tensor, "b a"], asked: AnnotatorSelection
    ) -> tuple[Float[Tensor, "b a l"], Bool[Tensor, "b a"]]:
        """Soft labels, and for which pairs: missing ones with a peer that has a weight. Elsewhere they mean nothing."""
        p = log_label.detach().exp()
        if self.options.missing == "consensus":
            return p.mean(1, keepdim=True).expand_as(p), ~has
        weights = self.weights[asked] if isinstance(asked, slice) else self.weights[asked][:, asked]
        known = has.to(p.dtype)
        total = known @ weights.T  # (b, a), over the peers of each annotator
        mixed = torch.einsum("kj,bjl->bkl", weights, p * known[..., None])
        return mixed / total.clamp_min(torch.finfo(p.dtype).tiny)[..., None], ~has & (total > 0)

    def log_label(self, seen: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, "n l"]:
        """log P(label | item, annotator) for every row."""
        asked, place = labels.annotator.unique(return_inverse=True)
        found = seen.log_truth.new_empty(len(labels.item), self.rows.num_classes)
        low = 0
        for part in self._answers(seen, asked):
            high = low + len(part.log_label)
            here = (labels.item >= low) & (labels.item < high)
            found[here] = part.log_label[labels.item[here] - low, place[here]]
            low = high
        return found

    def log_truth(self, seen: NetworkOutput) -> Float[Tensor, "b k"]:
        """What the annotators have in common, or else the mean of what they say, all of them alike."""
        parts = [
            torch.logsumexp(part.log_label, 1) - math.log(self.rows.num_annotators)
            if part.log_common is None
            else part.log_common
            for part in self._answers(seen, slice(None))
        ]
        return torch.cat(parts)

    def annotator_features(self, seen: NetworkOutput) -> Float[Tensor, "j d"]:
        """Mean over items of what stands for each annotator."""
        features = seen.require_features()
        with _answering(self.predictor):
            parts = [
                self.predictor.annotator_features(part, slice(None)).sum(0)
                for part in features.split(self._step)
            ]
        return torch.stack(parts).sum(0) / len(features)

    def start_epoch(self, epoch: int, epochs: int, evaluate: Callable[[], NetworkOutput]) -> None:
        """Whether missing labels count yet, and are imputed."""
        how = self.options
        self.active = how.missing != "skip" and how.kl_weight > 0 and epoch >= how.warm_up
        self.imputes, self.imputed = self.active and how.threshold is not None and epoch > 0, []

    def end_epoch(self) -> None:
        """The similarity by what was observed and what was imputed in this epoch."""
        if self.imputes and self.options.missing == "similarity":
            self.weights.copy_(
                torch.from_numpy(self.similarity(ImputedLabels.concatenate(self.imputed)).weights())
            )

    @torch.no_grad()
    def impute(self, seen: NetworkOutput, threshold: float) -> ImputedLabels:
        """The labels of missing pairs of the items trained on, all of which were seen, whose confidence reaches the threshold, by item."""
        labels, low, parts = self.training_labels.labels(), 0, [ImputedLabels.empty(seen.log_truth.device)]
        for spoken in self._answers(seen, slice(None)):
            high = low + len(spoken.log_label)
            first, stop = torch.searchsorted(
                labels.item, torch.tensor([low, high], device=labels.item.device)
            ).tolist()
            has = _cells(
                labels.item[first:stop] - low, labels.annotator[first:stop], spoken.log_label.shape[:2]
            )
            row, annotator, label, sure = self._sure(
                *self.soft(spoken.log_label, has, slice(None)), threshold
            )
            parts.append(ImputedLabels(row + low, annotator, label, sure))
            low = high
        found = ImputedLabels.concatenate(parts)
        return found.select(self._allowed(found))

    def _sure(
        self, soft: Float[Tensor, "b a l"], usable: Bool[Tensor, "b a"], threshold: float
    ) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, " n"], Float[Tensor, " n"]]:
        """Rows, columns, labels and confidences of the soft labels that are sure enough."""
        row, column = torch.nonzero(
            usable & (soft.amax(-1) >= min_probability(threshold, soft.shape[-1])), as_tuple=True
        )
        some = soft[row, column]
        sure = confidence(some)
        kept = sure >= threshold
        return row[kept], column[kept], some[kept].argmax(-1), sure[kept]

    def _allowed(self, found: ImputedLabels) -> Bool[Tensor, " n"]:
        """Which of them were not withdrawn."""
        pair = found.item * self.rows.num_annotators + found.annotator
        return ~torch.isin(pair, torch.from_numpy(self.withdrawn).to(pair.device))

    @property
    def _step(self) -> int:
        """Items of a pass without gradients."""
        return max(AT_ONCE // (self.rows.num_annotators * self.rows.num_classes**2), 1)

    def _answers(self, seen: NetworkOutput, asked: AnnotatorSelection) -> Iterator[Prediction]:
        """What the annotators say of some items at a time, without dropout; items in their order."""
        for part in seen.require_features().split(self._step):
            with _answering(self.predictor):
                spoken = self.predictor(part, asked)
            yield spoken

    def _asked(
        self, labels: AnnotationTensors
    ) -> tuple[AnnotatorSelection, Int[Tensor, " n"], Float[Tensor, " a"] | float]:
        """Whom to ask about a batch, where the annotator of each row is among them, and of how many annotators each is the representative."""
        total = self.rows.num_annotators
        if total <= MOST:
            return slice(None), labels.annotator, 1.0
        here = labels.annotator.unique()
        if not self.active:
            return here, torch.searchsorted(here, labels.annotator), 1.0
        others = torch.ones(total, dtype=torch.bool, device=here.device)
        others[here] = False
        rest = torch.nonzero(others)[:, 0]
        drawn = rest[torch.randperm(len(rest), device=rest.device)[:MOST]]
        asked = torch.cat([here, drawn]).sort().values
        share = torch.where(others[asked], len(rest) / max(len(drawn), 1), 1.0)
        return asked, torch.searchsorted(asked, labels.annotator), share

    def _divergence(
        self, log_label: Float[Tensor, "b a l"], soft: Float[Tensor, "b a l"]
    ) -> Float[Tensor, "b a"]:
        log_soft = safe_log(soft)
        if self.options.divergence == "released":
            return (soft * (log_soft - log_label)).sum(-1) / soft.shape[-1]
        return (log_label.exp() * (log_label - log_soft)).sum(-1)


@contextmanager
def _answering(predictor: Predictor) -> Iterator[None]:
    """The predictor as it answers, also in the midst of its training."""
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
