"""Predictors: contracts of all of them, and each one against loops and other libraries."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from probcrowd.data.tensors import AnnotationTensors
from probcrowd.estimators.simlabel.options import ARCHITECTURES, make_predictor
from probcrowd.models.crowd.base import NetworkOutput
from probcrowd.models.crowd.mixture import Mixture
from probcrowd.models.simlabel.base import Predictor
from probcrowd.models.simlabel.performance import Performance
from probcrowd.models.simlabel.pooled import PooledConfusions
from probcrowd.models.simlabel.queries import Queries
from probcrowd.models.simlabel.residuals import DRAWS, Residuals

J, L, B = 5, 3, 6
ALL = slice(None)


def shaken(predictor: Predictor, seed: int = 0) -> Predictor:
    """With parameters that are nothing special."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return predictor


@pytest.fixture(params=list(ARCHITECTURES))
def make(request: pytest.FixtureRequest) -> Callable[..., Predictor]:
    return lambda shape=(4,), **options: make_predictor(request.param, shape, J, L, options)


@pytest.mark.parametrize("shape", [(4,), (4, 3, 2), (4, 7)])
def test_probabilities_of_vectors_and_feature_maps(
    make: Callable[..., Predictor], shape: tuple[int, ...]
) -> None:
    predictor = shaken(make(shape))
    for training in (True, False):
        predictor.train(training)
        spoken = predictor(torch.randn(B, *shape), ALL)
        assert spoken.log_label.shape == (B, J, L)
        torch.testing.assert_close(spoken.log_label.exp().sum(-1), torch.ones(B, J))
        if spoken.log_common is not None:
            torch.testing.assert_close(spoken.log_common.exp().sum(-1), torch.ones(B))
    assert predictor.annotator_features(torch.randn(B, *shape), ALL).shape[:2] == (B, J)


def test_some_annotators_are_those_of_all(make: Callable[..., Predictor]) -> None:
    predictor, x = shaken(make()).eval(), torch.randn(B, 4)
    some = torch.tensor([3, 0])
    torch.testing.assert_close(predictor(x, some).log_label, predictor(x, ALL).log_label[:, some])
    torch.testing.assert_close(
        predictor.annotator_features(x, some), predictor.annotator_features(x, ALL)[:, some]
    )
    assert predictor(x, ALL).log_label.std(1).max() > 1e-3  # they differ


def test_an_item_is_judged_by_itself(make: Callable[..., Predictor]) -> None:
    predictor, x = shaken(make()).eval(), torch.randn(B, 4)
    torch.testing.assert_close(predictor(x[2:3], ALL).log_label, predictor(x, ALL).log_label[2:3])


def test_every_parameter_learns_something(make: Callable[..., Predictor]) -> None:
    predictor = shaken(make())
    x, labels = torch.randn(B, 4), torch.randint(L, (B, J, 1))
    spoken = predictor(x, ALL)
    weight = predictor.annotator_weight()
    losses = -spoken.log_label.gather(-1, labels)[..., 0]
    loss = (losses if weight is None else losses * weight).mean()
    penalty = predictor.penalty(30.0)
    (loss + (0.0 if penalty is None else penalty)).backward()
    silent = [
        name
        for name, value in predictor.named_parameters()
        if value.grad is None or not bool(value.grad.abs().sum() > 0)
    ]
    assert silent == []


def test_options_that_an_architecture_lacks_are_named(make: Callable[..., Predictor]) -> None:
    with pytest.raises(ValueError, match=r"options=\{'depth': 3\} do not fit the architecture"):
        make(depth=3)
    with pytest.raises(ValueError, match="one number per item"):
        make(())


# Performance


def test_a_performance_network_starts_with_its_accuracy_on_the_diagonal() -> None:
    predictor = Performance(J, L, (4,), initial_accuracy=0.7)
    confusion = predictor.confusion(torch.randn(B, 4), ALL)
    torch.testing.assert_close(confusion, (0.55 * torch.eye(L) + 0.15).expand(B, J, L, L))
    spoken = predictor(torch.randn(B, 4), ALL)
    assert spoken.log_common is not None
    torch.testing.assert_close(
        spoken.log_label.exp(), (spoken.log_common.exp() @ confusion[0, 0])[:, None].expand(B, J, L)
    )


