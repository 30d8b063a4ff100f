r"""Annotations of a batch of tasks as one linear operator in torch: all that EM needs of them.

V has a row per item and a column per (annotator, label) pair; V[i, jl] is the weight with which annotator j
gave item i the label l, 0 where there is no annotation. Two products carry a whole EM iteration (b: tasks in
the batch):

    evidence(table) = V @ table     (b, i, k)     table[jl, k] = log P(j says l | truth k); evidence by item
    counts(weights) = V' @ weights  (b, jl, k)    weights[i, k] = responsibilities; expected counts

`DenseVotes` holds V as an array: fastest for episodes, a thousand small tasks in one matrix product.
`SparseVotes` holds one row per annotation, in O(rows) memory: for long tables. Both are differentiable in the
table and in the weights; neither changes its input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from probcrowd.data.annotations import Annotations


@dataclass(frozen=True)
class DenseVotes:
    """V as an array; `matrix` has shape (b, i, j*l)."""

    matrix: Float[Tensor, "b i jl"]
    num_annotators: int
    num_labels: int

    @staticmethod
    def from_labels(
        labels: Int[Tensor, "b i j"], num_labels: int, dtype: torch.dtype | None = None
    ) -> DenseVotes:
        """Votes from coded labels; a negative code marks an item that the annotator did not label."""
        annotators = labels.shape[2]
        codes = torch.arange(num_labels, device=labels.device)
        votes = (labels[..., None] == codes).flatten(2)  # (b, i, jl); all false where the label is missing
        return DenseVotes(votes.to(dtype or torch.get_default_dtype()), annotators, num_labels)

    def evidence(self, table: Float[Tensor, "b jl k"]) -> Float[Tensor, "b i k"]:
        """V @ table."""
        return torch.bmm(self.matrix, table)

    def counts(self, weights: Float[Tensor, "b i k"]) -> Float[Tensor, "b jl k"]:
        """V' @ weights."""
        return torch.bmm(self.matrix.transpose(1, 2), weights)

    def totals(self) -> Float[Tensor, "b i l"]:
        """Total weight of each label of an item, over all annotators."""
        return self.matrix.unflatten(2, (self.num_annotators, self.num_labels)).sum(2)

    def dense(self) -> DenseVotes:
        """These votes."""
        return self


