"""What every channel is: a module that turns class probabilities of items into a loss on what annotators said of them."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probcrowd.data.rows import Rows


@dataclass(frozen=True)
class Seen:
    """What the network makes of b items: log class probabilities, and, for channels that ask, what its last linear layer sees.

    For channels that embed, features are all that the network makes, of any shape, and log_truth has no columns.
    """

    log_truth: Float[Tensor, "b k"]
    features: Float[Tensor, "b ..."] | None = None

    def some_features(self) -> Float[Tensor, "b ..."]:
        """The features.

        Raises:
            ValueError: there are none.
        """
        if self.features is None:
            raise ValueError(
                "this channel needs the features that the network's last linear layer sees; they were not given"
            )
        return self.features


@dataclass(frozen=True)
class Labels:
    """The labels of b items: item[n] is a place among the items at hand, items[b] which of all items these are.

    per_item: the mean weight of labels per item, over all items of the fit.
    """

    item: Int[Tensor, " n"]
    annotator: Int[Tensor, " n"]
    label: Int[Tensor, " n"]
    weight: Float[Tensor, " n"]
    items: Int[Tensor, " b"]
    per_item: float

    @staticmethod
    def of(rows: Rows, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Labels:
        """All labels of a table."""
        item, annotator, label = (
            torch.from_numpy(np.array(part)).to(device) for part in (rows.item, rows.annotator, rows.label)
        )
        weight = torch.from_numpy(np.array(rows.weight)).to(device, dtype)
        items = torch.arange(rows.num_items, device=device)
        return Labels(
            item, annotator, label, weight, items, float(rows.weight.sum()) / max(rows.num_items, 1)
        )

    def mean(self, values: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """The mean over labels; over those of a batch an unbiased estimate of it, because it divides by how many a batch has on average."""
        return (self.weight * values).sum() / (len(self.items) * self.per_item)

    def cross_entropy(self, log_said: Float[Tensor, "n l"]) -> Float[Tensor, ""]:
        """Mean over labels of minus the log probability of the label that was given."""
        return self.mean(-log_said.gather(1, self.label[:, None])[:, 0])

    def log_likelihood(self, log_confusion: Float[Tensor, "j k l"]) -> Float[Tensor, "b k"]:
        """log P(all labels of the item | it is of class k); an annotator who did not label an item has no part in it."""
        rows = log_confusion[self.annotator, :, self.label] * self.weight[:, None]
        return rows.new_zeros(len(self.items), rows.shape[1]).index_add(0, self.item, rows)

    def counts(self, values: Float[Tensor, "b k"], num_annotators: int) -> Float[Tensor, "j k l"]:
        """Weighted numbers of labels l of annotator j on items that are, to those degrees, of class k."""
        classes = values.shape[1]
        flat = values.new_zeros(num_annotators * classes, classes)
        flat = flat.index_add(
            0,
            self.annotator * classes + self.label,
            values[self.item] * self.weight[:, None].to(values.dtype),
        )
        return flat.view(num_annotators, classes, classes).transpose(1, 2)

    def votes(self, num_classes: int) -> Float[Tensor, "b k"]:
        """Weighted numbers of labels by item and class."""
        flat = self.weight.new_zeros(len(self.items) * num_classes).index_add(
            0, self.item * num_classes + self.label, self.weight
        )
        return flat.view(-1, num_classes)

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Labels]:
        """All items once, in a random order, in batches whose sizes differ by one at most and are near `size`."""
        total = len(self.items)
        order = torch.randperm(total, generator=generator).to(self.item.device)
        count = torch.bincount(self.item, minlength=total)
        first = count.cumsum(0) - count
        ends = count[order].cumsum(0)
        begin = torch.repeat_interleave(first[order] - (ends - count[order]), count[order])
        row = begin + torch.arange(len(self.item), device=self.item.device)
        place = torch.repeat_interleave(torch.arange(total, device=self.item.device), count[order])
        annotator, label, weight = self.annotator[row], self.label[row], self.weight[row]
        batches = max(
            min(round(total / size), total // 2), 1
        )  # of one item nothing is known that could be standardised
        edges = [total * number // batches for number in range(batches + 1)]
        rows = [0, *ends[[edge - 1 for edge in edges[1:]]].tolist()]
        for (low, high), (begins, stop) in zip(pairwise(edges), pairwise(rows), strict=True):
            part = slice(begins, stop)
            yield Labels(
                place[part] - low,
                annotator[part],
                label[part],
                weight[part],
                self.items[order[low:high]],
                self.per_item,
            )


class Channel(nn.Module, abc.ABC):
    """One way to learn from what annotators say.

    `needs_features`: `Seen.features` must be there, what the layer `head` of the network sees. `shared_truth`: labels of an item are
    independent given its class; where there is no class that they could share, they are independent given x. `selectable`: not while a
    first phase lasts, after which more is to be learned. `embeds`: the network gives embeddings, and the channel holds all that follows.
    `decays`: what the channel learns is subject to the network's weight decay.

    `degenerate` counts steps in which a volume had to be taken of a matrix that is next to singular.
    """

    needs_features = False
    embeds = False
    decays = False
    shared_truth = True
    selectable = True
    head = ""
    degenerate: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("degenerate", torch.zeros((), dtype=torch.int64))

    @abc.abstractmethod
    def loss(self, seen: Seen, labels: Labels) -> Float[Tensor, ""]:
        """What training lowers, on a batch."""

    @abc.abstractmethod
    def confusion(self) -> Float[Tensor, "j k l"]:
        """P(annotator j says l | truth is k), for an item that is surely of class k."""

    def log_said(self, seen: Seen, labels: Labels) -> Float[Tensor, "n l"]:
        """log P(label | item, annotator) for every row."""
        return torch.logsumexp(
            self.log_truth(seen)[labels.item][:, :, None] + logs(self.confusion())[labels.annotator], 1
        )

    def log_labels(self, seen: Seen, labels: Labels) -> Float[Tensor, " b"]:
        """log P(all that was said of an item | x), by item.

        More than one label of an item tells what single ones cannot: which of the confusion matrices that give every single label the same
        probability are right.
        """
        if self.shared_truth:
            return torch.logsumexp(self.log_truth(seen) + labels.log_likelihood(logs(self.confusion())), 1)
        said = self.log_said(seen, labels).gather(1, labels.label[:, None])[:, 0]
        return said.new_zeros(len(labels.items)).index_add(0, labels.item, said * labels.weight)

    def log_truth(self, seen: Seen) -> Float[Tensor, "b k"]:
        """Log class probabilities of items that nobody has labelled."""
        return seen.log_truth

    def notes(self) -> dict[str, float]:
        """What the history of a training says of an epoch besides loss and score."""
        return {}

    def begin(self, epoch: int, epochs: int, evaluate: Callable[[], Seen]) -> None:
        """Called before every epoch; `evaluate` passes all items of the fit through the network, without dropout and without gradients."""

    def end(self) -> None:
        """Called after the last batch of every epoch, before anything is kept or scored."""


def smoothed_confusion(counts: Float[Tensor, "j k l"], amount: float = 1.0) -> Float[Tensor, "j k l"]:
    """Rows of counts as probabilities; a row without counts is that of all annotators together."""
    pooled = counts.sum(0) + 1 / counts.shape[-1]
    added = counts + amount * pooled / pooled.sum(-1, keepdim=True)
    return added / added.sum(-1, keepdim=True)


def logs(probabilities: Float[Tensor, "*n l"]) -> Float[Tensor, "*n l"]:
    """Their logs; that of 0 is large, and a number."""
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def normalised(counts: Float[Tensor, "*n l"]) -> Float[Tensor, "*n l"]:
    """Rows of counts as probabilities; a row without counts is flat."""
    total = counts.sum(-1, keepdim=True)
    return torch.where(total > 0, counts / total, 1 / counts.shape[-1])


class Kept(nn.Module):
    """All labels of a fit, which go with the module from device to device and are in no checkpoint."""

    item: Tensor
    annotator: Tensor
    label: Tensor
    weight: Tensor
    items: Tensor

    def __init__(self, labels: Labels) -> None:
        super().__init__()
        self.per_item = labels.per_item
        for name in ("item", "annotator", "label", "weight", "items"):
            self.register_buffer(name, getattr(labels, name), persistent=False)

    def labels(self) -> Labels:
        """As they were given."""
        return Labels(self.item, self.annotator, self.label, self.weight, self.items, self.per_item)