def test_labels_of_performers_are_the_truth_through_their_confusion_by_loops() -> None:
    predictor, x = shaken(Performance(J, L, (4,))).eval().requires_grad_(False), torch.randn(B, 4)
    assert isinstance(predictor, Performance)
    spoken, confusion = predictor(x, ALL), predictor.confusion(x, ALL)
    assert spoken.log_common is not None
    for i, j, l in np.ndindex(B, J, L):
        expected = sum(spoken.log_common[i, k].exp() * confusion[i, j, k, l] for k in range(L))
        assert float(spoken.log_label[i, j, l].exp()) == pytest.approx(float(expected), rel=1e-5)
    assert confusion.std(0).max() > 1e-3  # an annotator is not alike on all items


def test_performance_does_not_shape_the_embedding() -> None:
    predictor, x = shaken(Performance(J, L, (4,))), torch.randn(B, 4, requires_grad=True)
    assert isinstance(predictor, Performance)
    (grad,) = torch.autograd.grad(predictor.confusion(x, ALL).square().sum(), x, allow_unused=True)
    assert grad is None
    (grad,) = torch.autograd.grad(predictor(x, ALL).log_label.square().sum(), x)
    assert grad.abs().sum() > 0


def test_copies_share_one_weight() -> None:
    predictor = Performance(J, L, (4,))
    with torch.no_grad():
        predictor.annotators[1] = predictor.annotators[0]
        predictor.log_gamma.fill_(math.log(1e4))
    weight = predictor.annotator_weight()
    assert weight is not None
    torch.testing.assert_close(weight, torch.tensor([0.5, 0.5, 1, 1, 1]) * J / 4)
    assert (
        predictor.eval().annotator_weight() is None
        and Performance(J, L, (4,), kernel=False).annotator_weight() is None
    )


def test_the_scale_of_the_kernel_has_a_gamma_prior() -> None:
    predictor = Performance(J, L, (4,))
    for gamma in (0.3, 1.0, 4.0):
        with torch.no_grad():
            predictor.log_gamma.fill_(math.log(gamma))
        penalty = predictor.penalty(10.0)
        assert penalty is not None
        expected = -torch.distributions.Gamma(1.25, 0.25).log_prob(torch.tensor(gamma))
        torch.testing.assert_close(penalty, expected)
    assert Performance(J, L, (4,), kernel=False).penalty(10.0) is None


# Residuals


def test_residuals_start_at_what_is_common_and_answers_average_over_draws() -> None:
    predictor, x = Residuals(J, L, (4,)).eval(), torch.randn(B, 4)
    spoken = predictor(x, ALL)
    assert spoken.log_common is not None
    torch.testing.assert_close(spoken.log_label, spoken.log_common[:, None].expand(B, J, L))
    assert predictor(x, ALL).log_label.equal(spoken.log_label)
    predictor = shaken(predictor)
    mean, spread = predictor._common(x)[0]
    torch.manual_seed(0)
    expected = torch.softmax(mean + spread * torch.randn(200_000, 1, L), -1).mean(0)
    common = predictor(x, ALL).log_common
    assert common is not None and DRAWS == 16
    torch.testing.assert_close(common.exp(), expected, atol=0.04, rtol=0)


def test_residuals_are_drawn_once_in_training_and_an_annotator_has_a_spread() -> None:
    predictor, x = shaken(Residuals(J, L, (4,))).train(), torch.randn(B, 4)
    torch.manual_seed(0)
    one, other = predictor(x, ALL).log_label, predictor(x, ALL).log_label
    assert bool((one != other).any())
    torch.manual_seed(0)
    assert predictor(x, ALL).log_label.equal(one)
    with torch.no_grad():
        predictor.scale.weight.zero_()
        predictor.scale.bias.zero_()
        predictor.offset[..., L:] = 0
    torch.testing.assert_close(
        predictor(x, ALL).log_label, predictor.eval()(x, ALL).log_label
    )  # no spread, no chance


