"""Annotations as torch tensors: all items of a fit, or a batch of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probcrowd.data.rows import Rows


@dataclass(frozen=True)
class AnnotationTensors:
    """The labels of b items: item[n] is a place among the items at hand, items[b] which of all items these are.

    weight_per_item: the mean weight of labels per item, over all items of the fit.
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
        """All labels of a table."""
        item, annotator, label = (
            torch.from_numpy(np.array(part)).to(device) for part in (rows.item, rows.annotator, rows.label)
        )
        weight = torch.from_numpy(np.array(rows.weight)).to(device, dtype)
        items = torch.arange(rows.num_items, device=device)
        return AnnotationTensors(
            item, annotator, label, weight, items, float(rows.weight.sum()) / max(rows.num_items, 1)
        )

    def mean(self, values: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """The mean over labels; over those of a batch an unbiased estimate of it, because it divides by how many a batch has on average."""
        return (self.weight * values).sum() / (len(self.items) * self.weight_per_item)

    def cross_entropy(self, log_label: Float[Tensor, "n l"]) -> Float[Tensor, ""]:
        """Mean over labels of minus the log probability of the label that was given."""
        return self.mean(-log_label.gather(1, self.label[:, None])[:, 0])

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

    def batches(self, size: int, generator: torch.Generator) -> Iterator[AnnotationTensors]:
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
            yield AnnotationTensors(
                place[part] - low,
                annotator[part],
                label[part],
                weight[part],
                self.items[order[low:high]],
                self.weight_per_item,
            )
