"""The interface of a channel: from class probabilities of items to a loss on the annotators' labels."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probcrowd.data.table import vote_shares
from probcrowd.data.tensors import AnnotationTensors


@dataclass(frozen=True)
class NetworkOutput:
    """The network's output for b items: log class probabilities, and the input of its last layer if needed.

    For channels that take embeddings, `features` is the network's whole output, of any shape, and `log_truth`
    has no columns.
    """

    log_truth: Float[Tensor, "b k"]
    features: Float[Tensor, "b ..."] | None = None

    def require_features(self) -> Float[Tensor, "b ..."]:
        """The features.

        Raises:
            ValueError: there are none.
        """
        if self.features is None:
            raise ValueError(
                "this channel needs the input of the network's last linear layer: pass `features`"
            )
        return self.features


class Channel(nn.Module, abc.ABC):
    """A model of annotators' labels given the network's output, trained together with the network.

    `needs_features`: the channel reads `NetworkOutput.features`, the input of the network's layer `head`.
    `needs_embedding`: the network returns embeddings, and the channel contains everything after them.
    `weight_decay`: the network's weight decay applies to the channel's parameters too. `selectable`: whether
    the current epoch may be selected; false during a first phase that a second one completes.

    `degenerate` counts steps in which the log volume of a nearly singular matrix was needed.
    """

    needs_features = False
    needs_embedding = False
    weight_decay = False
    selectable = True
    head = ""
    degenerate: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("degenerate", torch.zeros((), dtype=torch.int64))

    @abc.abstractmethod
    def loss(self, output: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, ""]:
        """The loss that training minimises, on a batch."""

    @abc.abstractmethod
    def log_label(self, output: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, "n l"]:
        """log P(label | item, annotator) for every row."""

    def item_log_likelihood(self, output: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, " b"]:
        """log P(all labels of the item | x) by item, with labels independent given x."""
        rows = self.log_label(output, labels).gather(1, labels.label[:, None])[:, 0]
        return rows.new_zeros(len(labels.items)).index_add(0, labels.item, rows * labels.weight)

    def log_truth(self, output: NetworkOutput) -> Float[Tensor, "b k"]:
        """Log class probabilities of items, from their inputs alone."""
        return output.log_truth

    def metrics(self) -> dict[str, float]:
        """Values to record in the training history of an epoch, besides loss and score."""
        return {}

    def start_epoch(self, epoch: int, epochs: int, evaluate: Callable[[], NetworkOutput]) -> None:
        """Called before every epoch; `evaluate` returns the output for all items, without dropout."""

    def end_epoch(self) -> None:
        """Called after the last batch of every epoch, before scoring and saving."""


class ConfusionChannel(Channel):
    """A channel with a confusion matrix per annotator.

    `shared_truth`: the labels of an item are independent given its class; if false, given x.
    """

    shared_truth = True

    @abc.abstractmethod
    def confusion(self) -> Float[Tensor, "j k l"]:
        """P(annotator j gives label l | true class k), for an item that is certainly of class k."""

    def log_label(self, output: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, "n l"]:
        """log sum_k f_k confusion[j, k, l]."""
        log_truth = self.log_truth(output)[labels.item]
        return torch.logsumexp(log_truth[:, :, None] + safe_log(self.confusion())[labels.annotator], 1)

    def item_log_likelihood(self, output: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, " b"]:
        """log P(all labels of the item | x) by item.

        Several labels of an item hold information that single labels lack: they tell apart confusion matrices
        that give every single label the same probability.
        """
        if not self.shared_truth:
            return super().item_log_likelihood(output, labels)
        return torch.logsumexp(self.log_truth(output) + labels.log_likelihood(safe_log(self.confusion())), 1)


def smoothed_confusion(counts: Float[Tensor, "j k l"], amount: float = 1.0) -> Float[Tensor, "j k l"]:
    """Normalise rows of counts plus `amount` labels distributed like those of all annotators together."""
    pooled = counts.sum(0) + 1 / counts.shape[-1]
    added = counts + amount * pooled / pooled.sum(-1, keepdim=True)
    return added / added.sum(-1, keepdim=True)


def safe_log(probabilities: Float[Tensor, "*n l"]) -> Float[Tensor, "*n l"]:
    """Logarithms, with 0 replaced by the smallest positive normal number."""
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def normalise_rows(counts: Float[Tensor, "*n l"]) -> Float[Tensor, "*n l"]:
    """Return rows of counts as probabilities; rows without counts become uniform."""
    return vote_shares(counts, 1 / counts.shape[-1])


def diagonal_logit(accuracy: float, num_classes: int) -> float:
    """The diagonal logit, others being 0, whose softmax over K labels equals `accuracy`.

    A logit of 1 (identity logits, the published start of several methods) gives .73 at K = 2, .23 at K = 10
    and .03 at K = 100; an accuracy does not depend on K.

    Raises:
        ValueError: an accuracy that is not between 0 and 1.
    """
    if not 0 < accuracy < 1:
        raise ValueError(f"initial_accuracy={accuracy}: choose a number between 0 and 1")
    return math.log(accuracy * (num_classes - 1) / (1 - accuracy))


def diagonal_logits(logit: float, num_annotators: int, num_classes: int) -> Float[Tensor, "j k l"]:
    """Confusion logits with `logit` on every annotator's diagonal and 0 elsewhere."""
    return (logit * torch.eye(num_classes)).repeat(num_annotators, 1, 1)
