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
# # Truth, difficulty and competence learned together
#
# Four hundred pictures have features (say, from a pretrained network), and each was labelled by three of
# twelve annotators. Three labels say little about a picture; but pictures that look alike tend to have the
# same class, and LIA (Platanios et al. 2020) learns that, together with who errs, and on what. The data are
# simulated; the truth is used only at the end.
#
# Open this file as a notebook with jupytext, or run it as a script.

# %%
import os
from pathlib import Path

import arviz_base
import arviz_stats
import jax
import numpy as np
import pandas as pd
from numpyro.infer import MCMC, NUTS, init_to_value

from probcrowd import LIA, DawidSkene, MajorityVote, MultiLabelLIA, TwoStage, load_lia, simulate_annotations

# from probcrowd.figures.aggregation import annotator_map_figure
from probcrowd.data.table import read_table
from probcrowd.models.lia.lia_numpyro import lia
from probcrowd.models.lia.prior import LIAPrior
from probcrowd.simulate import HardItems, simulate_features

OUT = Path(os.environ.get("PROBCROWD_OUT", "outputs/lia"))
DRAWS = int(os.environ.get("PROBCROWD_DRAWS", "500"))
OUT.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# Features decide whether a picture shows a fox (1) or not (0), up to some noise. Pictures with a large first
# feature are blurred: every annotator guesses.

# %%
features, is_fox = simulate_features(500, 8, classes=[0, 1], noise=1.0, seed=3)
blurred = features["x0"] > 0.7
names = ["ann", "bob", "cem", "dia", "eli", "fay", "gus", "hal", "ida", "jon", "kim", "leo"]
skill = dict(zip(names, np.linspace(0.95, 0.5, 12), strict=True))
labelled, unlabelled = is_fox.index[:400], is_fox.index[400:]
hard = HardItems(labelled[blurred[labelled]].tolist())
labels = simulate_annotations(is_fox[labelled], skill, labels_per_item=3, effects=[hard], seed=3).frame

# %% [markdown]
# ## Labels from annotators and features
#
# `probabilities_` use the labels and the features; `truth_probabilities_` are those of the truth network,
# from the features alone, and `predict_items` gives them for pictures without labels. `objective="joint"` is
# a likelihood with a prior: EM never lowers it.

# %%
fitted = LIA(dependence="ignore").fit(labels, features=features)
print(fitted.items_.sort_values("probability").head(3))
print(fitted.predict_items(features.loc[unlabelled[:3]]).round(2))
never_falls = bool((np.diff(fitted.log_posterior_) > -1e-6).all())
print(f"log posterior never falls: {never_falls}, converged: {fitted.converged_}")

# %% [markdown]
# ## Who errs, on what, and whom to ask next
#
# `competence_` is an annotator's confusion matrix on an average picture, `difficulty_` the probability that a
# typical annotator is wrong about a picture. `probability_right` combines both, also for pictures without
# labels: it tells which annotator to send them to.

# %%
print(fitted.competence_.loc[["ann", "leo"]].round(2))
mean_difficulty = fitted.difficulty_.groupby(blurred[labelled]).mean().rename("mean difficulty")
print(mean_difficulty.rename_axis("blurred").round(3))
right = fitted.probability_right(features=features.loc[unlabelled[:3]], annotators=["ann", "fay", "leo"])
print(right.round(2))
# annotator_map_figure(fitted.annotator_map_).savefig(OUT / "map.png")

# %% [markdown]
# ## Long fits
#
# With a folder, a fit saves a checkpoint after every round. A killed fit can be resumed with bit-identical
# results, and a finished one can be loaded.

# %%
LIA(dependence="ignore").fit(labels, features=features, folder=OUT / "fit", resume=True)
again = load_lia(OUT / "fit")
print(np.array_equal(again.probabilities_, fitted.probabilities_))

# %% [markdown]
# ## Does it help?
#
# Now the truth. Without features (the paper's LIA-E) or with the features of other pictures, LIA does about
# as well as Dawid and Skene's model. The objectives "as_written" and "as_coded" are those of the paper and of
# its code, with their flaws; here with fewer steps than published.

# %%
seen = is_fox[labelled]
shuffled = features.set_axis(np.random.default_rng(0).permutation(features.index), axis=0)
few = {"rounds": 3, "steps": 100, "last_steps": 100, "dependence": "ignore"}
answers = {
    "majority vote": MajorityVote(dependence="ignore").fit(labels),
    "Dawid-Skene": DawidSkene(dependence="ignore").fit(labels),
    "majority vote, then a network": TwoStage().fit(labels, features=features),
    "LIA": fitted,
    "LIA, without features": LIA(dependence="ignore").fit(labels),
    "LIA, shuffled features": LIA(dependence="ignore").fit(labels, features=shuffled),
    "LIA as written": LIA(objective="as_written", **few).fit(labels, features=features),
    "LIA as coded": LIA(objective="as_coded", **few).fit(labels, features=features),
}
for name, answer in answers.items():
    print(f"{name:32s} {answer.score(None, seen):.3f}")
new = fitted.predict_items(features.loc[unlabelled]).idxmax(axis=1)
print(f"{'LIA, pictures without labels':32s} {(new == is_fox[unlabelled]).mean():.3f}")

# %% [markdown]
# ## Several questions about every item
#
# Is it a fox? Was the picture taken at night? One model (LIA-ML) answers both: the questions share networks
# and the annotators' competences.

# %%
at_night = (features["x1"] + features["x2"] > 0).astype(int)
night = simulate_annotations(at_night[labelled], skill, labels_per_item=3, seed=4).frame
both = pd.concat([labels.assign(question="fox"), night.assign(question="night")], ignore_index=True)
questions = MultiLabelLIA().fit(both, features=features)
truth = pd.concat({"fox": seen, "night": at_night[labelled]}).swaplevel()
print(questions.score(truth).round(3))
print(questions.predict_items(features.loc[unlabelled[:2]]).round(2))

# %% [markdown]
# ## How sure are the networks?
#
# The same model is declared in NumPyro. Draws from its posterior, here with linear networks, show what the
# mode leaves out.

# %%
table = read_table(labels)
data = fitted.inputs_, table.rows, LIAPrior()
start = init_to_value(values=fitted.parameters_)
with jax.enable_x64(True):
    sampler = MCMC(
        NUTS(lia, init_strategy=start),
        num_warmup=DRAWS,
        num_samples=DRAWS,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    sampler.run(jax.random.key(0), *data)
    tree = arviz_base.from_numpyro(sampler, log_likelihood=False)
print(arviz_stats.summary(tree, var_names=["truth_weight"], kind="stats").head(4))
weights = tree["posterior"]["truth_weight"].to_numpy()
slope = (weights[..., 1] - weights[..., 0]).reshape(-1, 8)
mode = fitted.parameters_["truth_weight"]
columns = {"posterior mean": slope.mean(0), "posterior sd": slope.std(0), "mode": mode[:, 1] - mode[:, 0]}
print(pd.DataFrame(columns).round(2))
