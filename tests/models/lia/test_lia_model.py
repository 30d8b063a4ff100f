"""LIA's declarations in Pyro and NumPyro: both densities equal loops over equations 1 and 2, to 1e-10."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from itertools import permutations
from typing import Any

import jax
import numpy as np
import pyro
import pytest
import torch
from annotation_loops import normal
from numpyro.infer.hmc import hmc
from numpyro.infer.util import log_density as numpyro_log_density
from pyro.infer import TraceEnum_ELBO, config_enumerate

from probcrowd.data.rows import Rows
from probcrowd.models.lia import lia, lia_numpyro
from probcrowd.models.lia.prior import Inputs, LIAPrior, sites

ITEMS, ANNOTATORS, CLASSES, ROWS, QUESTIONS = 6, 4, 3, 14, 2
SPREADS = {
    "truth": 0.8,
    "difficulty": 0.5,
    "competence": 1.3,
    "population": 0.4,
    "class_logit": 0.9,
    "accuracy": 0.6,
}
WIDTHS = {"item_embedding": 2, "question_embedding": 3}
# what is known of items, of annotators, the rank R, hidden layers, those of the difficulty, several questions
CASES = [
    ("features", "table", 1, (), None, False),
    ("features", "table", 3, (3,), None, False),
    ("features", "embedding", 1, (3, 2), None, True),
    ("features", "embedding", 3, (), (3,), False),
    ("features", "features", 1, (3,), (), True),
    ("features", "features", 3, (3, 2), (2,), False),
    ("embedding", "table", 1, (3, 2), None, False),
    ("embedding", "table", 3, (), None, True),
    ("embedding", "embedding", 1, (), (), False),
    ("embedding", "embedding", 3, (3,), (2,), True),
    ("embedding", "features", 1, (), (3,), True),
    ("embedding", "features", 3, (3, 2), (), False),
]


pytestmark = pytest.mark.usefixtures("double_precision")


def some_rows(seed: int = 0) -> Rows:
    """Weighted rows of three classes with some gold; items 2 and 5 and annotator 3 have no labels."""
    rng = np.random.default_rng(seed)
    return Rows(
        np.sort(rng.choice([0, 1, 3, 4], ROWS)),
        rng.integers(0, ANNOTATORS - 1, ROWS),
        rng.integers(0, CLASSES, ROWS),
        rng.uniform(0.5, 2, ROWS),
        np.array([-1, 2, -1, 0, -1, 1]),
        ANNOTATORS,
        CLASSES,
    )


def problem(
    items: str,
    annotators: str,
    latent: int,
    hidden: tuple[int, ...],
    difficulty: tuple[int, ...] | None,
    asked: bool,
    seed: int = 0,
) -> tuple[Inputs, Rows, LIAPrior, dict[str, np.ndarray]]:
    """Inputs, rows, sizes and a random point."""
    rng = np.random.default_rng(seed)
    inputs = Inputs(
        rng.normal(size=(ITEMS, 2)) if items == "features" else None,
        rng.normal(size=(ANNOTATORS, 2)) if annotators == "features" else None,
        rng.permutation(np.arange(ITEMS) % QUESTIONS) if asked else None,
        QUESTIONS if asked else 0,
    )
    layers = {"latent": latent, "hidden": hidden, "difficulty_hidden": difficulty}
    prior = LIAPrior(**SPREADS, **WIDTHS, **layers, annotator_embedding=2 if annotators == "embedding" else 0)
    rows = some_rows(seed)
    point = {
        name: site.loc + site.scale * rng.normal(size=site.loc.shape)
        for name, site in sites(rows, inputs, prior).items()
    }
    return inputs, rows, prior, point


def on_torch(point: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in point.items()}


def said_of(rows: Rows, inputs: Inputs) -> lia.LIABatch:
    return lia.LIABatch.of(rows, inputs, torch.float64)


def hidden_units(point: dict[str, np.ndarray], network: str, seen: list[float]) -> list[float]:
    for layer in range(10):
        if f"{network}_weight_{layer}" not in point:
            break
        weight, bias = point[f"{network}_weight_{layer}"], point[f"{network}_bias_{layer}"]
        sums = [bias[u] + sum(x * weight[w, u] for w, x in enumerate(seen)) for u in range(len(bias))]
        seen = [1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * (math.exp(x) - 1)) for x in sums]
    return seen


def seen_of(point: dict[str, np.ndarray], inputs: Inputs, i: int) -> list[float]:
    return list(point["item_embedding"][i] if inputs.item_features is None else inputs.item_features[i])


def asked_of(point: dict[str, np.ndarray], inputs: Inputs, i: int) -> list[float]:
    """The embedding of the item's question; nothing without one."""
    return [] if inputs.question is None else list(point["question_embedding"][inputs.question[i]])


