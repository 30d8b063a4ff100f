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
# # A classifier learned from people who err
#
# Scikit-learn's 1,797 handwritten digits, each labelled by two of fifteen simulated annotators: some good, some who mix up particular digits, some
# who guess. Nobody tells the truth, and still a network learns to read, and learns who can be trusted with what. The test digits have no labels
# at all. We look at true classes at the end only, but for one cell, which says so.
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

from probcrowd import CrowdClassifier, load_crowd_classifier
from probcrowd.figures.base import confusion_figure

OUT = Path(os.environ.get("PROBCROWD_OUT", "outputs/crowds"))
EPOCHS = int(os.environ.get("PROBCROWD_DRAWS", "360")) // 6
OUT.mkdir(parents=True, exist_ok=True)

# %%
rng = np.random.default_rng(0)
digits = load_digits()
pictures = np.asarray(digits.images, np.float32)[:, None] / 16  # (1797, 1, 8, 8)
truth = np.asarray(digits.target)
train, test = np.arange(1200), np.arange(1200, 1797)
matrices = np.stack([skill * np.eye(10) + (1 - skill) / 10 for skill in np.linspace(0.95, 0.1, 15)])
matrices[3, 1] = matrices[3, 7]  # to annotator 3 every one is a seven
matrices[5, [3, 8]] = matrices[5, [8, 3]]  # annotator 5 has threes and eights the wrong way round
item = np.repeat(train, 2)
annotator = np.concatenate([rng.choice(15, 2, replace=False) for _ in train])
label = np.array([rng.choice(10, p=matrices[j, truth[i]]) for i, j in zip(item, annotator, strict=True)])
said = pd.DataFrame({"item": item, "annotator": annotator, "label": label})
print(f"{len(said)} labels, {(said['label'] == truth[said['item']]).mean():.0%} of them right")

# %% [markdown]
# ## Any network, any method
#
# `X` is an array, a tensor, a table or a torch `Dataset`; labels are a long table, or a matrix with missing marks. The network is yours. A tenth of the
# labelled pictures is held out, and the epoch is the one that foretells all that was said of these best: no true class is needed.

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
fitted = CrowdClassifier(network, "geocrowdnet-f", **options).fit(pictures, said)
print(fitted.predict_proba(pictures[test[:3]]).round(2))
print(
    f"epoch {fitted.epoch_} of {len(fitted.history_)} selected, {fitted.degenerate_} steps with a volume next to singular"
)

# %% [markdown]
# ## Who says what
#
# `confusion_` has a row for every annotator and true class; `annotator_proba` is what an annotator would say of a picture. Three and five are as they
# were made.

# %%
print(fitted.annotators_.T.round(2))
print(fitted.confusion_.loc[(3, 1)].round(2).to_frame("annotator 3 of ones").T)
print(fitted.confusion_.loc[[(5, 3), (5, 8)]].round(2))
print(fitted.annotator_proba(pictures[test[:1]], [0, 5, 14]).round(2))
made = pd.DataFrame(matrices.reshape(-1, 10), fitted.confusion_.sort_index().index, fitted.confusion_.columns)
shown = [0, 3, 5, 14]
confusion_figure(fitted.confusion_.loc[shown], made.loc[shown]).savefig(OUT / "confusion.png")

# %% [markdown]
# ## How strong the volume should be
#
# GeoCrowdNet(F) spreads the class probabilities of the pictures apart, GeoCrowdNet(W) the confusion matrices. How strongly, single labels cannot say: what
# the terms decide between gives every label the same probability. All labels of a picture together can.

# %%
chosen = CrowdClassifier(
    network, "geocrowdnet-f", strength="selected", **{**options, "epochs": max(EPOCHS // 4, 2)}
).fit(pictures, said)
print(chosen.strengths_.round(4).assign(chosen=chosen.strengths_.index == chosen.strength_))

# %% [markdown]
# ## Does it help?
#
# Now the truth, of pictures that nobody has labelled. One seed, one crowd: a demonstration, not a ranking (`probcrowd reproduce crowds` is one).

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
    print(
        f"{method:15s} {CrowdClassifier(network, method, **options).fit(pictures, said).score(pictures[test], truth[test]):.3f}"
    )
print(f"geocrowdnet-f   {fitted.score(pictures[test], truth[test]):.3f}")

# %% [markdown]
# ## Long trainings
#
# In a folder a fit keeps a checkpoint after every epoch; a killed one goes on with `resume=True` and ends at the same bits.

# %%
CrowdClassifier(network, "geocrowdnet-f", **options).fit(pictures, said, folder=OUT / "fit", resume=True)
again = load_crowd_classifier(OUT / "fit", network)
print(bool((again.predict_proba(pictures[test]) == fitted.predict_proba(pictures[test])).all(axis=None)))
figure, axis = plt.subplots(figsize=(5, 3))
fitted.history_["score"].plot(ax=axis, xlabel="epoch", ylabel="held-out log score, nats per picture")
figure.savefig(OUT / "history.png", bbox_inches="tight")
plt.close(figure)
