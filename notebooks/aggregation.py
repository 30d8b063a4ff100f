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
# # From a CSV to labels: what is it, whom to trust, how sure
#
# Fourteen annotators sorted 600 pictures into cat, dog and fox; every picture was seen by some four of them. Some annotators are good, some
# hasty, one mixes up dogs and foxes, one clicks at random, and two accounts belong to one person. The table is simulated, so that at the end
# we can look at the truth; nothing before that does.
#
# Open this file as a notebook with jupytext, or run it as a script.

# %%
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from probcrowd import DawidSkene, MajorityVote
from probcrowd.data.annotations import Annotations
from probcrowd.figures.aggregation import annotators_figure, confidence_figure
from probcrowd.figures.base import confusion_figure
from probcrowd.runs.aggregate import aggregate_labels, compare_aggregators, comparison_text

OUT = Path(os.environ.get("PROBCROWD_OUT", "outputs/aggregation"))
OUT.mkdir(parents=True, exist_ok=True)
CLASSES = np.array(["cat", "dog", "fox"])

# %%
rng = np.random.default_rng(7)
truth = pd.Series(
    rng.choice(CLASSES, 600, p=[0.5, 0.3, 0.2]), index=[f"pic{number:03}" for number in range(600)]
)
accuracy = {
    "ann": 0.95,
    "bob": 0.9,
    "cem": 0.85,
    "dia": 0.8,
    "eli": 0.75,
    "fay": 0.7,
    "gus": 0.65,
    "hal": 0.6,
    "ida": 0.6,
    "jon": 0.55,
}
rows = []
for picture, is_a in truth.items():
    others = [name for name in CLASSES if name != is_a]
    said = {name: is_a if rng.random() < right else rng.choice(others) for name, right in accuracy.items()}
    said["kim"] = (
        {"cat": "cat", "dog": "fox", "fox": "dog"}[is_a] if rng.random() < 0.8 else is_a
    )  # mixes them up
    said["leo"] = rng.choice(CLASSES)  # clicks at random
    said["mia"] = rng.choice(others) if rng.random() < 0.45 else is_a
    said["mia2"] = said["mia"]  # the same person
    rows += [(picture, name, said[name]) for name in rng.choice(list(said), 4, replace=False)]
pd.DataFrame(rows, columns=["task", "worker", "label"]).to_csv(OUT / "labels.csv", index=False)

# %% [markdown]
# ## The table
#
# Columns called task, worker and label (or item, annotator, label) are recognised. A missing label, a repeated pair or an unknown class
# would be one error that names the rows.

# %%
frame = pd.read_csv(OUT / "labels.csv")
print(frame.head(3))

# %% [markdown]
# ## AnnotationTensors with probabilities
#
# `DawidSkene` learns a confusion matrix for every annotator along with the labels. It says so if annotators agree more than the truth explains.

# %%
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    fitted = DawidSkene().fit(frame)
for warning in caught:
    print(warning.message)
print(fitted.items_.sort_values("probability").head(5))
print(fitted.probabilities_.round(3).head(3))

# %% [markdown]
# ## Whom to trust
#
# Accuracy alone misleads: kim is often wrong, yet systematically, and so tells much. Information, in bits about the truth by a label, sees that;
# `spammer` is the probability that the labels do not depend on the truth at all.

# %%
annotators = fitted.annotators_.sort_values("information_bits", ascending=False)
print(annotators[["num_labels", "accuracy", "information_bits", "spammer"]].round(2))
print(fitted.confusion_.loc["kim"].round(2))
annotators_figure(annotators).savefig(OUT / "annotators.png")
confusion_figure(fitted.confusion_.loc[["ann", "kim", "leo"]]).savefig(OUT / "confusion.png")

# %% [markdown]
# ## What the dependence check saw
#
# Pairs of annotators, what they agree on, and what the model expects them to. Two accounts of one person are two votes from one mind: keep one
# of them, or let dependent labels count for what they are worth, with `dependence="discount"`.

# %%
print(fitted.dependent_pairs_.head(3).round(2))
print(
    f"{fitted.dependence_.labels_per_item:.1f} labels per item are worth {fitted.dependence_.effective_annotators:.1f} independent ones"
)
frame = frame[frame["worker"] != "mia2"]
fitted = DawidSkene(dependence="discount").fit(frame)

# %% [markdown]
# ## Some truths are known
#
# Known classes clamp their items, and teach the model about annotators. What an annotator did before enters as `history`: the counts of an earlier fit.

# %%
known = truth.iloc[:40]
informed = DawidSkene(dependence="ignore").fit(frame, gold=known)
print(
    informed.items_.loc[known.index, "known"].all(), informed.probabilities_.loc["pic000"].round(3).to_dict()
)
later = DawidSkene(dependence="ignore").fit(frame.iloc[-200:], history=informed.counts_)
print(later.annotators_.loc[["ann", "leo"], ["num_labels", "accuracy"]].round(2))

# %% [markdown]
# ## New labels, without a new fit

# %%
more = pd.DataFrame({"task": ["pic000", "pic600"], "worker": ["newcomer", "ann"], "label": ["cat", "dog"]})
informed.partial_fit(more)
print(informed.items_.loc[["pic000", "pic600"]])
print(informed.refit_gap_.round(3))

# %% [markdown]
# ## How sure is it really?
#
# Now the truth. Averaging over what is uncertain about annotators makes the probabilities honest; at the mode alone they are too sure.

# %%
plug_in = DawidSkene(confidence="plug-in", dependence="ignore").fit(frame)
vote = MajorityVote(dependence="ignore").fit(frame)
for name, answer in {"majority vote": vote, "plug-in": plug_in, "averaged, discounted": fitted}.items():
    right = answer.probabilities_.to_numpy()[
        np.arange(len(truth)), answer.classes_.get_indexer(truth.loc[answer.probabilities_.index])
    ]
    loss = -np.log(np.maximum(right, 1e-12)).mean()
    print(f"{name:22s} accuracy {answer.score(None, truth):.3f}   log loss {loss:.3f}")
codes = fitted.classes_.get_indexer(truth.loc[fitted.probabilities_.index]).astype(np.int64)
confidence_figure(fitted.probabilities_.to_numpy(), codes).savefig(OUT / "confidence.png")

# %% [markdown]
# ## All methods beside each other, and all of it as files

# %%
annotations = Annotations.from_frame(frame)
print(comparison_text(compare_aggregators(annotations, truth, progress=False, say=print), "majority-vote"))
done = aggregate_labels(annotations, out=OUT / "aggregated", gold=known, progress=False)
print(sorted(path.name for path in (OUT / "aggregated").iterdir()))
