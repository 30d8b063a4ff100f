"""The part that all models of annotation share, in NumPyro: the distribution of an item's labels, its true
class summed out.

    log p(rows of item i) = logsumexp_k( log_class[i, k]
                            + sum over rows n of i of weight[n] log_table[table_of_row[n], k, label[n]] )

The site `label` has one value per item, its gold class or -1, and one log likelihood per item. Given the
parameters it also computes p(truth | rows) and the likelihood of each row under each class, and
simulates rows.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int
from numpyro.distributions import Distribution, constraints

from probcrowd.data.covariates import Covariates
from probcrowd.data.rows import Rows

LOG_ZERO = -1e3
_SIZES = ("num_annotators", "num_classes")
# Inside a compiled function the arrays are traced and the sizes are constants
jax.tree_util.register_dataclass(
    Rows,
    data_fields=[field.name for field in fields(Rows) if field.name not in _SIZES],
    meta_fields=list(_SIZES),
)
jax.tree_util.register_dataclass(Covariates, data_fields=["columns"], meta_fields=["levels"])


class AnnotatedItems(Distribution):
    """The items of a table given the class prior and the rows of the confusion matrices.

    log_class: (i, k), or (k) for all items alike. log_table: tables (t, k, l) of log P(label l | truth k);
        table_of_row: which of them row n used.
    """

    pytree_data_fields = ("rows", "log_class", "log_table", "table_of_row")

    def __init__(
        self,
        rows: Rows,
        log_class: Float[Array, "*i k"],
        log_table: Float[Array, "t k l"],
        table_of_row: Int[Array, " n"],
    ) -> None:
        # No positive double has a logarithm below -745: the floor stands for log 0 alone, and keeps
        # differences of scores defined
        self.rows, self.log_class, self.log_table, self.table_of_row = (
            rows,
            log_class,
            jnp.maximum(log_table, LOG_ZERO),
            table_of_row,
        )
        super().__init__(batch_shape=(rows.num_items,), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Gold classes, or -1."""
        return constraints.integer_greater_than(-2)

    def row_scores(self) -> Float[Array, "n k"]:
        """log P(label of row n | truth k), not weighted."""
        by_label = self.log_table.transpose(0, 2, 1).reshape(
            -1, self.rows.num_classes
        )  # (t l, k): a row's numbers are contiguous
        return by_label[self.table_of_row * self.log_table.shape[2] + self.rows.label]

    def scores(self) -> Float[Array, "i k"]:
        """log p(truth k, rows of item i)."""
        weighted = self.row_scores() * self.rows.weight[:, None]
        return self.log_class + jax.ops.segment_sum(
            weighted, self.rows.item, self.rows.num_items, indices_are_sorted=True
        )

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Float[Array, " i"]:
        """log p(rows of item i), jointly with its true class where `value` (i) gives one."""
        value = jnp.asarray(value)
        scores = self.scores()
        known = jnp.take_along_axis(scores, jnp.maximum(value, 0)[:, None], 1)[:, 0]
        return jnp.where(value >= 0, known, jax.nn.logsumexp(scores, 1))

    def log_truth(self) -> Float[Array, "i k"]:
        """log p(truth k | rows of item i); its gold class is certain."""
        return jax.nn.log_softmax(self.possible_scores(), 1)

    def possible_scores(self) -> Float[Array, "i k"]:
        """The scores, -inf for the classes that gold rules out."""
        gold = self.rows.gold[:, None]
        return jnp.where((gold >= 0) & (gold != jnp.arange(self.rows.num_classes)), -jnp.inf, self.scores())

    def draw_truth(self, key: Array) -> Int[Array, " i"]:
        """True classes of new items, from the class prior (features, where there are any, are those of the
        items).
        """
        return jax.random.categorical(
            key, jnp.broadcast_to(self.log_class, (self.rows.num_items, self.rows.num_classes))
        )

    def draw_labels(self, key: Array, truth: Int[Array, " i"]) -> Int[Array, " n"]:
        """A new label for each row, given true classes; weights play no part."""
        return jax.random.categorical(key, self.log_table[self.table_of_row, truth[self.rows.item]])


def observe(
    rows: Rows,
    log_class: Float[Array, "*i k"],
    log_table: Float[Array, "t k l"],
    table_of_row: Int[Array, " n"],
) -> None:
    """Condition on the labels of every item, and on its gold class where known."""
    numpyro.sample("label", AnnotatedItems(rows, log_class, log_table, table_of_row), obs=rows.gold)


def sample(name: str, distribution: Any) -> Array:
    """Declare a latent site."""
    return cast(Array, numpyro.sample(name, distribution))


def deterministic(name: str, value: Array) -> Array:
    """Declare what follows from other sites."""
    return cast(Array, numpyro.deterministic(name, value))
