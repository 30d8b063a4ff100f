# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A classifier learned from noisy labels
#
# Scikit-learn's 1,797 handwritten digits. Two of fifteen simulated annotators label each of the first 1,200:
# some are good, some confuse particular digits, some guess. No true class is given, and still a network
# learns to read the digits, and learns which annotators to trust with which digit. The test digits have no
# labels at all. The true classes are used only at the end, and where annotators are compared with those that
# were simulated.
#
# Open this file as a notebook with jupytext, or run it as a script.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from torch import nn

from probcrowd import CrowdClassifier, load_crowd_classifier, simulate_annotations
from probcrowd.figures.base import confusion_figure
from probcrowd.simulate import uniform_errors

OUT = Path(os.environ.get("PROBCROWD_OUT", "outputs/crowds"))
EPOCHS = int(os.environ.get("PROBCROWD_DRAWS", "360")) // 6
OUT.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# Each annotator has an accuracy with errors spread evenly over the other digits. Two of them are then given
# errors of their own.

# %%
digits = load_digits()
pictures = np.asarray(digits.images, np.float32)[:, None] / 16  # (1797, 1, 8, 8)
truth = np.asarray(digits.target)
train, test = np.arange(1200), np.arange(1200, 1797)
matrices = uniform_errors(np.linspace(0.955, 0.19, 15), 10)
matrices[3, 1] = matrices[3, 7]  # annotator 3 reads every one as a seven
matrices[5, [3, 8]] = matrices[5, [8, 3]]  # annotator 5 swaps threes and eights
simulated = simulate_annotations(
    pd.Series(truth[train]), dict(enumerate(matrices)), classes=range(10), labels_per_item=2, seed=1
)
labels = simulated.frame
right = labels["label"].to_numpy() == truth[labels["item"]]
print(f"{len(labels)} labels, {right.mean():.0%} of them right")

# %% [markdown]
# ## Any network, any method
#
# `X` is an array, a tensor, a table or a torch `Dataset`; labels are a long table, or a matrix with a mark
# for missing labels. The network is yours. A tenth of the labelled pictures is held out, and the epoch that
# predicts all labels of these pictures best is selected: no true class is needed.

# %%


def network(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A small convolutional network."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(256, classes),
    )


options = {"epochs": EPOCHS, "learning_rate": 5e-3}
fitted = CrowdClassifier(network=network, method="geocrowdnet-f", **options).fit(pictures, labels)
print(fitted.predict_proba(pictures[test[:3]]).round(2))
print(
    f"epoch {fitted.epoch_} of {len(fitted.history_)} selected,"
    f" {fitted.degenerate_} steps with a nearly singular volume"
)

# %% [markdown]
# ## Who confuses what
#
# `confusion_` has a row for every annotator and true class; `annotator_proba` predicts the label that an
# annotator would give to a picture. An annotator labelled about fifteen pictures of each digit, so what was
# simulated for annotators 3 and 5 shows, but weaker than it is.

# %%
print(fitted.annotators_.T.round(2))
print(fitted.confusion_.loc[(3, 1)].round(2).to_frame("annotator 3 of ones").T)
print(fitted.confusion_.loc[[(5, 3), (5, 8)]].round(2))
print(fitted.annotator_proba(pictures[test[:1]], [0, 5, 14]).round(2))
shown = [0, 3, 5, 14]
confusion_figure(fitted.confusion_.loc[shown], simulated.confusion.loc[shown]).savefig(OUT / "confusion.png")

# %% [markdown]
# ## How strong the volume term should be
#
# GeoCrowdNet(F) pushes the class probabilities of the pictures apart, GeoCrowdNet(W) the confusion matrices.
# Single labels cannot tell how strongly: the solutions that the terms choose between give every label the
# same probability. All labels of a picture together can tell.

# %%
selected = CrowdClassifier(
    network=network, method="geocrowdnet-f", strength="selected", **{**options, "epochs": max(EPOCHS // 4, 2)}
).fit(pictures, labels)
print(selected.strengths_.round(4).assign(selected=selected.strengths_.index == selected.strength_))

# %% [markdown]
# ## Does it help?
#
# Now the truth, on pictures without labels. One seed and one crowd: a demonstration, not a ranking
# (`probcrowd reproduce crowds` gives one).

# %%
for method in (
    "majority-vote",
    "dawid-skene",
    "crowd-layer",
    "trace-reg",
    "raykar",
    "max-mig",
    "conal",
    "union-net",
    "ccem",
    "geocrowdnet-w",
):
    other = CrowdClassifier(network=network, method=method, **options).fit(pictures, labels)
    print(f"{method:15s} {other.score(pictures[test], truth[test]):.3f}")
print(f"geocrowdnet-f   {fitted.score(pictures[test], truth[test]):.3f}")

# %% [markdown]
# ## Long trainings
#
# With a folder, a fit saves a checkpoint after every epoch; a killed fit continues with `resume=True` and
# ends with bit-identical results.

# %%
CrowdClassifier(network=network, method="geocrowdnet-f", **options).fit(
    pictures, labels, folder=OUT / "fit", resume=True
)
again = load_crowd_classifier(OUT / "fit", network)
print(bool((again.predict_proba(pictures[test]) == fitted.predict_proba(pictures[test])).all(axis=None)))
figure, axis = plt.subplots(figsize=(5, 3))
fitted.history_["score"].plot(ax=axis, xlabel="epoch", ylabel="held-out log score, nats per picture")
figure.savefig(OUT / "history.png", bbox_inches="tight")
plt.close(figure)
