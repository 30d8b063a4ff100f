"""Causes of silently wrong results.

Renamed classes, ids that look like positions, overflow, layers in another order, one class, one item.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from probcrowd.estimators.crowd.classifier import CrowdClassifier, load_crowd_classifier
from probcrowd.estimators.crowd.strength import select_strength

QUICK: dict[str, Any] = {"epochs": 4, "batch": 16, "learning_rate": 0.01, "method": "ccem"}


def crowd(
    items: int = 60, annotators: int = 5, classes: int = 3, accuracy: float = 0.8, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features that decide the class, labels with -1 where there is none, classes."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(items, 4))
    truth = (x @ rng.normal(size=(4, classes))).argmax(1)
    labels = np.where(
        rng.random((items, annotators)) < accuracy,
        truth[:, None],
        rng.integers(classes, size=(items, annotators)),
    )
    return x, np.where(rng.random((items, annotators)) < 0.5, labels, -1), truth


def linear(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Linear(shape[0], classes)


def test_classes_that_changed_their_names_are_told_and_no_strength_that_does_it_is_selected() -> None:
    """A start on the wrong side: every annotator is taken to call class k the next one."""
    x, labels, truth = crowd(200)

    class Turned(nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.inner = nn.Linear(4, classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).roll(1, 1)

    right = CrowdClassifier(
        network=linear, epochs=30, method="majority-vote", learning_rate=0.05, selection="last"
    ).fit(x, labels, missing_label=-1)
    turned = Turned(3)
    turned.inner.load_state_dict(right.network_.state_dict())
    with pytest.warns(UserWarning, match="classes seem to be permuted"):
        wrong = CrowdClassifier(
            network=turned,
            epochs=1,
            method="ccem",
            learning_rate=1e-9,
            channel_learning_rate=1e-9,
            selection="last",
        ).fit(x, labels, missing_label=-1)
    assert right.score(x, truth) > 0.9 and wrong.score(x, truth) < 0.1
    table = pd.DataFrame(
        {
            "score": [-2.0, -1.9, -1.0],
            "lost": [0.1, 0.0, -0.9],
            "standard_error": 0.2,
            "permuted": [False, False, True],
        },
        [0.1, 0.2, 0.3],
    )
    assert select_strength(table, strongest=True) == 0.2 and select_strength(table, strongest=False) == 0.2


def test_ids_of_true_classes_are_not_taken_for_places() -> None:
    x, labels, truth = crowd()
    fitted = CrowdClassifier(network=linear, **QUICK).fit(x, labels, missing_label=-1)
    _, some, _, known = train_test_split(x, pd.Series(truth), random_state=0)
    with pytest.raises(ValueError, match="in the order of X"):
        fitted.score(some, known)
    assert fitted.score(some, known.to_numpy()) == pytest.approx(
        (fitted.predict(some).to_numpy() == known.to_numpy()).mean()
    )
    assert fitted.score(x, pd.Series(truth)) == fitted.score(x, truth)
    frame = pd.DataFrame(x)
    fitted = CrowdClassifier(network=linear, **QUICK).fit(frame, labels, missing_label=-1)
    with pytest.raises(ValueError, match="more than one true class"):
        fitted.score(frame, pd.Series([0, 1, 1], [0, 0, 1]))
    with pytest.raises(ValueError, match="no item has a true class"):
        fitted.score(frame, pd.Series([0, 1], [1000, 1001]))
    with pytest.raises(ValueError, match="no item has a true class"):
        CrowdClassifier(network=linear, **QUICK, selection="gold").fit(
            x, labels, missing_label=-1, validation=(x, np.full(60, np.nan))
        )
    with pytest.raises(ValueError, match=r"inputs of shape \(3,\), those of X have \(4,\)"):
        CrowdClassifier(network=linear, **QUICK, selection="gold").fit(
            x, labels, missing_label=-1, validation=(x[:, :3], truth)
        )


def test_numbers_too_large_for_single_precision_are_named() -> None:
    x, labels, _ = crowd()
    frame = pd.DataFrame(x)
    fitted = CrowdClassifier(network=linear, **QUICK).fit(frame, labels, missing_label=-1)
    frame.iloc[7, 1] = 1e300
    with pytest.raises(ValueError, match=r"too large for single precision(.|\n)*7"):
        fitted.predict_proba(frame)
    with pytest.raises(ValueError, match="masked array"):
        fitted.predict(np.ma.masked_values(x, x[0, 0]))


def test_parameters_that_are_no_numbers_any_more_stop_the_fit() -> None:
    x, labels, _ = crowd()
    deep = lambda shape, classes: nn.Sequential(nn.Linear(shape[0], 8), nn.ReLU(), nn.Linear(8, classes))
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        CrowdClassifier(
            network=deep, **(QUICK | {"epochs": 1, "batch": 1000, "learning_rate": 1e38}), selection="last"
        ).fit(x, labels, missing_label=-1)


class Backwards(nn.Module):
    """Its last layer is registered first, and something else last."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.head, self.body, self.gate = nn.Linear(8, classes), nn.Linear(width, 8), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)) * torch.sigmoid(self.gate(x)))


