r"""What LIA's networks are made of, and how far each of their numbers may lie from where it starts: the part that both declarations share.

Every number has a normal prior. Weights have a spread of 1 / sqrt(inputs of the layer), so that a network gives numbers of the same
size however wide it is, for inputs whose mean square is 1:

    input of item i         x_i (features, mean square 1), or an embedding ~ Normal(0, 1)
    truth logits            Normal(0, truth) given x, plus a bias ~ Normal(0, class_logit)
    difficulty D_i          Normal(0, difficulty) given x, of shape (k, l, r)
    competence C_j          mean + Normal(0, competence): a tensor of j's own, or linear in j's features or in j's embedding
    mean                    Normal(centre, population): softmax(centre[k]) is right with probability `accuracy`

Where several questions are asked of an item (LIA-ML), each has an embedding u ~ Normal(0, 1). The last layer of its truth network is
truth_weight + u truth_question, so questions share what they have in common and differ where they must; what u question_competence
adds to the scores of labels is the same for all annotators.

k true class, l label, r latent dimension of difficulty and competence (Platanios et al. 2020, equation 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int

from probcrowd.data.rows import Rows

BIAS = 0.3  # spread of the biases of hidden layers


@dataclass(frozen=True)
class LIAPrior:
    """Spreads (standard deviations of logits) and the networks' sizes.

    hidden: widths of the hidden layers of the truth network, and of the difficulty network unless it has its own; none: linear.
    latent: the number R of terms of exp(difficulty) * exp(competence) that a probability sums over.
    item_embedding, question_embedding: widths where they are learned. annotator_embedding: likewise; 0: a tensor for each annotator.

    Raises:
        ValueError: a spread that is not positive, an accuracy outside (0, 1), sizes below 1.
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
        spreads = (self.truth, self.difficulty, self.competence, self.population, self.class_logit)
        if not all(math.isfinite(spread) and spread > 0 for spread in spreads) or not 0 < self.accuracy < 1:
            raise ValueError(f"spreads must be finite and > 0 and the accuracy between 0 and 1: {self}")
        if (
            min(
                (
                    *self.hidden,
                    *(self.difficulty_hidden or ()),
                    self.latent,
                    self.item_embedding,
                    self.question_embedding,
                )
            )
            < 1
            or self.annotator_embedding < 0
        ):
            raise ValueError(f"sizes of networks must be at least 1: {self}")


@dataclass(frozen=True)
class Inputs:
    """What the networks see. Arrays are NumPy's, or JAX's inside a compiled function.

    item_features: (i, p), or None: embeddings are learned. annotator_features: (j, f), or None. question: the question (code) that each
    item asks where several are asked of the same thing, or None; num_questions: how many there are.
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
    """The latent sites of the model by name, in the order in which they are declared.

    truth_weight_0, truth_bias_0, ...: hidden layers; truth_weight, truth_bias: the last. difficulty_... likewise, without a last bias, which
    would do what competence_mean does.
    """
    classes = rows.num_classes
    tensor = (classes, classes, prior.latent)
    made: dict[str, Site] = {}

    def add(name: str, shape: tuple[int, ...], spread: float) -> None:
        made[name] = Site(np.zeros(shape), spread)

    item_width = prior.item_embedding if inputs.item_features is None else inputs.item_features.shape[1]
    if inputs.item_features is None:
        add("item_embedding", (rows.num_items, item_width), 1.0)
    if inputs.question is not None:
        add("question_embedding", (inputs.num_questions, prior.question_embedding), 1.0)
    for network, spread, output in (
        ("truth", prior.truth, (classes,)),
        ("difficulty", prior.difficulty, tensor),
    ):
        width = item_width
        for layer, units in enumerate(prior.layers[network]):
            add(f"{network}_weight_{layer}", (width, units), 1 / math.sqrt(width))
            add(f"{network}_bias_{layer}", (units,), BIAS)
            width = units
        add(f"{network}_weight", (width, *output), spread / math.sqrt(width))
    add("truth_bias", (classes,), prior.class_logit)
    made["competence_mean"] = Site(_centre(prior, classes), prior.population)
    if inputs.annotator_features is not None:
        width = inputs.annotator_features.shape[1]
        add("competence_weight", (width, *tensor), prior.competence / math.sqrt(width))
    elif prior.annotator_embedding:
        add("annotator_embedding", (rows.num_annotators, prior.annotator_embedding), 1.0)
        add(
            "competence_weight",
            (prior.annotator_embedding, *tensor),
            prior.competence / math.sqrt(prior.annotator_embedding),
        )
    else:
        add("competence_offset", (rows.num_annotators, *tensor), prior.competence)
    if inputs.question is not None:
        width = made["truth_weight"].loc.shape[0]
        add(
            "truth_question",
            (prior.question_embedding, width, classes),
            prior.truth / math.sqrt(width * prior.question_embedding),
        )
        add(
            "truth_question_bias",
            (prior.question_embedding, classes),
            prior.class_logit / math.sqrt(prior.question_embedding),
        )
        add(
            "question_competence",
            (prior.question_embedding, *tensor),
            prior.competence / math.sqrt(prior.question_embedding),
        )
    return made


def _centre(prior: LIAPrior, classes: int) -> Float64[np.ndarray, "k l r"]:
    odds = prior.accuracy / (1 - prior.accuracy) * max(classes - 1, 1)
    return np.repeat((math.log(odds) * np.eye(classes))[:, :, None], prior.latent, 2)