def class_probabilities(point: dict[str, np.ndarray], inputs: Inputs, i: int) -> list[float]:
    """h(x_i), whose last layer depends on the question."""
    inner, odds = hidden_units(point, "truth", seen_of(point, inputs, i)), []
    for k, logit in enumerate(point["truth_bias"]):
        for w, x in enumerate(inner):
            logit = logit + x * point["truth_weight"][w, k]
        for e, u in enumerate(asked_of(point, inputs, i)):
            logit = logit + u * point["truth_question_bias"][e, k]
            logit = logit + u * sum(x * point["truth_question"][e, w, k] for w, x in enumerate(inner))
        odds.append(math.exp(logit))
    return [value / sum(odds) for value in odds]


def chances(point: dict[str, np.ndarray], inputs: Inputs, i: int, j: int, k: int) -> list[float]:
    """Q[i,j,k,:]: the sum over r of products, then a division by their sum."""
    inner = hidden_units(point, "difficulty", seen_of(point, inputs, i))
    labels, latent = point["competence_mean"].shape[1:]
    products = []
    for label in range(labels):
        total = 0.0
        for r in range(latent):
            difficulty = sum(x * point["difficulty_weight"][w, k, label, r] for w, x in enumerate(inner))
            competence = point["competence_mean"][k, label, r]
            if "competence_offset" in point:
                competence += point["competence_offset"][j, k, label, r]
            else:
                known = (
                    point["annotator_embedding"][j]
                    if inputs.annotator_features is None
                    else inputs.annotator_features[j]
                )
                competence += sum(x * point["competence_weight"][w, k, label, r] for w, x in enumerate(known))
            competence += sum(
                u * point["question_competence"][e, k, label, r]
                for e, u in enumerate(asked_of(point, inputs, i))
            )
            total += math.exp(difficulty) * math.exp(competence)
        products.append(total)
    return [value / sum(products) for value in products]


def item_terms(point: dict[str, np.ndarray], inputs: Inputs, rows: Rows) -> list[float]:
    """log p(rows of item i), with its gold class if it has one."""
    terms = []
    for i in range(rows.num_items):
        truth, total = class_probabilities(point, inputs, i), 0.0
        for k in range(rows.num_classes):
            if rows.gold[i] < 0 or rows.gold[i] == k:
                value = truth[k]
                for n in range(len(rows.item)):
                    if rows.item[n] == i:
                        value *= (
                            chances(point, inputs, i, rows.annotator[n], k)[rows.label[n]] ** rows.weight[n]
                        )
                total += value
        terms.append(math.log(total))
    return terms


