r"""Generalised EM for LIA: what its steps raise, as the paper writes it, as its authors coded it, and as a likelihood (Platanios et al. 2020).

    a_ik = log h_k(x_i) + sum_n log Q[i,j_n,k,l_n]            over the rows n of item i
    E    q_ik = softmax_k(a_ik)                                equation 4
    M    sum_i sum_k q_ik (log h_k(x_i) + sum_n log Q[i,j_n,k,l_n])                       equations 5 to 7
    last joint      sum_i log sum_k exp a_ik                   the marginal likelihood of all labels of an item together
         composite  sum_n log sum_k h_k(x_i) Q[i,j_n,k,l_n]    equation 9: of each label by itself, as if nobody else had labelled its item

                         joint      as_written    as_coded
    h in the E step      yes        yes           no: all classes alike
    posterior            soft       soft          hard: 1 where q >= 1/2, so two classes in a tie, perhaps none of several classes
    column normaliser    no         yes           no              Q[i,j,k,l] / sum_k' Q[i,j,k',l] in the place of Q, in M and last
    log h counted        per item   per item      per label of the item
    last                 joint      composite     composite, without the normaliser
    prior                yes        no            no

With `joint`, M is the expected complete log posterior, so a step that raises it never lowers the log posterior. With the column normaliser
it is not: q then multiplies reverse conditionals p(k | l), and an exact M step lowers the marginal likelihood and drives all items into one
class. The composite objective forgets that labels of one item share a truth, and is flat where h is the same for all items; gold counts in it
once per label of the item, and not at all without labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from probcrowd.models.lia.lia import LIABatch, Parameters, label_log_likelihood, log_joint, log_truth
from probcrowd.models.lia.prior import Site
from probcrowd.models.meta.prototype import LOG_ZERO

ObjectiveName = Literal["joint", "composite", "as_written", "as_coded"]


@dataclass(frozen=True)
class Objective:
    """The switches of the table above. answer: whether the label of an item is read off q or, as the authors' first code does, off h."""

    truth_in_e_step: bool = True
    hard: bool = False
    column_normaliser: bool = False
    truth_per_label: bool = False
    last: Literal["joint", "composite"] = "joint"
    prior: bool = True
    answer: Literal["posterior", "truth network"] = "posterior"


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
        answer="truth network",
    ),
}
assert tuple(OBJECTIVES) == get_args(ObjectiveName)


def e_step(
    parameters: Parameters, said: LIABatch, objective: Objective
) -> tuple[Float[Tensor, "i k"], Float[Tensor, ""]]:
    """q, and the log marginal likelihood of what was said, whatever the objective."""
    log_class, evidence = log_truth(parameters, said), label_log_likelihood(parameters, said)
    joint = log_joint(log_class, evidence, said)
    scores = joint if objective.truth_in_e_step else log_joint(torch.zeros_like(log_class), evidence, said)
    q = torch.softmax(scores, -1)
    if objective.hard:  # a tie that rounding breaks is a tie
        q = (q >= 0.5 - 4 * torch.finfo(q.dtype).eps).to(q.dtype)
    return q, torch.logsumexp(joint, -1).sum()


def m_step_objective(
    parameters: Parameters, said: LIABatch, q: Float[Tensor, "i k"], objective: Objective
) -> Float[Tensor, ""]:
    """What the M step raises, without the prior."""
    log_class = log_truth(parameters, said)
    evidence = _normalised(label_log_likelihood(parameters, said), objective) * said.weight[:, None]
    if objective.truth_per_label:
        log_class = (
            log_class * log_class.new_zeros(len(log_class)).index_add(0, said.item, said.weight)[:, None]
        )
    return (q * log_class).sum() + (q[said.item] * evidence).sum()


def last_objective(parameters: Parameters, said: LIABatch, objective: Objective) -> Float[Tensor, ""]:
    """What the steps after EM raise, without the prior."""
    log_class = log_truth(parameters, said)
    evidence = _normalised(label_log_likelihood(parameters, said), objective)
    if objective.last == "joint":
        return torch.logsumexp(log_joint(log_class, evidence, said), -1).sum()
    log_class = torch.where(said.possible, log_class, LOG_ZERO)
    return (torch.logsumexp(log_class[said.item] + evidence, -1) * said.weight).sum()


def log_prior(parameters: Parameters, declared: dict[str, Site]) -> Float[Tensor, ""]:
    """The normal log density of all parameters, less what it is where every one of them is at its centre."""
    terms = []
    for name, value in parameters.items():
        off = value - torch.from_numpy(declared[name].loc).to(value.dtype)
        terms.append((off * off).sum() / (2 * declared[name].scale ** 2))
    return -torch.stack(terms).sum()


def vote_shares(said: LIABatch) -> Float[Tensor, "i k"]:
    """The start: shares of an item's labels (equation 8), gold where it is known; all classes alike without either."""
    num_classes = said.possible.shape[1]
    flat = said.weight.new_zeros(len(said.place) * num_classes).index_add(
        0, said.item * num_classes + said.label, said.weight
    )
    votes = flat.view(-1, num_classes) * said.possible
    votes = torch.where(votes.sum(1, keepdim=True) > 0, votes, said.possible.to(votes.dtype))
    return votes / votes.sum(1, keepdim=True)


def _normalised(evidence: Float[Tensor, "n k"], objective: Objective) -> Float[Tensor, "n k"]:
    return torch.log_softmax(evidence, -1) if objective.column_normaliser else evidence