@dataclass(frozen=True)
class SparseVotes:
    """V as rows in two orders, by item and by pair; built by `build` and `from_annotations`.

    Items and (annotator, label) pairs are numbered across the batch: item b * num_items + i,
    pair (b * num_annotators + j) * num_labels + l.
    """

    pair_by_item: Int[Tensor, " n"]
    weight_by_item: Float[Tensor, " n"]
    item_starts: Int[Tensor, " bi"]
    item_by_pair: Int[Tensor, " n"]
    weight_by_pair: Float[Tensor, " n"]
    pair_starts: Int[Tensor, " bjl"]
    num_tasks: int
    num_annotators: int
    num_labels: int

    @staticmethod
    def build(
        task: Int[Tensor, " n"],
        item: Int[Tensor, " n"],
        annotator: Int[Tensor, " n"],
        label: Int[Tensor, " n"],
        weight: Float[Tensor, " n"],
        *,
        num_tasks: int,
        num_items: int,
        num_annotators: int,
        num_labels: int,
    ) -> SparseVotes:
        """Votes from one row per annotation, in any order."""
        items = task * num_items + item
        pairs = (task * num_annotators + annotator) * num_labels + label
        by_item, by_pair = torch.argsort(items, stable=True), torch.argsort(pairs, stable=True)
        return SparseVotes(
            pairs[by_item],
            weight[by_item],
            _starts(items, num_tasks * num_items),
            items[by_pair],
            weight[by_pair],
            _starts(pairs, num_tasks * num_annotators * num_labels),
            num_tasks,
            num_annotators,
            num_labels,
        )

    @staticmethod
    def from_annotations(annotations: Annotations, dtype: torch.dtype | None = None) -> SparseVotes:
        """The votes of one table, as a batch of one task."""
        given = annotations.weight
        weight = torch.ones(len(annotations)) if given is None else torch.from_numpy(given.copy())
        columns = annotations.item, annotations.annotator, annotations.label
        item, annotator, label = (torch.from_numpy(codes.copy()) for codes in columns)
        return SparseVotes.build(
            torch.zeros_like(item),
            item,
            annotator,
            label,
            weight.to(dtype or torch.get_default_dtype()),
            num_tasks=1,
            num_items=annotations.num_items,
            num_annotators=annotations.num_annotators,
            num_labels=annotations.num_classes,
        )

    def evidence(self, table: Float[Tensor, "b jl k"]) -> Float[Tensor, "b i k"]:
        """V @ table."""
        sums = _weighted_sums(self.pair_by_item, self.weight_by_item, self.item_starts, table.flatten(0, 1))
        return sums.unflatten(0, (self.num_tasks, -1))

    def counts(self, weights: Float[Tensor, "b i k"]) -> Float[Tensor, "b jl k"]:
        """V' @ weights."""
        sums = _weighted_sums(self.item_by_pair, self.weight_by_pair, self.pair_starts, weights.flatten(0, 1))
        return sums.unflatten(0, (self.num_tasks, -1))

    def totals(self) -> Float[Tensor, "b i l"]:
        """Total weight of each label of an item, over all annotators."""
        weight = self.weight_by_item
        identity = torch.eye(self.num_labels, dtype=weight.dtype, device=weight.device)
        return self.evidence(identity.repeat(self.num_tasks, self.num_annotators, 1))

    def dense(self) -> DenseVotes:
        """The same votes as an array, for small tasks: b * i * j * l numbers."""
        tasks, pairs = self.num_tasks, self.num_annotators * self.num_labels
        matrix = self.weight_by_item.new_zeros(len(self.item_starts), pairs)
        sizes = torch.diff(self.item_starts, append=self.item_starts.new_tensor([len(self.pair_by_item)]))
        rows = torch.repeat_interleave(torch.arange(len(self.item_starts), device=matrix.device), sizes)
        matrix.index_put_((rows, self.pair_by_item % pairs), self.weight_by_item, accumulate=True)
        return DenseVotes(matrix.unflatten(0, (tasks, -1)), self.num_annotators, self.num_labels)


Votes = DenseVotes | SparseVotes


@dataclass(frozen=True)
class Support:
    """Labelled items of a batch of tasks: embeddings (b i d), votes, masks of real items and classes.

    Without a mask all are real.

    Raises:
        ValueError: a real item has no annotation (its start would be undefined), or a label outside its
        task's classes.
    """

    embeddings: Float[Tensor, "b i d"]
    votes: Votes
    items: Bool[Tensor, "b i"] | None = None
    classes: Bool[Tensor, "b k"] | None = None

    def __post_init__(self) -> None:
        totals = self.votes.totals().detach()
        if totals.shape[:2] != self.embeddings.shape[:2]:
            shapes = tuple(totals.shape[:2]), tuple(self.embeddings.shape[:2])
            raise ValueError(f"votes are for (tasks, items) {shapes[0]}, embeddings for {shapes[1]}")
        empty = totals.sum(-1) == 0
        empty = empty if self.items is None else empty & self.items
        if bool(empty.any()):
            named = [tuple(pair) for pair in empty.nonzero()[:5].tolist()]
            raise ValueError(
                f"{int(empty.sum())} support items have no annotation, at (task, item) {named}: "
                "remove them or pad with items=False"
            )
        if self.classes is not None and bool((totals.sum(1) * ~self.classes).any()):
            raise ValueError("some annotations give a label that `classes` excludes from their task")


def _starts(groups: Int[Tensor, " n"], num_groups: int) -> Int[Tensor, " g"]:
    """Start of each group in rows sorted by group."""
    sizes = torch.bincount(groups, minlength=num_groups)
    return torch.cumsum(sizes, 0) - sizes


def _weighted_sums(
    index: Int[Tensor, " n"],
    weight: Float[Tensor, " n"],
    starts: Int[Tensor, " g"],
    table: Float[Tensor, "r k"],
) -> Float[Tensor, "g k"]:
    # embedding_bag does not write the gathered rows to memory; index_add_ is ten times slower on a CPU
    return embedding_bag(index, table, starts, mode="sum", per_sample_weights=weight)