@pytest.mark.parametrize("method", ["conal", "doctor-net"])
def test_features_are_what_the_layer_of_the_logits_sees(method: str) -> None:
    x, labels, _ = crowd()
    options = {**QUICK, "method": method}
    fitted = CrowdClassifier(network=lambda shape, classes: Backwards(shape[0], classes), **options).fit(
        x, labels, missing_label=-1
    )
    assert fitted._fitted.channel.head == "head"
    widths = {
        module.in_features for module in fitted._fitted.channel.modules() if isinstance(module, nn.Linear)
    }
    assert widths == {8}

    class NoLinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    with pytest.raises(
        ValueError,
        match="needs a network whose last layer is a torch.nn.Linear that returns the logits; "
        "NoLinear has none",
    ):
        CrowdClassifier(network=NoLinear(), **options).fit(x, labels, missing_label=-1)


def test_the_averaging_of_doctor_net_is_what_is_selected() -> None:
    x, labels, _ = crowd(100)
    for patience in (None, 2):
        fitted = CrowdClassifier(
            network=linear, method="doctor-net", epochs=20, batch=16, patience=patience
        ).fit(x, labels, missing_label=-1)
        assert fitted.epoch_ > 16 and bool((fitted._fitted.channel.log_weight != 0).any())


def test_another_network_of_the_same_shapes_is_refused(tmp_path: Any) -> None:
    x, labels, _ = crowd()
    kinds = [nn.Sequential(nn.Linear(4, 8), bend, nn.Linear(8, 3)) for bend in (nn.ReLU(), nn.Tanh())]
    CrowdClassifier(network=kinds[0], **QUICK).fit(x, labels, missing_label=-1, folder=tmp_path)
    load_crowd_classifier(tmp_path, kinds[0])
    with pytest.raises(ValueError, match="another network"):
        load_crowd_classifier(tmp_path, kinds[1])


def test_one_class_no_labels_and_single_items() -> None:
    x, labels, _ = crowd()
    with pytest.raises(ValueError, match="all labels are the same, 1"):
        CrowdClassifier(**QUICK).fit(x, np.where(labels >= 0, 1, -1), missing_label=-1)
    with pytest.raises(ValueError):
        CrowdClassifier(**QUICK, selection="last").fit(x, np.full((60, 2), -1), missing_label=-1)
    for batch in (1, 2):  # the default network standardises by batches
        CrowdClassifier(**(QUICK | {"batch": batch, "epochs": 1})).fit(x, labels, missing_label=-1)


def test_matrices_may_be_frames_and_tensors() -> None:
    x, labels, _ = crowd()
    frame = pd.DataFrame(x, [f"pic{n}" for n in range(60)])
    expected = (
        CrowdClassifier(network=linear, **QUICK).fit(x, labels, missing_label=-1).predict_proba(x).to_numpy()
    )
    wide = pd.DataFrame(labels, frame.index).sample(frac=1, random_state=0)
    for matrix in (wide, torch.from_numpy(labels)):
        found = (
            CrowdClassifier(network=linear, **QUICK).fit(frame, matrix, missing_label=-1).predict_proba(frame)
        )
        np.testing.assert_allclose(found.to_numpy(), expected, atol=1e-5)
    with pytest.raises(ValueError, match="a row per item, under the ids of X"):
        CrowdClassifier(network=linear, **QUICK).fit(frame, pd.DataFrame(labels), missing_label=-1)


def test_names_of_methods_and_numbers_of_labels() -> None:
    x, labels, _ = crowd()
    with pytest.warns(UserWarning, match="set batch to at least 12"):
        fitted = CrowdClassifier(network=linear, method="GeoCrowdNet_F", epochs=1, batch=8).fit(
            x, labels, missing_label=-1
        )
    kept = len(labels) - int(np.ceil(0.1 * (labels >= 0).any(1).sum()))
    assert (
        fitted.annotators_["labels"].sum() <= (labels >= 0).sum()
        and fitted.annotators_["labels"].gt(0).all()
        and kept
    )
    sums = fitted.predict_proba(x).sum(axis=1)
    np.testing.assert_allclose(sums, 1, atol=1e-12)
    many = CrowdClassifier(
        network=linear, strength="selected", **(QUICK | {"method": "geocrowdnet-f", "batch": 60})
    )
    many.fit(x, labels, missing_label=-1)
    many.set_params(strength=0.01).fit(x, labels, missing_label=-1)
    assert not hasattr(many, "strength_") and not hasattr(many, "strengths_")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strength": "0.1"}, "strength='0.1': choose a number"),
        ({"learning_rate": None}, "learning_rate=None: choose a number"),
    ],
)
def test_what_is_no_number_is_told_where_nothing_checks_types(options: dict[str, Any], words: str) -> None:
    x, labels, _ = crowd()
    made = CrowdClassifier(method="geocrowdnet-f")
    for name, value in options.items():
        setattr(made, name, value)
    with pytest.raises(ValueError, match=words):
        made.fit(x, labels, missing_label=-1)
