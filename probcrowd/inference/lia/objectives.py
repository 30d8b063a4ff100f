r"""Objectives of generalised EM for LIA (Platanios et al. 2020): as written, as coded, and as a likelihood.

    a_ik = log h_k(x_i) + sum_n log Q[i,j_n,k,l_n]            over the rows n of item i
    E    q_ik = softmax_k(a_ik)                                equation 4
    M    sum_i sum_k q_ik (log h_k(x_i) + sum_n log Q[i,j_n,k,l_n])                       equations 5 to 7
    last joint      sum_i log sum_k exp a_ik              the likelihood of all labels of an item together
         composite  sum_n log sum_k h_k(x_i) Q[i,j_n,k,l_n]    equation 9: of each label alone

                         joint      as_written    as_coded
    h in the E step      yes        yes           no: uniform
    posterior            soft       soft          hard: 1 where q >= 1/2 (two in a tie, or none)
    column normaliser    no         yes           no
    log h counted        per item   per item      per label of the item
    last                 joint      composite     composite, without the normaliser
    prior                yes        no            no

The column normaliser puts Q[i,j,k,l] / sum_k' Q[i,j,k',l] in the place of Q, in M and last.

With `joint`, M is the expected complete log posterior, so a step that raises it never lowers the log
posterior. With the column normaliser it is not: q then multiplies reverse conditionals p(k | l), and an exact
M step lowers the marginal likelihood and drives all items into one class. The composite objective ignores
that labels of one item share a truth, and is flat if h is the same for all items; gold counts in it once per
label of the item, and not at all without labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from probcrowd.data.table import vote_shares
from probcrowd.models.lia.lia import LIABatch, Parameters, label_log_likelihood, log_joint, log_truth
from probcrowd.models.lia.prior import Site
from probcrowd.models.meta.prototype import LOG_ZERO

ObjectiveName = Literal["joint", "composite", "as_written", "as_coded"]


@dataclass(frozen=True)
class Objective:
    """The rows of the table above. prediction: from q or, as in the authors' first code, from h."""

    truth_in_e_step: bool = True
    hard: bool = False
    column_normaliser: bool = False
    truth_per_label: bool = False
    last: Literal["joint", "composite"] = "joint"
    prior: bool = True
    prediction: Literal["posterior", "truth network"] = "posterior"


OBJECTIVES: dict[ObjectiveName, Objective] = {
    "joint": Objective(),
    "composite": Objective(last="composite"),
    "as_written": Objective(column_normaliser=True, last="composite", prior=False),
    "as_coded": Objective(
        truth_in_e_step=False,
        hard=True,
        truth_per_label=True,
        last="composite",
        prior=False,
        prediction="truth network",
    ),
}
assert tuple(OBJECTIVES) == get_args(ObjectiveName)


def e_step(
    parameters: Parameters, batch: LIABatch, objective: Objective
) -> tuple[Float[Tensor, "b k"], Float[Tensor, ""]]:
    """q, and the log marginal likelihood of the labels, whatever the objective."""
    log_class, evidence = log_truth(parameters, batch), label_log_likelihood(parameters, batch)
    joint = log_joint(log_class, evidence, batch)
    scores = joint if objective.truth_in_e_step else log_joint(torch.zeros_like(log_class), evidence, batch)
    q = torch.softmax(scores, -1)
    if objective.hard:  # a tie broken by rounding is still a tie
        q = (q >= 0.5 - 4 * torch.finfo(q.dtype).eps).to(q.dtype)
    return q, torch.logsumexp(joint, -1).sum()


def m_step_objective(
    parameters: Parameters, batch: LIABatch, q: Float[Tensor, "b k"], objective: Objective
) -> Float[Tensor, ""]:
    """The objective of the M step, without the prior."""
    rows, log_class = batch.annotations, log_truth(parameters, batch)
    evidence = _normalise(label_log_likelihood(parameters, batch), objective) * rows.weight[:, None]
    if objective.truth_per_label:
        number = log_class.new_zeros(len(log_class)).index_add(0, rows.item, rows.weight)
        log_class = log_class * number[:, None]
    return (q * log_class).sum() + (q[rows.item] * evidence).sum()


def last_objective(parameters: Parameters, batch: LIABatch, objective: Objective) -> Float[Tensor, ""]:
    """The objective of the steps after EM, without the prior."""
    rows, log_class = batch.annotations, log_truth(parameters, batch)
    evidence = _normalise(label_log_likelihood(parameters, batch), objective)
    if objective.last == "joint":
        return torch.logsumexp(log_joint(log_class, evidence, batch), -1).sum()
    log_class = torch.where(batch.possible, log_class, LOG_ZERO)
    return (torch.logsumexp(log_class[rows.item] + evidence, -1) * rows.weight).sum()


def log_prior(parameters: Parameters, declared: dict[str, Site]) -> Float[Tensor, ""]:
    """The normal log density of all parameters, relative to its value at their means."""
    terms = []
    for name, value in parameters.items():
        deviation = value - torch.from_numpy(declared[name].loc).to(value.dtype)
        terms.append((deviation * deviation).sum() / (2 * declared[name].scale ** 2))
    return -torch.stack(terms).sum()


def initial_responsibilities(batch: LIABatch) -> Float[Tensor, "b k"]:
    """Return the initial q: vote shares (equation 8), gold if known; uniform without either."""
    votes = batch.annotations.votes(batch.possible.shape[1]) * batch.possible
    return vote_shares(torch.where(votes.sum(1, keepdim=True) > 0, votes, batch.possible.to(votes.dtype)))


def _normalise(evidence: Float[Tensor, "n k"], objective: Objective) -> Float[Tensor, "n k"]:
    return torch.log_softmax(evidence, -1) if objective.column_normaliser else evidence
