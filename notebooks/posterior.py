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
# # From a CSV to a checked posterior
#
# Five anaesthetists judged the fitness of 45 patients on a scale from 1 to 4, the first of them three times
# (Dawid and Skene 1979). The right answers are unknown. What do the judgements say about the patients and
# about the judges, and how certain is it?
#
# Open this file as a notebook with jupytext, or run it as a script. It needs the package's extra `mcmc`.

# %%
import os
from pathlib import Path

import pandas as pd

from probcrowd import Annotations, check_posterior, load_posterior, sample_posterior, save_posterior
from probcrowd.data.files import anesthesia
from probcrowd.inference.checks.leave_one_out import compare_models
from probcrowd.models.priors import DirichletPrior

DRAWS = int(os.environ.get("PROBCROWD_DRAWS", "1000"))  # per chain; few in a quick run
OUT = Path(os.environ.get("PROBCROWD_OUT", "outputs/posterior"))
OUT.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The table
#
# One row per judgement. Columns called item, annotator and label (or task, worker, label) are recognised; any
# others have to be named. A judge who judged a patient three times has three rows: `duplicates="count"`
# counts each of them.

# %%
anesthesia().to_frame().to_csv(OUT / "judgements.csv", index=False)
frame = pd.read_csv(OUT / "judgements.csv")
annotations = Annotations.from_frame(frame, duplicates="count")
print(annotations)
print(pd.crosstab(frame["annotator"], frame["label"]))

# %% [markdown]
# ## The posterior of Dawid and Skene's model
#
# Every judge has a confusion matrix and every patient a true class; both are uncertain. The model is
# conjugate, so blocked Gibbs sampling takes seconds. The result is an `xarray.DataTree` with your ids as
# coordinates, which ArviZ reads.

# %%
tree = sample_posterior(annotations, "dawid_skene", seed=1, draws=DRAWS, warmup=DRAWS, progress=False)
save_posterior(tree, OUT / "posterior.nc")
tree = load_posterior(OUT / "posterior.nc")
probabilities = tree["responsibilities"]["mean"].to_pandas()
print(probabilities.loc[[1, 3, 20, 36]].round(3))  # patients 1, 3, 20 and 36

# %% [markdown]
# ## Can the draws be trusted, and does the model fit?
#
# The first findings are about the draws: do the chains agree, are there enough draws, are there other modes?
# The others are about the model.

# %%
checked = check_posterior(tree, seed=2)
print(checked)

# %% [markdown]
# Two findings deserve attention.
#
# * **Plug-in overconfidence.** EM reports label probabilities at one point of the posterior, its mode.
#   Averaging over the whole posterior makes the same labels less certain. Patient 3, for example:

# %%
print(
    checked.tables["items"]
    .loc[[3], ["confidence", "plug_in_confidence", "entropy", "plug_in_entropy"]]
    .round(3)
)

# %% [markdown]
# * **Sensitivity to the prior.** With 45 patients, the prior on the judges matters. Report it, and look at
#   another prior:

# %%
other = sample_posterior(
    annotations,
    "dawid_skene",
    prior=DirichletPrior.named("rater", 4),
    seed=1,
    draws=DRAWS,
    warmup=DRAWS,
    progress=False,
)
both = pd.DataFrame(
    {
        "accurate": tree["posterior"]["class_prior"].mean(("chain", "draw")),
        "rater": other["posterior"]["class_prior"].mean(("chain", "draw")),
    }
)
print(both.set_axis(annotations.classes).round(3))
changed = (probabilities.idxmax(axis=1) != other["responsibilities"]["mean"].to_pandas().idxmax(axis=1)).sum()
print(f"{changed} of {len(probabilities)} patients change their most probable class")

# %% [markdown]
# ## A warning that must not be missed
#
# Under a flat prior the model does not know which class is which: exchanging two classes, in the class prior
# and in every judge's matrix, changes nothing. Chains that start anywhere settle on different namings, and
# means over them are meaningless. No divergence warns of that; the check does, and reports what is still
# usable.

# %%
flat = sample_posterior(
    annotations,
    "dawid_skene",
    prior=DirichletPrior.named("flat", 4),
    seed=1,
    draws=DRAWS,
    warmup=DRAWS,
    start="dispersed",
    progress=False,
)
warned = check_posterior(flat, seed=2)
print(warned.verdict)
print(next(str(finding) for finding in warned.findings if finding.name == "order of the classes"))

# %% [markdown]
# ## Which model?
#
# Leaving out one patient at a time shows how well a model predicts the judgements of a new patient. The
# models are compared in pairs on the same patients.

# %%
models = {"dawid_skene": tree} | {
    name: sample_posterior(annotations, name, seed=1, draws=DRAWS, warmup=DRAWS, progress=False)
    for name in ("one_coin", "multinomial", "mace")
}
comparison = compare_models({name: fitted["log_likelihood"]["votes"] for name, fitted in models.items()})
print(comparison.round(1))
comparison.to_csv(OUT / "comparison.csv")
