"""A batch of small padded tasks for the tests of the prototype model, and comparison to a tolerance."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from probcrowd.data.vote_tensors import DenseVotes, Support
from probcrowd.models.meta.prototype import Prior


def batch_b(seed: int = 3) -> tuple[Support, Prior]:
    """Fixture B of the specification: 3 tasks; the second has 9 of 12 items, the third 3 of 4 classes."""
    generator = torch.Generator().manual_seed(seed)
    tasks, items, classes, annotators, dimension = 3, 12, 4, 5, 6
    truth = torch.arange(items).expand(tasks, items) % torch.tensor([4, 4, 3])[:, None]
    centres = torch.randn(tasks, classes, dimension, generator=generator, dtype=torch.float64)
    noise = torch.randn(tasks, items, dimension, generator=generator, dtype=torch.float64)
    embeddings = centres.gather(1, truth[..., None].expand(-1, -1, dimension)) + noise
    right = torch.rand(tasks, items, annotators, generator=generator) < 0.6
    guess = (
        torch.randint(1000, (tasks, items, annotators), generator=generator)
        % torch.tensor([4, 4, 3])[:, None, None]
    )
    labels = torch.where(right, truth[..., None], guess)
    given = torch.rand(labels.shape, generator=generator) < 0.7
    given[:, torch.arange(items), torch.arange(items) % annotators] = True
    real = torch.ones(tasks, items, dtype=torch.bool)
    real[1, 9:] = False
    labels = torch.where(given & real[..., None], labels, -1)
    present = torch.ones(tasks, classes, dtype=torch.bool)
    present[2, 3] = False
    support = Support(
        embeddings * real[..., None], DenseVotes.from_labels(labels, classes, torch.float64), real, present
    )
    return support, Prior(0.3, 1.0, 0.5)


def one_task(support: Support, index: int, items: int, classes: int) -> Support:
    """A task of a batch, by itself and without padding."""
    votes = support.votes.dense()
    matrix = votes.matrix.unflatten(2, (votes.num_annotators, votes.num_labels))[
        index : index + 1, :items, :, :classes
    ]
    return Support(
        support.embeddings[index : index + 1, :items],
        DenseVotes(matrix.flatten(2), votes.num_annotators, classes),
    )


def close(left: Tensor | np.ndarray, right: Tensor | np.ndarray, tolerance: float) -> None:
    torch.testing.assert_close(
        torch.as_tensor(left), torch.as_tensor(right), rtol=0, atol=tolerance, check_dtype=False
    )
