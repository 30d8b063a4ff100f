"""Annotations as torch tensors: all items of a fit, or a batch of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probcrowd.data.rows import Rows


@dataclass(frozen=True)
class AnnotationTensors:
    """The annotations of b items, sorted by item.

    item[n]: the item's position among these b items. items[b]: the position of each of them in the whole
    table. weight_per_item: the total weight of an item's labels, averaged over all items of the whole table.
    """

    item: Int[Tensor, " n"]
    annotator: Int[Tensor, " n"]
    label: Int[Tensor, " n"]
    weight: Float[Tensor, " n"]
    items: Int[Tensor, " b"]
    weight_per_item: float

    @staticmethod
    def of(
        rows: Rows, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> AnnotationTensors:
        """All annotations of a table."""
        item, annotator, label = (
            torch.from_numpy(np.array(part)).to(device) for part in (rows.item, rows.annotator, rows.label)
        )
        weight = torch.from_numpy(np.array(rows.weight)).to(device, dtype)
        weight_per_item = float(rows.weight.sum()) / max(rows.num_items, 1)
        items = torch.arange(rows.num_items, device=device)
        return AnnotationTensors(item, annotator, label, weight, items, weight_per_item)

    @cached_property
    def starts(self) -> Int[Tensor, " s"]:
        """The first row of each item, followed by the number of rows."""
        counts = torch.bincount(self.item, minlength=len(self.items))
        return torch.nn.functional.pad(counts.cumsum(0), (1, 0))

    def weighted_mean(self, values: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """The mean over all labels of the table; over a batch, an unbiased estimate of it.

        It is unbiased because the divisor is the expected weight of a batch, not the weight it happens to
        have.
        """
        return (self.weight * values).sum() / (len(self.items) * self.weight_per_item)

    def cross_entropy(self, log_label: Float[Tensor, "n l"]) -> Float[Tensor, ""]:
        """The mean over labels of minus the log probability of the label given."""
        return self.weighted_mean(-log_label.gather(1, self.label[:, None])[:, 0])

    def log_likelihood(self, log_confusion: Float[Tensor, "j k l"]) -> Float[Tensor, "b k"]:
        """log P(all labels of the item | class k), over the annotators who labelled it."""
        rows = log_confusion[self.annotator, :, self.label] * self.weight[:, None]
        return rows.new_zeros(len(self.items), rows.shape[1]).index_add(0, self.item, rows)

    def counts(self, probabilities: Float[Tensor, "b k"], num_annotators: int) -> Float[Tensor, "j k l"]:
        """Expected counts: the weight of labels l of annotator j on items of class k."""
        classes = probabilities.shape[1]
        flat = probabilities.new_zeros(num_annotators * classes, classes)
        weighted = probabilities[self.item] * self.weight[:, None].to(probabilities.dtype)
        flat = flat.index_add(0, self.annotator * classes + self.label, weighted)
        return flat.view(num_annotators, classes, classes).transpose(1, 2)

    def votes(self, num_classes: int) -> Float[Tensor, "b k"]:
        """The weight of labels by item and class."""
        flat = self.weight.new_zeros(len(self.items) * num_classes)
        return flat.index_add(0, self.item * num_classes + self.label, self.weight).view(-1, num_classes)

    def select(self, items: Int[Tensor, " b"]) -> AnnotationTensors:
        """The items at these positions, in this order, with all their annotations."""
        sizes = self.starts.diff()[items]
        position = torch.repeat_interleave(torch.arange(len(items), device=self.item.device), sizes)
        offset = self.starts[items] - (sizes.cumsum(0) - sizes)
        row = torch.arange(len(position), device=self.item.device) + offset[position]
        parts = (self.annotator[row], self.label[row], self.weight[row], self.items[items])
        return AnnotationTensors(position, *parts, self.weight_per_item)

    def batches(self, size: int, generator: torch.Generator) -> Iterator[AnnotationTensors]:
        """All items once, in random order, in batches of about `size` items; sizes differ by at most one.

        A batch has at least two items if there are two: a single item cannot be standardised by its batch.
        """
        total = len(self.items)
        order = torch.randperm(total, generator=generator).to(self.item.device)
        shuffled = self.select(order)
        number = max(min(round(total / size), total // 2), 1)
        edges = [total * batch // number for batch in range(number + 1)]
        for (low, high), (first, last) in zip(
            pairwise(edges), pairwise(shuffled.starts[edges].tolist()), strict=True
        ):
            rows = slice(first, last)
            yield AnnotationTensors(
                shuffled.item[rows] - low,
                shuffled.annotator[rows],
                shuffled.label[rows],
                shuffled.weight[rows],
                shuffled.items[low:high],
                self.weight_per_item,
            )
