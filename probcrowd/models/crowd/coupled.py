r"""Coupled cross-entropy, GeoCrowdNet and TraceReg as a Pyro model (Ibrahim, Nguyen & Fu 2023).

    f = softmax(network(x_i))            confusion[j] = softmax over l of logits[j, k]    (point estimates)

        .-- rows n --------------------------------------------.
        |  label[n] ~ Categorical( sum_k f[i_n, k] confusion[j_n, k, :] )   counted weight[n] times
        '------------------------------------------------------'
    prior:  exp( |S| strength log det F F' ),  exp( |S| strength log det W' W ),
            exp( -|S| strength mean_j trace confusion[j] )

Equations 1, 2, 6, 8 and 9. The likelihood is a composite one: every label has its own draw of the truth,
although the labels of an item share it. |S| is the total weight of all labels, so the log density is -|S|
times the loss of `probcrowd.models.crowd.mixture.Mixture`, and SVI with an empty guide trains both networks.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor, nn

from probcrowd.data.tensors import AnnotationTensors
from probcrowd.models.crowd.base import NetworkOutput
from probcrowd.models.crowd.mixture import Mixture
from probcrowd.models.crowd.volume import by_class, log_volume


def coupled(
    network: nn.Module, channel: Mixture, inputs: Float[Tensor, "i ..."], labels: AnnotationTensors
) -> None:
    """Declare the model. The parameters of both modules are learned; the channel holds the terms' strengths.

    Sites: label, and truth_volume, confusion_volume and trace where their strengths are not 0.
    """
    pyro.module("network", network)
    pyro.module("channel", channel)
    log_truth = torch.log_softmax(network(inputs), -1)
    total, log_confusion = labels.weight.sum(), torch.log_softmax(channel.logits, -1)
    with pyro.plate("rows", len(labels.item)), poutine.scale(scale=labels.weight):
        pyro.sample(
            "label",
            dist.Categorical(logits=channel.log_label(NetworkOutput(log_truth), labels)),
            obs=labels.label,
        )
    if channel.truth_volume:
        pyro.factor("truth_volume", total * channel.truth_volume * log_volume(log_truth)[0])
    if channel.confusion_volume:
        pyro.factor(
            "confusion_volume", total * channel.confusion_volume * log_volume(by_class(channel.logits))[0]
        )
    if channel.trace:
        pyro.factor(
            "trace", -total * channel.trace * log_confusion.diagonal(dim1=1, dim2=2).exp().sum(1).mean()
        )