def test_doubt_widens_the_common_spread() -> None:
    predictor, x = Residuals(J, L, (4,)), torch.ones(1, 4)
    with torch.no_grad():
        predictor.mean.weight.zero_()
        predictor.mean.bias.zero_()
        predictor.scale.bias.zero_()
    (_, doubting), _ = predictor._common(x)
    with torch.no_grad():
        predictor.mean.bias[0] = 100.0
    (_, sure), _ = predictor._common(x)
    torch.testing.assert_close(doubting, 2 * sure)


# Queries


def test_attention_is_that_of_torch() -> None:
    predictor = Queries(J, L, (4,), width=16, heads=4)
    asking, seen = torch.randn(B, J, 16), torch.randn(B, 8, 16)
    other = nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        other.in_proj_weight.copy_(torch.cat([layer.weight for layer in predictor.to_item[:3]]))
        other.in_proj_bias.copy_(torch.cat([layer.bias for layer in predictor.to_item[:3]]))
        other.out_proj.load_state_dict(predictor.to_item[3].state_dict())
    torch.testing.assert_close(
        predictor._attention(predictor.to_item, asking, seen),
        other(asking, seen, seen)[0],
        atol=1e-5,
        rtol=1e-4,
    )
    with pytest.raises(ValueError, match="width=10 must be a multiple of heads=4"):
        Queries(J, L, (4,), width=10)


def test_annotators_who_share_a_query_agree_until_their_offsets_differ() -> None:
    predictor, x = Queries(J, L, (4,)).eval(), torch.randn(B, 4)
    with torch.no_grad():
        predictor.query[1] = predictor.query[0]
    log_probabilities = predictor(x, ALL).log_label
    torch.testing.assert_close(log_probabilities[:, 0], log_probabilities[:, 1])
    assert (log_probabilities[:, 0] - log_probabilities[:, 2]).abs().max() > 1e-4
    with torch.no_grad():
        predictor.offset_bias[1, 0] += 1
    assert (predictor(x, ALL).log_label[:, 1] - log_probabilities[:, 1]).abs().min() > 1e-3


def test_queries_attend_to_each_other() -> None:
    predictor, x = shaken(Queries(J, L, (4,))).eval(), torch.randn(B, 4)
    assert isinstance(predictor, Queries)
    before = predictor(x, ALL).log_label
    with torch.no_grad():
        predictor.query[4] += torch.randn(64)
    assert (predictor(x, ALL).log_label - before)[:, 0].abs().max() > 1e-5


# Pooled


def test_pooled_confusions_are_coupled_cross_entropy_with_a_normal_prior() -> None:
    predictor, x = shaken(PooledConfusions(J, L, (4,), scale=0.7)), torch.randn(B, 4)
    assert isinstance(predictor, PooledConfusions)
    item, annotator = (
        part.flatten() for part in torch.meshgrid(torch.arange(B), torch.arange(J), indexing="ij")
    )
    label = torch.randint(L, (B * J,))
    labels = AnnotationTensors(item, annotator, label, torch.ones(B * J), torch.arange(B), float(J))
    mixture = Mixture((predictor.common + predictor.offset).detach())
    spoken = predictor(x, ALL)
    assert spoken.log_common is not None
    log_probabilities = mixture.log_label(NetworkOutput(spoken.log_common), labels).view(B, J, L)
    torch.testing.assert_close(spoken.log_label, log_probabilities, atol=1e-5, rtol=1e-4)
    penalty, normal = predictor.penalty(20.0), torch.distributions.Normal(0.0, 0.7)
    assert penalty is not None
    own = predictor.offset
    torch.testing.assert_close(
        penalty * 20, (normal.log_prob(torch.zeros_like(own)) - normal.log_prob(own)).sum()
    )
    assert PooledConfusions(J, L, (4,), scale=math.inf).penalty(20.0) is None
    with pytest.raises(ValueError, match="scale=0"):
        PooledConfusions(J, L, (4,), scale=0.0)
