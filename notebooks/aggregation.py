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
# # From a CSV to labels, annotators and confidence
#
# Fourteen annotators sorted 600 pictures into cat, dog and fox; each picture was labelled by four of them.
# Some annotators are good, some are hasty, one mixes up dogs and foxes, one clicks at random, and two
# accounts belong to the same person. The table is simulated, so the truth is known; it is used only at the
# end, and for gold labels.
#
# Open this file as a notebook with jupytext, or run it as a script.

# %%
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from probcrowd import DawidSkene, MajorityVote, simulate_annotations
from probcrowd.data.annotations import Annotations
from probcrowd.figures.aggregation import annotators_figure, confidence_figure
from probcrowd.figures.base import confusion_figure
from probcrowd.runs.aggregate import aggregate_labels, compare_aggregators, comparison_text
from probcrowd.simulate import Copies

OUT = Path(os.environ.get("PROBCROWD_OUT", "outputs/aggregation"))
OUT.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# An annotator is described by an accuracy, or by a confusion matrix (rows: true class, columns: label).
# `Copies` makes the account mia2 repeat the labels of mia.

# %%
annotators = {"ann": 0.95, "bob": 0.9, "cem": 0.85, "dia": 0.8, "eli": 0.75, "fay": 0.7, "gus": 0.65}
annotators |= {"hal": 0.6, "ida": 0.6, "jon": 0.55, "leo": 1 / 3, "mia": 0.55, "mia2": 0.55}
annotators["kim"] = [[1, 0, 0], [0, 0.2, 0.8], [0, 0.8, 0.2]]  # mixes up dogs and foxes
simulated = simulate_annotations(
    600,
    annotators,
    classes=["cat", "dog", "fox"],
    class_prior=[0.5, 0.3, 0.2],
    labels_per_item=4,
    effects=[Copies("mia", ["mia2"])],
    seed=7,
)
truth = simulated.truth
simulated.frame.to_csv(OUT / "labels.csv", index=False)

# %% [markdown]
# ## The table
#
# Columns called item, annotator and label (or task, worker, label) are recognised. Invalid input, such as a
# missing label or a repeated (item, annotator) pair, raises a single error that lists the rows.

# %%
frame = pd.read_csv(OUT / "labels.csv")
print(frame.head(3))

# %% [markdown]
# ## Labels with probabilities
#
# `DawidSkene` learns a confusion matrix for every annotator together with the labels. It warns if annotators
# agree more often than the truth explains.

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
# Accuracy alone misleads: kim is often wrong, but systematically, so kim's labels are informative.
# `information_bits` measures that: bits about the truth per label. `spammer` is the probability that an
# annotator's labels do not depend on the truth at all.

# %%
by_annotator = fitted.annotators_.sort_values("information_bits", ascending=False)
print(by_annotator[["num_labels", "accuracy", "information_bits", "spammer"]].round(2))
print(fitted.confusion_.loc["kim"].round(2))
annotators_figure(by_annotator).savefig(OUT / "annotators.png")
confusion_figure(fitted.confusion_.loc[["ann", "kim", "leo"]]).savefig(OUT / "confusion.png")

# %% [markdown]
# ## Annotators who copy
#
# The dependence check lists pairs of annotators, how often they agree, and how often the model expects them
# to. Two accounts of one person are two votes from one mind: keep one of them, or discount correlated labels
# with `dependence="discount"`.

# %%
print(fitted.dependent_pairs_.head(3).round(2))
labels_per_item, effective = fitted.dependence_.labels_per_item, fitted.dependence_.effective_annotators
print(f"{labels_per_item:.1f} labels per item are worth {effective:.1f} independent ones")
frame = frame[frame["annotator"] != "mia2"]
fitted = DawidSkene(dependence="discount").fit(frame)

# %% [markdown]
# ## Gold labels, and annotators seen before
#
# Known classes fix their items, and the model learns about annotators from them. What is known about
# annotators from earlier tables enters as `history`: the expected counts of an earlier fit.

# %%
gold = truth.iloc[:40]
informed = DawidSkene(dependence="ignore").fit(frame, gold=gold)
print(informed.items_.loc[gold.index, "known"].all(), informed.probabilities_.loc["i0"].round(3).to_dict())
later = DawidSkene(dependence="ignore").fit(frame.iloc[-200:], history=informed.counts_)
print(later.annotators_.loc[["ann", "leo"], ["num_labels", "accuracy"]].round(2))

# %% [markdown]
# ## New labels without refitting

# %%
more = pd.DataFrame({"item": ["i0", "i600"], "annotator": ["newcomer", "ann"], "label": ["cat", "dog"]})
informed.partial_fit(more)
print(informed.items_.loc[["i0", "i600"]])
print(informed.refit_gap_.round(3))

# %% [markdown]
# ## Are the probabilities calibrated?
#
# Now the truth. Averaging over the uncertainty about annotators makes the probabilities honest; at the mode
# alone (plug-in) they are overconfident.

# %%
plug_in = DawidSkene(confidence="plug-in", dependence="ignore").fit(frame)
vote = MajorityVote(dependence="ignore").fit(frame)
for name, answer in {"majority vote": vote, "plug-in": plug_in, "averaged, discounted": fitted}.items():
    true_class = answer.classes_.get_indexer(truth.loc[answer.probabilities_.index])
    probability = answer.probabilities_.to_numpy()[np.arange(len(truth)), true_class]
    loss = -np.log(np.maximum(probability, 1e-12)).mean()
    print(f"{name:22s} accuracy {answer.score(None, truth):.3f}   log loss {loss:.3f}")
codes = fitted.classes_.get_indexer(truth.loc[fitted.probabilities_.index]).astype(np.int64)
confidence_figure(fitted.probabilities_.to_numpy(), codes).savefig(OUT / "confidence.png")

# %% [markdown]
# ## All methods side by side, and all results as files

# %%
annotations = Annotations.from_frame(frame)
print(comparison_text(compare_aggregators(annotations, truth, progress=False, report=print)))
done = aggregate_labels(annotations, out=OUT / "aggregated", gold=gold, progress=False)
print(sorted(path.name for path in (OUT / "aggregated").iterdir()))
