"""What every channel is: a module that turns class probabilities of items into a loss on what annotators said of them."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probcrowd.data.tensors import AnnotationTensors


@dataclass(frozen=True)
class NetworkOutput:
    """What the network makes of b items: log class probabilities, and, for channels that ask, what its last linear layer sees.

    For channels that embed, features are all that the network makes, of any shape, and log_truth has no columns.
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
                "this channel needs the features that the network's last linear layer sees; they were not given"
            )
        return self.features


class Channel(nn.Module, abc.ABC):
    """One way to learn from what annotators say.

    `needs_features`: `NetworkOutput.features` must be there, what the layer `head` of the network sees. `shared_truth`: labels of an item are
    independent given its class; where there is no class that they could share, they are independent given x. `selectable`: not while a
    first phase lasts, after which more is to be learned. `embeds`: the network gives embeddings, and the channel holds all that follows.
    `decays`: what the channel learns is subject to the network's weight decay.

    `degenerate` counts steps in which a volume had to be taken of a matrix that is next to singular.
    """

    needs_features = False
    needs_embedding = False
    weight_decay = False
    shared_truth = True
    selectable = True
    head = ""
    degenerate: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("degenerate", torch.zeros((), dtype=torch.int64))

    @abc.abstractmethod
    def loss(self, seen: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, ""]:
        """What training lowers, on a batch."""

    @abc.abstractmethod
    def confusion(self) -> Float[Tensor, "j k l"]:
        """P(annotator j says l | truth is k), for an item that is surely of class k."""

    def log_label(self, seen: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, "n l"]:
        """log P(label | item, annotator) for every row."""
        return torch.logsumexp(
            self.log_truth(seen)[labels.item][:, :, None] + safe_log(self.confusion())[labels.annotator], 1
        )

    def item_log_likelihood(self, seen: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, " b"]:
        """log P(all that was said of an item | x), by item.

        More than one label of an item tells what single ones cannot: which of the confusion matrices that give every single label the same
        probability are right.
        """
        if self.shared_truth:
            return torch.logsumexp(
                self.log_truth(seen) + labels.log_likelihood(safe_log(self.confusion())), 1
            )
        said = self.log_label(seen, labels).gather(1, labels.label[:, None])[:, 0]
        return said.new_zeros(len(labels.items)).index_add(0, labels.item, said * labels.weight)

    def log_truth(self, seen: NetworkOutput) -> Float[Tensor, "b k"]:
        """Log class probabilities of items that nobody has labelled."""
        return seen.log_truth

    def metrics(self) -> dict[str, float]:
        """What the history of a training says of an epoch besides loss and score."""
        return {}

    def start_epoch(self, epoch: int, epochs: int, evaluate: Callable[[], NetworkOutput]) -> None:
        """Called before every epoch; `evaluate` passes all items of the fit through the network, without dropout and without gradients."""

    def end_epoch(self) -> None:
        """Called after the last batch of every epoch, before anything is kept or scored."""


def smoothed_confusion(counts: Float[Tensor, "j k l"], amount: float = 1.0) -> Float[Tensor, "j k l"]:
    """Rows of counts as probabilities; a row without counts is that of all annotators together."""
    pooled = counts.sum(0) + 1 / counts.shape[-1]
    added = counts + amount * pooled / pooled.sum(-1, keepdim=True)
    return added / added.sum(-1, keepdim=True)


def safe_log(probabilities: Float[Tensor, "*n l"]) -> Float[Tensor, "*n l"]:
    """Their logs; that of 0 is large, and a number."""
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def normalise_rows(counts: Float[Tensor, "*n l"]) -> Float[Tensor, "*n l"]:
    """Rows of counts as probabilities; a row without counts is flat."""
    total = counts.sum(-1, keepdim=True)
    return torch.where(total > 0, counts / total, 1 / counts.shape[-1])


class LabelBuffers(nn.Module):
    """All labels of a fit, which go with the module from device to device and are in no checkpoint."""

    item: Tensor
    annotator: Tensor
    label: Tensor
    weight: Tensor
    items: Tensor

    def __init__(self, labels: AnnotationTensors) -> None:
        super().__init__()
        self.weight_per_item = labels.weight_per_item
        for name in ("item", "annotator", "label", "weight", "items"):
            self.register_buffer(name, getattr(labels, name), persistent=False)

    def labels(self) -> AnnotationTensors:
        """As they were given."""
        return AnnotationTensors(
            self.item, self.annotator, self.label, self.weight, self.items, self.weight_per_item
        )


def diagonal_logit(accuracy: float, num_classes: int) -> float:
    """The logit above the others at which a softmax over K labels has this probability.

    A logit of 1 (identity logits, the published start of several methods) is .73 at K = 2, .23 at K = 10 and .03 at K = 100; this start
    does not depend on K.

    Raises:
        ValueError: a probability that is not between 0 and 1.
    """
    if not 0 < accuracy < 1:
        raise ValueError(f"initial_accuracy={accuracy}: choose a number between 0 and 1")
    return math.log(accuracy * (num_classes - 1) / (1 - accuracy))


def diagonal_logits(size: float, num_annotators: int, num_classes: int) -> Float[Tensor, "j k l"]:
    """`size` on the diagonal of every annotator, 0 elsewhere."""
    return (size * torch.eye(num_classes)).repeat(num_annotators, 1, 1)