def log_prior(point: dict[str, np.ndarray]) -> float:
    """Every spread by hand, from the names of the sites and SPREADS."""
    total = 0.0
    for name, value in point.items():
        centre, inputs = np.zeros(value.shape), value.shape[0]
        if name == "competence_mean":  # right with odds .6 : .4, shared by the classes - 1 others
            spread = 0.4
            centre[range(CLASSES), range(CLASSES)] = math.log(0.6 / 0.4 * (CLASSES - 1))
        elif name.endswith("_embedding"):
            spread = 1.0
        elif name == "truth_bias":
            spread = 0.9
        elif "_bias_" in name:
            spread = 0.3
        elif name == "competence_offset":
            spread = 1.3
        elif name in ("truth_question", "truth_question_bias"):  # units and widths of the embedding together
            spread = 0.8 / math.sqrt(inputs * value.shape[1]) if value.ndim == 3 else 0.9 / math.sqrt(inputs)
        else:
            size = {
                "truth_weight": 0.8,
                "difficulty_weight": 0.5,
                "competence_weight": 1.3,
                "question_competence": 1.3,
            }.get(name, 1.0)
            spread = size / math.sqrt(inputs)
        total += sum(normal(x, c, spread) for x, c in zip(value.ravel(), centre.ravel(), strict=True))
    return total


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pyros_density_is_numpyros_and_the_loops(case: Any) -> None:
    inputs, rows, prior, point = problem(*case)
    expected = log_prior(point) + sum(item_terms(point, inputs, rows))
    at = pyro.poutine.condition(lia.lia, data=on_torch(point))
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(
        config_enumerate(at), lambda *_: None, inputs, rows, prior
    )
    np.testing.assert_allclose(-loss, expected, rtol=0, atol=1e-10)
    density = jax.jit(
        lambda known, said, values: numpyro_log_density(lia_numpyro.lia, (known, said, prior), {}, values)[0]
    )
    np.testing.assert_allclose(float(density(inputs, rows, point)), expected, rtol=0, atol=1e-10)
    said, parameters = said_of(rows, inputs), on_torch(point)
    joint = lia.log_joint(lia.log_truth(parameters, said), lia.label_log_likelihood(parameters, said), said)
    np.testing.assert_allclose(
        torch.logsumexp(joint, -1), item_terms(point, inputs, rows), rtol=0, atol=1e-10
    )


