r"""The Jacobian of an EM step at given responsibilities r, in closed form.

EM is r <- softmax(z(r)) with z the gradient of a convex function, so J = dT/dr = P G with both factors
symmetric and positive semi-definite: P is the Jacobian of softmax, diag(r_i) - r_i r_i' for each item, and G
= dz/dr is block diagonal over classes k:

    G[k][i, n] = (u_i - m_k).(u_n - m_k) / (tau + s_k) + 1 / (s_k + b)
                 + sum_j [ sum_l V_ijl V_njl / C_jkl  -  V_ij. V_nj. / C_jk. ]

m prototypes, s class sizes, C confusion counts with their pseudo-counts, V votes; a dot sums over labels; i
and n are both items. Hence the eigenvalues of J are real and >= 0, and all below 1 exactly where the log
posterior has a strict maximum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probcrowd.data.vote_tensors import Support, Votes
from probcrowd.inference.meta.em import confusion_counts, expected_counts
from probcrowd.models.meta.prototype import Prior

DENSE_LIMIT = 4096  # unknowns per task; the dense matrix of one task then takes 134 MB in float64


@dataclass(frozen=True)
class Jacobian:
    """P and G at a point. `inverse_counts` is 1 / C, `inverse_totals` 1 / sum_l C; 0 for absent classes."""

    responsibilities: Float[Tensor, "b i k"]
    embeddings: Float[Tensor, "b i d"]
    votes: Votes
    prototypes: Float[Tensor, "b k d"]
    inverse_precision: Float[Tensor, "b k"]
    inverse_class_counts: Float[Tensor, "b k"]
    inverse_counts: Float[Tensor, "b j l k"]
    inverse_totals: Float[Tensor, "b j k"]

    def softmax_product(self, vector: Float[Tensor, "b i k"]) -> Float[Tensor, "b i k"]:
        """Return P @ vector."""
        return self.responsibilities * (vector - (self.responsibilities * vector).sum(-1, keepdim=True))

    def logit_product(self, vector: Float[Tensor, "b i k"]) -> Float[Tensor, "b i k"]:
        """Return G @ vector: the change of the E step's logits if responsibilities change by `vector`."""
        sizes = vector.sum(1)  # (b, k)
        shift = torch.bmm(vector.transpose(1, 2), self.embeddings) - sizes[..., None] * self.prototypes
        shift = shift * self.inverse_precision[..., None]
        counts = expected_counts(vector, self.votes)
        # d ln confusion = dC / C - dC. / C.
        table = counts * self.inverse_counts - (counts.sum(2) * self.inverse_totals)[:, :, None]
        constant = sizes * self.inverse_class_counts - (shift * self.prototypes).sum(-1)
        return (
            torch.bmm(self.embeddings, shift.transpose(1, 2))
            + constant[:, None]
            + self.votes.evidence(table.flatten(1, 2))
        )

    def adjoint_product(self, vector: Float[Tensor, "b i k"]) -> Float[Tensor, "b i k"]:
        """Return J' @ vector = G P vector."""
        return self.logit_product(self.softmax_product(vector))

    def logit_matrix(self) -> Float[Tensor, "b k i i2"]:
        """Return G, one block of items x items per class."""
        centred = self.embeddings[:, None] - self.prototypes[:, :, None]  # (b, k, i, d)
        blocks = (
            centred @ centred.transpose(2, 3) * self.inverse_precision[..., None, None]
            + self.inverse_class_counts[..., None, None]
        )
        votes = self.votes.dense().matrix  # (b, i, j l)
        given = votes.unflatten(2, (self.votes.num_annotators, self.votes.num_labels)).sum(3)  # (b, i, j)
        return (
            blocks
            + torch.einsum("bip,bnp,bpk->bkin", votes, votes, self.inverse_counts.flatten(1, 2))
            - torch.einsum("bij,bnj,bjk->bkin", given, given, self.inverse_totals)
        )

    def adjoint_matrix(self) -> Float[Tensor, "b n n"]:
        """Return J' = G P with unknowns numbered item * classes + class.

        Raises:
            ValueError: more than `DENSE_LIMIT` unknowns in a task.
        """
        tasks, items, classes = self.responsibilities.shape
        if items * classes > DENSE_LIMIT:
            raise ValueError(
                f"a dense solve of {items} items x {classes} classes per task is too large: use "
                "gradient='implicit-neumann'"
            )
        softmax = (
            torch.diag_embed(self.responsibilities)
            - self.responsibilities[..., None] * self.responsibilities[..., None, :]
        )
        product = torch.einsum("bkin,bnkm->biknm", self.logit_matrix(), softmax)
        return product.reshape(tasks, items * classes, items * classes)

    def largest_eigenvalue(self, iterations: int = 60) -> Float[Tensor, " b"]:
        """Return the largest eigenvalue of J by power iteration, which approaches it from below.

        It is the Rayleigh quotient in the inner product of P.
        """
        generator = torch.Generator(device=self.responsibilities.device).manual_seed(0)
        vector = torch.randn(
            self.responsibilities.shape,
            generator=generator,
            dtype=self.responsibilities.dtype,
            device=self.responsibilities.device,
        )
        tiny = torch.finfo(vector.dtype).tiny
        quotient = vector.new_zeros(len(vector))
        for _ in range(iterations):
            projected = self.softmax_product(vector)
            moved = self.logit_product(projected)
            quotient = (projected * moved).sum((1, 2)) / (projected * vector).sum((1, 2)).clamp(min=tiny)
            vector = moved / moved.abs().amax((1, 2), keepdim=True).clamp(min=tiny)
        return quotient


def em_jacobian(responsibilities: Float[Tensor, "b i k"], support: Support, prior: Prior) -> Jacobian:
    """Return the Jacobian of `em.em_step` at these responsibilities, without a graph."""
    responsibilities, embeddings = responsibilities.detach(), support.embeddings.detach()
    sizes = responsibilities.sum(1)
    precision, class_count = (
        torch.as_tensor(number, dtype=sizes.dtype, device=sizes.device).detach()
        for number in (prior.precision, prior.class_count)
    )
    inverse_precision = 1 / (sizes + precision)
    counts = confusion_counts(responsibilities, support, prior).detach()  # (b, j, l, k)
    totals = counts.sum(2)
    return Jacobian(
        responsibilities,
        embeddings,
        support.votes,
        torch.bmm(responsibilities.transpose(1, 2), embeddings) * inverse_precision[..., None],
        inverse_precision,
        1 / (sizes + class_count),
        torch.where(counts > 0, 1 / counts, 0.0),
        torch.where(totals > 0, 1 / totals, 0.0),
    )
