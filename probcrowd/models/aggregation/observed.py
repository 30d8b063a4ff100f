"""The part that all models of annotation share, in Pyro: labels given the true class, which is enumerated.

    truth[i] ~ Categorical(exp log_class[i])
    label[n] ~ Categorical(table[table_of_row[n], truth[item[n]], :])

Rows have no plate of their own: beside an enumerated `truth`, a plate of rows outside the plate of items
silently gives a wrong density. Their log likelihood is gathered by item first and enters as one factor per
item and class. A gold label rules out the other classes.
"""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probcrowd.data.rows import Rows
from probcrowd.models.meta.prototype import LOG_ZERO


def observe(
    rows: Rows,
    log_class: Float[Tensor, "*i k"],
    log_table: Float[Tensor, "t k l"],
    table_of_row: Int[Tensor, " n"],
) -> None:
    """Declare the true class of every item and condition on its labels."""
    item, label = codes(rows.item), codes(rows.label)
    weight = torch.from_numpy(np.array(rows.weight)).to(log_table)
    scores = log_table[table_of_row, :, label] * weight[:, None]  # (n, k)
    evidence = scores.new_zeros(rows.num_items, rows.num_classes).index_add(0, item, scores)
    gold = codes(rows.gold)[:, None]
    evidence = evidence.masked_fill((gold >= 0) & (gold != torch.arange(rows.num_classes)), LOG_ZERO)
    with pyro.plate("item", rows.num_items, dim=-1):
        truth = pyro.sample("truth", dist.Categorical(logits=log_class), infer={"enumerate": "parallel"})
        pyro.factor("label", evidence[torch.arange(rows.num_items), truth])


def codes(array: np.ndarray) -> Int[Tensor, " n"]:
    """Codes as a tensor that may index."""
    return torch.from_numpy(np.array(array, dtype=np.int64))