def test_numpyro_takes_arrays_of_numpy_as_well() -> None:
    inputs, rows, prior, point = problem("features", "features", 1, (3,), (), True)
    density = jax.jit(
        lambda values: numpyro_log_density(lia_numpyro.lia, (inputs, rows, prior), {}, values)[0]
    )
    np.testing.assert_allclose(
        float(density(point)), log_prior(point) + sum(item_terms(point, inputs, rows)), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("latent", [1, 2, 3])
def test_rows_sum_to_one_whatever_the_rank_and_to_the_rank_in_the_wrong_order(latent: int) -> None:
    logits = 3 * torch.randn(5, CLASSES, CLASSES, latent)
    rows = lia.log_confusion(logits).exp()
    torch.testing.assert_close(rows.sum(-1), torch.ones(5, CLASSES), rtol=0, atol=1e-12)
    products = logits.exp().sum(-1)
    torch.testing.assert_close(rows, products / products.sum(-1, keepdim=True), rtol=0, atol=1e-12)
    wrong = torch.logsumexp(
        torch.log_softmax(logits, -2), -1
    ).exp()  # softmax over the labels, then the sum over r
    torch.testing.assert_close(wrong.sum(-1), torch.full((5, CLASSES), float(latent)), rtol=0, atol=1e-12)
    assert (float((wrong / latent - rows).abs().max()) > 0.05) is (latent > 1)


def test_what_difficulty_gains_and_competence_loses_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    inputs, rows = Inputs(np.eye(ITEMS)), some_rows()  # one column per item: difficulties are free
    point = {name: rng.normal(size=site.loc.shape) for name, site in sites(rows, inputs, LIAPrior()).items()}
    said = said_of(rows, inputs)
    plain = lia.label_log_likelihood(on_torch(point), said)

    def change(**more: np.ndarray) -> float:
        moved = point | {name: point[name] + each for name, each in more.items()}
        return float((lia.label_log_likelihood(on_torch(moved), said) - plain).abs().max())

    assert (
        change(difficulty_weight=rng.normal(size=(ITEMS, CLASSES, 1, 1))) < 1e-10
    )  # a number for all labels of a row of D_i
    assert change(competence_offset=rng.normal(size=(ANNOTATORS, CLASSES, 1, 1))) < 1e-10  # of a row of C_j
    both = rng.normal(size=(CLASSES, CLASSES, 1))
    assert change(difficulty_weight=both, competence_mean=-both) < 1e-10
    assert change(difficulty_weight=both) > 0.1
    assert change(difficulty_weight=rng.normal(size=(ITEMS, 1, CLASSES, 1))) > 0.1
    assert change(competence_offset=rng.normal(size=(ANNOTATORS, 1, CLASSES, 1))) > 0.1


def assert_same_batch(left: lia.LIABatch, right: lia.LIABatch, *, items: bool = True) -> None:
    """Assert equal tensors; `items`: also the items' positions in the whole table and their mean weight."""
    names = [
        "item",
        "annotator",
        "label",
        "weight",
        "starts",
        *(["items", "weight_per_item"] if items else []),
    ]
    pairs = [(name, getattr(left.annotations, name), getattr(right.annotations, name)) for name in names]
    others = [field.name for field in fields(lia.LIABatch) if field.name != "annotations"]
    pairs += [(name, getattr(left, name), getattr(right, name)) for name in others]
    for name, one, other in pairs:
        both = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
        assert torch.equal(one, other) if both else one == other, name


def rebuilt(rows: Rows, inputs: Inputs, items: list[int]) -> lia.LIABatch:
    """Those items as a table of their own."""
    own = [np.flatnonzero(rows.item == item) for item in items]
    row = np.concatenate([np.zeros(0, np.int64), *own])
    item = np.repeat(np.arange(len(items)), [len(each) for each in own])
    some = Rows(
        item, rows.annotator[row], rows.label[row], rows.weight[row], rows.gold[items], ANNOTATORS, CLASSES
    )
    features = None if inputs.item_features is None else inputs.item_features[items]
    question = None if inputs.question is None else inputs.question[items]
    return said_of(some, replace(inputs, item_features=features, question=question))


@pytest.mark.parametrize("kind", ["features", "embedding"])
@pytest.mark.parametrize(
    "items", [[0, 1, 2, 3, 4, 5], [4, 0, 3], [5, 2], [2], [1, 4, 1, 2, 1], [5, 3, 0], []], ids=str
)
def test_a_part_is_its_items_as_a_table_of_their_own(items: list[int], kind: str) -> None:
    inputs, rows, _, point = problem(kind, "features", 3, (3,), None, True)
    said, parameters = said_of(rows, inputs), on_torch(point)
    part = said.select(torch.tensor(items, dtype=torch.long))
    assert_same_batch(part, rebuilt(rows, inputs, items), items=False)
    assert part.annotations.items.tolist() == items
    both = [
        lia.log_joint(lia.log_truth(parameters, each), lia.label_log_likelihood(parameters, each), each)
        for each in (said, part)
    ]
    torch.testing.assert_close(both[1], both[0][items], rtol=0, atol=1e-12)


def test_a_part_of_a_part_is_the_part_of_both() -> None:
    inputs, rows, _, point = problem("embedding", "table", 1, (), None, True)
    said, first, second = said_of(rows, inputs), torch.tensor([4, 1, 3, 2, 1, 0]), torch.tensor([3, 4, 0, 2])
    part = said.select(first).select(second)
    assert_same_batch(part, said.select(first[second]))
    assert part.annotations.items.tolist() == [2, 1, 4, 3]
    seen = lia.item_inputs(on_torch(point), part)
    torch.testing.assert_close(
        seen, lia.item_inputs(on_torch(point), said)[part.annotations.items], rtol=0, atol=0
    )
    torch.testing.assert_close(
        seen[:, :2], torch.from_numpy(point["item_embedding"][[2, 1, 4, 3]]), rtol=0, atol=0
    )


def test_sites_by_name_order_and_shape() -> None:
    rows, tensor = some_rows(), (CLASSES, CLASSES, 2)
    plain = sites(rows, Inputs(np.zeros((ITEMS, 5))), LIAPrior(latent=2))
    assert {name: site.loc.shape for name, site in plain.items()} == {
        "truth_weight": (5, CLASSES),
        "difficulty_weight": (5, *tensor),
        "truth_bias": (CLASSES,),
        "competence_mean": tensor,
        "competence_offset": (ANNOTATORS, *tensor),
    }
    assert list(plain) == [
        "truth_weight",
        "difficulty_weight",
        "truth_bias",
        "competence_mean",
        "competence_offset",
    ]
    everything = LIAPrior(
        latent=2,
        hidden=(7, 6),
        difficulty_hidden=(4,),
        item_embedding=5,
        annotator_embedding=3,
        question_embedding=2,
    )
    made = sites(rows, Inputs(None, None, np.zeros(ITEMS, int), QUESTIONS), everything)
    assert [(name, site.loc.shape) for name, site in made.items()] == [
        ("item_embedding", (ITEMS, 5)),
        ("question_embedding", (QUESTIONS, 2)),
        ("truth_weight_0", (5, 7)),
        ("truth_bias_0", (7,)),
        ("truth_weight_1", (7, 6)),
        ("truth_bias_1", (6,)),
        ("truth_weight", (6, CLASSES)),
        ("difficulty_weight_0", (5, 4)),
        ("difficulty_bias_0", (4,)),
        ("difficulty_weight", (4, *tensor)),
        ("truth_bias", (CLASSES,)),
        ("competence_mean", tensor),
        ("annotator_embedding", (ANNOTATORS, 3)),
        ("competence_weight", (3, *tensor)),
        ("truth_question", (2, 6, CLASSES)),
        ("truth_question_bias", (2, CLASSES)),
        ("question_competence", (2, *tensor)),
    ]
    known = sites(rows, Inputs(None, np.zeros((ANNOTATORS, 8))), everything)
    assert known["competence_weight"].loc.shape == (8, *tensor)  # features come before embeddings
    assert not {"annotator_embedding", "competence_offset", "question_embedding", "truth_question"} & set(
        known
    )


@pytest.mark.parametrize("latent", [1, 3])
@pytest.mark.parametrize("classes", [2, 5])
def test_a_typical_annotator_is_right_as_often_as_the_prior_says(classes: int, latent: int) -> None:
    rows = Rows(*np.zeros((3, 1), int), np.ones(1), np.array([-1]), 1, classes)
    centre = sites(rows, Inputs(), LIAPrior(accuracy=0.8, latent=latent))["competence_mean"].loc
    matrix = lia.log_confusion(torch.from_numpy(centre)).exp()
    torch.testing.assert_close(matrix.diagonal(), torch.full((classes,), 0.8), rtol=0, atol=1e-12)
    others = matrix[~torch.eye(classes, dtype=torch.bool)]
    torch.testing.assert_close(others, torch.full_like(others, 0.2 / (classes - 1)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"truth": 0.0}, r"prior scales must be finite and > 0.*truth=0\.0"),
        ({"difficulty": -1.0}, r"prior scales must be finite and > 0.*difficulty=-1\.0"),
        ({"competence": math.inf}, "prior scales must be finite and > 0.*competence=inf"),
        ({"population": math.nan}, "prior scales must be finite and > 0.*population=nan"),
        ({"class_logit": 0.0}, r"prior scales must be finite and > 0.*class_logit=0\.0"),
        ({"accuracy": 1.0}, r"accuracy between 0 and 1.*accuracy=1\.0"),
        ({"accuracy": 0.0}, r"accuracy between 0 and 1.*accuracy=0\.0"),
        ({"hidden": (16, 0)}, r"sizes of networks must be at least 1.*hidden=\(16, 0\)"),
        ({"difficulty_hidden": (0,)}, r"sizes of networks must be at least 1.*difficulty_hidden=\(0,\)"),
        ({"latent": 0}, "sizes of networks must be at least 1.*latent=0"),
        ({"item_embedding": 0}, "sizes of networks must be at least 1.*item_embedding=0"),
        ({"question_embedding": 0}, "sizes of networks must be at least 1.*question_embedding=0"),
        ({"annotator_embedding": -1}, "sizes of networks must be at least 1.*annotator_embedding=-1"),
    ],
    ids=str,
)
def test_impossible_priors_are_refused_and_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LIAPrior(**wrong)


