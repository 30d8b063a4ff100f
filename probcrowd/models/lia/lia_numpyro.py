"""LIA in NumPyro, with the same sites as `probcrowd.models.lia.lia`; see there for the mathematics."""

from __future__ import annotations

from dataclasses import fields

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jaxtyping import Float

from probcrowd.data.rows import Rows
from probcrowd.models.aggregation.observed_numpyro import observe, sample
from probcrowd.models.lia.prior import Inputs, LIAPrior, sites

# Inside a compiled function the arrays are traced and the number of questions is a constant
jax.tree_util.register_dataclass(
    Inputs,
    data_fields=[field.name for field in fields(Inputs) if field.name != "num_questions"],
    meta_fields=["num_questions"],
)


def lia(inputs: Inputs, rows: Rows, prior: LIAPrior) -> None:
    """Declare the networks' weights and the truth of every item, and condition on the labels."""
    parameters = {
        name: sample(name, dist.Normal(jnp.asarray(site.loc), site.scale).to_event(site.loc.ndim))
        for name, site in sites(rows, inputs, prior).items()
    }
    features = (
        parameters["item_embedding"] if inputs.item_features is None else jnp.asarray(inputs.item_features)
    )
    hidden = _hidden_layers(parameters, "truth", features)
    truth = hidden @ parameters["truth_weight"] + parameters["truth_bias"]
    difficulty = jnp.tensordot(
        _hidden_layers(parameters, "difficulty", features), parameters["difficulty_weight"], 1
    )  # (i, k, l, r)
    if inputs.question is not None:
        embedding = parameters["question_embedding"][inputs.question]  # (i, e)
        truth = (
            truth
            + jnp.einsum("ie,ewk,iw->ik", embedding, parameters["truth_question"], hidden)
            + embedding @ parameters["truth_question_bias"]
        )
        difficulty = difficulty + jnp.tensordot(embedding, parameters["question_competence"], 1)
    logits = (
        difficulty[rows.item] + (parameters["competence_mean"] + _offset(parameters, inputs))[rows.annotator]
    )
    log_rows = jax.nn.log_softmax(jax.nn.logsumexp(logits, -1), -1)  # (n, k, l)
    observe(rows, jax.nn.log_softmax(truth, -1), log_rows, jnp.arange(rows.label.shape[0]))


def _offset(parameters: dict[str, Array], inputs: Inputs) -> Float[Array, "j k l r"]:
    if "competence_offset" in parameters:
        return parameters["competence_offset"]
    features = (
        parameters["annotator_embedding"]
        if inputs.annotator_features is None
        else jnp.asarray(inputs.annotator_features)
    )
    return jnp.tensordot(features, parameters["competence_weight"], 1)


def _hidden_layers(
    parameters: dict[str, Array], network: str, inputs: Float[Array, "i w"]
) -> Float[Array, "i v"]:
    layer = 0
    while f"{network}_weight_{layer}" in parameters:
        weight, bias = parameters[f"{network}_weight_{layer}"], parameters[f"{network}_bias_{layer}"]
        inputs = jax.nn.selu(inputs @ weight + bias)
        layer += 1
    return inputs
