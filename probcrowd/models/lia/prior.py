r"""Shapes and normal priors of LIA's parameters, shared by the Pyro and NumPyro declarations.

Weights have a standard deviation of 1 / sqrt(inputs of the layer), so that outputs have the same size however
wide a network is, for inputs whose mean square is 1:

    input of item i         x_i (features, mean square 1), or an embedding ~ Normal(0, 1)
    truth logits            Normal(0, truth) given x, plus a bias ~ Normal(0, class_logit)
    difficulty D_i          Normal(0, difficulty) given x, of shape (k, l, r)
    competence C_j          mean + Normal(0, competence): a tensor, or linear in j's features or embedding
    mean                    Normal(loc, population): softmax(loc[k]) is right with probability `accuracy`

With several questions per item (LIA-ML), each has an embedding u ~ Normal(0, 1). The last layer of its truth
network is truth_weight + u truth_question, so questions share what they have in common and differ where the
labels require it; u question_competence adds to the label logits of all annotators alike.

k true class, l label, r latent dimension of difficulty and competence (Platanios et al. 2020, equation 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int

from probcrowd.data.rows import Rows

BIAS_SCALE = 0.3  # standard deviation of the biases of hidden layers


@dataclass(frozen=True)
class LIAPrior:
    """Prior scales (standard deviations of logits) and the networks' sizes.

    hidden: widths of the hidden layers of the truth network, and of the difficulty network unless
    `difficulty_hidden` is given; empty: linear. latent: the number R of terms exp(difficulty) *
    exp(competence) summed in a probability. item_embedding, question_embedding: widths, where embeddings are
    learned. annotator_embedding: likewise; 0: a tensor per annotator.

    Raises:
        ValueError: a scale that is not positive, an accuracy outside (0, 1), sizes below 1.
    """

    truth: float = 1.0
    difficulty: float = 0.3
    competence: float = 1.0
    population: float = 0.5
    class_logit: float = 0.3
    accuracy: float = 0.7
    hidden: tuple[int, ...] = ()
    difficulty_hidden: tuple[int, ...] | None = None
    latent: int = 1
    item_embedding: int = 16
    annotator_embedding: int = 0
    question_embedding: int = 16

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """Widths of the hidden layers, by network."""
        return {
            "truth": self.hidden,
            "difficulty": self.hidden if self.difficulty_hidden is None else self.difficulty_hidden,
        }

    def __post_init__(self) -> None:
        scales = (self.truth, self.difficulty, self.competence, self.population, self.class_logit)
        if not all(math.isfinite(scale) and scale > 0 for scale in scales) or not 0 < self.accuracy < 1:
            raise ValueError(f"prior scales must be finite and > 0, and the accuracy between 0 and 1: {self}")
        widths = (*self.hidden, *(self.difficulty_hidden or ()), self.item_embedding, self.question_embedding)
        if min(*widths, self.latent) < 1 or self.annotator_embedding < 0:
            raise ValueError(f"sizes of networks must be at least 1: {self}")


@dataclass(frozen=True)
class Inputs:
    """The networks' inputs. Arrays are NumPy's, or JAX's inside a compiled function.

    item_features: (i, p); None: embeddings are learned. annotator_features: (j, f), or None. question: the
    code of each item's question, if there are several about the same thing; num_questions: their number.
    """

    item_features: Float[Any, "i p"] | None = None
    annotator_features: Float[Any, "j f"] | None = None
    question: Int[Any, " i"] | None = None
    num_questions: int = 0


@dataclass(frozen=True)
class Site:
    """A normal prior over an array of parameters: mean and standard deviation."""

    loc: Float64[np.ndarray, "..."]
    scale: float


def sites(rows: Rows, inputs: Inputs, prior: LIAPrior) -> dict[str, Site]:
    """The latent sites of the model by name, in the order of declaration.

    truth_weight_0, truth_bias_0, ...: hidden layers; truth_weight, truth_bias: the last layer. difficulty_...
    likewise, without a last bias, which competence_mean provides.
    """
    classes = rows.num_classes
    tensor = (classes, classes, prior.latent)
    result: dict[str, Site] = {}

    def add(name: str, shape: tuple[int, ...], scale: float) -> None:
        result[name] = Site(np.zeros(shape), scale)

    item_width = prior.item_embedding if inputs.item_features is None else inputs.item_features.shape[1]
    if inputs.item_features is None:
        add("item_embedding", (rows.num_items, item_width), 1.0)
    if inputs.question is not None:
        add("question_embedding", (inputs.num_questions, prior.question_embedding), 1.0)
    networks = (("truth", prior.truth, (classes,)), ("difficulty", prior.difficulty, tensor))
    for network, scale, output in networks:
        width = item_width
        for layer, units in enumerate(prior.layers[network]):
            add(f"{network}_weight_{layer}", (width, units), 1 / math.sqrt(width))
            add(f"{network}_bias_{layer}", (units,), BIAS_SCALE)
            width = units
        add(f"{network}_weight", (width, *output), scale / math.sqrt(width))
    add("truth_bias", (classes,), prior.class_logit)
    result["competence_mean"] = Site(_competence_loc(prior, classes), prior.population)
    width = prior.annotator_embedding
    if inputs.annotator_features is not None:
        width = inputs.annotator_features.shape[1]
    elif width:
        add("annotator_embedding", (rows.num_annotators, width), 1.0)
    if width:
        add("competence_weight", (width, *tensor), prior.competence / math.sqrt(width))
    else:
        add("competence_offset", (rows.num_annotators, *tensor), prior.competence)
    if inputs.question is not None:
        questions, width = prior.question_embedding, result["truth_weight"].loc.shape[0]
        add("truth_question", (questions, width, classes), prior.truth / math.sqrt(width * questions))
        add("truth_question_bias", (questions, classes), prior.class_logit / math.sqrt(questions))
        add("question_competence", (questions, *tensor), prior.competence / math.sqrt(questions))
    return result


def _competence_loc(prior: LIAPrior, classes: int) -> Float64[np.ndarray, "k l r"]:
    odds = prior.accuracy / (1 - prior.accuracy) * max(classes - 1, 1)
    return np.repeat((math.log(odds) * np.eye(classes))[:, :, None], prior.latent, 2)