def test_the_smallest_priors_are_accepted() -> None:
    tiny = {name: 1e-12 for name in ("truth", "difficulty", "competence", "population", "class_logit")}
    sizes = {"hidden": (1,), "difficulty_hidden": (1,), "latent": 1, "item_embedding": 1}
    prior = LIAPrior(**tiny, **sizes, question_embedding=1, annotator_embedding=0, accuracy=1e-12)  # pyright: ignore[reportArgumentType]
    assert prior.layers == {"truth": (1,), "difficulty": (1,)}
    assert LIAPrior(annotator_embedding=1, accuracy=1 - 1e-12).annotator_embedding == 1


CLASS_AXES = {
    "truth_weight": (1,),
    "truth_bias": (0,),
    "truth_question": (2,),
    "truth_question_bias": (1,),
    "competence_mean": (0, 1),
}
CLASS_AXES |= dict.fromkeys(
    ("difficulty_weight", "competence_offset", "competence_weight", "question_competence"), (1, 2)
)


@pytest.mark.parametrize("case", [CASES[1], CASES[5], CASES[9]], ids=str)
def test_renaming_classes_in_all_sites_changes_nothing(case: Any) -> None:
    inputs, rows, _, point = problem(*case)
    terms = []
    for order in permutations(range(CLASSES)):
        moved = dict(point)
        for name, axes in CLASS_AXES.items():
            for axis in axes if name in point else ():
                moved[name] = np.take(moved[name], order, axis=axis)
        code = np.argsort(order)
        named = replace(rows, label=code[rows.label], gold=np.where(rows.gold < 0, -1, code[rows.gold]))
        said, parameters = said_of(named, inputs), on_torch(moved)
        joint = lia.log_joint(
            lia.log_truth(parameters, said), lia.label_log_likelihood(parameters, said), said
        )
        terms.append([float(torch.logsumexp(joint, -1).sum()), log_prior(moved)])
        half = dict(moved) | {"truth_bias": point["truth_bias"]}  # the control: one site keeps its names
        other = lia.log_joint(
            lia.log_truth(on_torch(half), said), lia.label_log_likelihood(parameters, said), said
        )
        assert (abs(float((torch.logsumexp(joint, -1) - torch.logsumexp(other, -1)).sum())) > 1e-3) is (
            order != (0, 1, 2)
        )
    assert np.ptp(np.array(terms), axis=0).max() < 1e-10


