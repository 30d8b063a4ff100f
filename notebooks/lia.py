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
# Four hundred pictures have features (say, from a pretrained network), and each was labelled by three of twelve annotators. Three labels are too
# few to say much about a picture; but pictures that look alike tend to be alike, and LIA (Platanios et al. 2020) learns that along with who
# errs, and on what. The data are simulated, so that at the end we can look at the truth; nothing before that does.
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

from probcrowd import LIA, DawidSkene, MajorityVote, MultiLabelLIA, TwoStage, load_lia

# from probcrowd.figures.aggregation import annotator_map_figure
from probcrowd.data.table import read_table
from probcrowd.models.lia.lia_numpyro import lia
from probcrowd.models.lia.prior import LIAPrior

OUT = Path(os.environ.get("PROBCROWD_OUT", "outputs/lia"))
DRAWS = int(os.environ.get("PROBCROWD_DRAWS", "500"))
OUT.mkdir(parents=True, exist_ok=True)

# %%
rng = np.random.default_rng(3)
pictures = [f"pic{number:03}" for number in range(500)]
features = pd.DataFrame(rng.normal(size=(500, 8)), pictures)
is_fox = pd.Series(
    (features.to_numpy() @ rng.normal(size=8) * 1.5 + rng.logistic(size=500) > 0).astype(int), pictures
)
blurred = features[0] > 0.7  # these are hard to tell, for everybody
skill = dict(
    zip(
        ["ann", "bob", "cem", "dia", "eli", "fay", "gus", "hal", "ida", "jon", "kim", "leo"],
        np.linspace(0.95, 0.5, 12),
        strict=True,
    )
)
rows = []
for picture in pictures[:400]:
    for name in rng.choice(list(skill), 3, replace=False):
        right = rng.random() < (0.5 if blurred[picture] else skill[name])
        rows.append((picture, name, is_fox[picture] if right else 1 - is_fox[picture]))
labels = pd.DataFrame(rows, columns=["item", "annotator", "label"])

# %% [markdown]
# ## AnnotationTensors from annotators and features
#
# `probabilities_` has heard everybody; `truth_probabilities_` is what the truth network says of a picture from its features alone, and
# `predict_items` says it of pictures that nobody has labelled. `objective="joint"` is a likelihood with a prior: EM never lowers it.

# %%
fitted = LIA(dependence="ignore").fit(labels, features=features)
print(fitted.items_.sort_values("probability").head(3))
print(fitted.predict_items(features.loc[pictures[400:403]]).round(2))
print(
    f"log posterior never falls: {bool((np.diff(fitted.log_posterior_) > -1e-6).all())}, converged: {fitted.converged_}"
)

# %% [markdown]
# ## Who errs, on what, and whom to ask next
#
# `competence_` is an annotator's confusion matrix on an average picture, `difficulty_` the probability that a typical annotator is wrong about
# a picture, and `probability_right` puts both together, also for pictures that nobody has seen: whom to send them to.

# %%
print(fitted.competence_.loc[["ann", "leo"]].round(2))
print(
    fitted.difficulty_.groupby(blurred.loc[pictures[:400]])
    .mean()
    .rename("mean difficulty")
    .rename_axis("blurred")
    .round(3)
)
print(
    fitted.probability_right(
        features=features.loc[pictures[400:403]], annotators=["ann", "fay", "leo"]
    ).round(2)
)
# annotator_map_figure(fitted.annotator_map_).savefig(OUT / "map.png")

# %% [markdown]
# ## Long fits
#
# In a folder, a fit keeps a checkpoint after every round, can be resumed after a kill, to the same bits, and read again.

# %%
LIA(dependence="ignore").fit(labels, features=features, folder=OUT / "fit", resume=True)
again = load_lia(OUT / "fit")
print(np.array_equal(again.probabilities_, fitted.probabilities_))

# %% [markdown]
# ## Does it help?
#
# Now the truth. Without features (the paper's LIA-E) or with the features of other pictures, what is left is about Dawid and Skene's model.
# The objectives "as_written" and "as_coded" are the paper's and its code's, with their flaws; here with fewer steps than published.

# %%
seen = is_fox.loc[pictures[:400]]
shuffled = features.set_axis(rng.permutation(features.index), axis=0)
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
new = fitted.predict_items(features.loc[pictures[400:]]).idxmax(axis=1)
print(f"{'LIA, of pictures without labels':32s} {(new == is_fox.loc[pictures[400:]]).mean():.3f}")

# %% [markdown]
# ## Several questions about every item
#
# Is it a fox? Is it at night? One model (LIA-ML) answers both: questions share networks and annotators' competences.

# %%
at_night = pd.Series((features[1] + features[2] > 0).astype(int), pictures)
both = labels.assign(question="fox")
turned = rng.random(len(labels)) > labels["annotator"].map(skill)
night = labels.assign(
    question="night", label=np.where(turned, 1 - labels["item"].map(at_night), labels["item"].map(at_night))
)
questions = MultiLabelLIA().fit(pd.concat([both, night], ignore_index=True), features=features)
truth = pd.concat({"fox": seen, "night": at_night.loc[pictures[:400]]}).swaplevel()
print(questions.score(truth).round(3))
print(questions.predict_items(features.loc[pictures[400:402]]).round(2))

# %% [markdown]
# ## How sure are the networks?
#
# The same model stands in NumPyro. Draws of its posterior, here of the linear networks, show what the mode leaves out.

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
print(
    pd.DataFrame(
        {"posterior mean": slope.mean(0), "posterior sd": slope.std(0), "mode": mode[:, 1] - mode[:, 0]}
    ).round(2)
)