def test_a_sampler_tells_a_good_annotator_from_one_who_guesses() -> None:
    rng = np.random.default_rng(0)
    items, features = 40, rng.normal(size=(40, 1))
    truth = (features[:, 0] > 0).astype(int)
    right = rng.random((items, 3)) < [0.95, 0.75, 0.5]  # the last one guesses
    label = np.where(right, truth[:, None], 1 - truth[:, None])
    said = (np.repeat(np.arange(items), 3), np.tile(np.arange(3), items), label.ravel(), np.ones(3 * items))
    gold = np.where(
        np.arange(items) < 8, truth, -1
    )  # without it chains find the mirror image, with classes exchanged, as well
    rows = Rows(*said, gold, 3, 2)
    start = {
        name: jax.numpy.asarray(site.loc) for name, site in sites(rows, Inputs(features), LIAPrior()).items()
    }

    def potential(values: dict[str, jax.Array]) -> jax.Array:
        return -numpyro_log_density(lia_numpyro.lia, (Inputs(features), rows, LIAPrior()), {}, values)[0]

    @jax.jit  # one compilation
    def chain(key: jax.Array) -> Any:
        begin, step = hmc(potential, algo="NUTS")
        state = begin(start, num_warmup=50, max_tree_depth=5, rng_key=key)
        _, kept = jax.lax.scan(lambda now, _: (step(now), (now.z, now.diverging)), state, length=101)
        return jax.tree.map(lambda values: values[51:], kept)

    draws, diverging = jax.tree.map(np.asarray, chain(jax.random.key(0)))
    assert set(draws) == set(sites(rows, Inputs(features), LIAPrior()))
    assert all(
        value.shape[0] == 50 and np.isfinite(value).all() and np.ptp(value) > 0 for value in draws.values()
    )
    assert diverging.mean() < 0.1
    skills = torch.from_numpy(draws["competence_mean"][:, None] + draws["competence_offset"])
    diagonal = lia.log_confusion(skills).exp().diagonal(dim1=2, dim2=3).mean((0, 2))
    assert float(diagonal[0]) > float(diagonal[2]) + 0.25
    assert abs(float(diagonal[2]) - 0.5) < 0.2
