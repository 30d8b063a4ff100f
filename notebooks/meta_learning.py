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
# # What meta-learning learned, and when EM is worth it
#
# A network is meta-trained on four of scikit-learn's handwritten digits: on small tasks, each with simulated
# annotators, through the EM that fits prototypes and confusion matrices to them (Kumagai et al. 2025). It
# then meets three digits that it has never seen, with few items labelled by noisy annotators. Three
# questions: What did the latent space learn? How well are the annotators' confusion matrices estimated? When
# does EM do better than a vote?
#
# The division of the digits into training, validation and target digits is drawn five times, so there are
# five networks. No choice depends on target digits. Intervals are 95 % over tasks, for these networks, and
# each holds by itself, not all of them together. Beside them stands the number of splits with the same sign;
# the splits share digits, so they are not independent either.
#
# Open this file as a notebook with jupytext, or run it as a script.

# %%
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn.functional import one_hot

from probcrowd.figures.base import confusion_figure
from probcrowd.inference.meta import em
from probcrowd.inference.meta.adaptation import PROTOTYPICAL, Method, predict
from probcrowd.metrics.intervals import CENTRAL, interval
from probcrowd.metrics.tensors import accuracy, confusion_error
from probcrowd.runs.meta.configuration import MetaTraining
from probcrowd.runs.meta.demo import Pixels, demo_settings
from probcrowd.runs.meta.evaluate import paired_difference, target_scores
from probcrowd.runs.meta.network import new_network
from probcrowd.runs.meta.sources import Sources, class_sources, generator_of
from probcrowd.runs.meta.train import meta_train, validate
from probcrowd.runs.meta.trained import load_run
from probcrowd.simulate.annotators import Mixture, draw_confusion
from probcrowd.simulate.episodes import Episodes, EpisodeSource, draw_episodes

OUT = Path(os.environ.get("PROBCROWD_OUT", "outputs/meta_learning"))
STEPS = int(os.environ.get("PROBCROWD_DRAWS", "400"))
SPLITS = min(5, max(1, STEPS // 80))
TASKS = STEPS // 2  # per split and cell
TASK_SEED = 0  # other tasks of the same classes, other annotators
OUT.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Five networks
#
# Training is that of `probcrowd demo`, with fewer steps. Each trained network is compared with two controls:
# the pixels themselves, and the network before training. The model has unit covariance, so the scale of a
# space decides how much an item's position counts against a label. Training sets the scale along with the
# rest. To separate the two, each space is also multiplied by the factor that does best on the validation
# digits: "scaled".

# %%
SCALES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class Split:
    """One division of the digits: the settings of its target tasks, its items and its embeddings."""

    drawing: MetaTraining
    sources: Sources
    spaces: dict[str, nn.Module]

    @property
    def target(self) -> EpisodeSource:
        """The digits that were not used in training."""
        return self.sources.target


def trained_split(seed: int) -> Split:
    """Train on one division of the digits, and scale the controls."""
    base = demo_settings(OUT / f"split-{seed}")
    settings = base.model_copy(
        update={"seed": seed, "training": base.training.model_copy(update={"steps": STEPS})}
    )
    meta_train(settings, resume=True, progress=False)
    sources, method = class_sources(settings), settings.adaptation.method
    plain: dict[str, nn.Module] = {
        "pixels": nn.Flatten(),
        "untrained": new_network(settings, sources.input_shape, None),
        "trained": load_run(settings.out).encoder,
    }

    def scaled(space: nn.Module) -> nn.Module:
        candidates = [nn.Sequential(space, Pixels(scale)) for scale in SCALES]
        return max(
            candidates, key=lambda candidate: validate(settings, sources.validation, candidate, method)
        )

    drawing = settings.model_copy(update={"seed": seed + 1000 * TASK_SEED})
    return Split(
        drawing, sources, plain | {f"{name}, scaled": scaled(space) for name, space in plain.items()}
    )


splits = [trained_split(seed) for seed in range(SPLITS)]
for number, split in enumerate(splits):
    trained, targets = (", ".join(split.sources.names[part]) for part in (0, 2))
    print(f"split {number}: trained on {trained}, targets {targets}")
OWN = splits[0].drawing.adaptation.method  # J = 2
SOFT_VOTE = replace(OWN, steps=1)  # J = 1 never uses the confusion matrices

# %% [markdown]
# ## 1. What did the latent space learn?
#
# The figure shows the target digits of the first split along their first two principal components (PCA uses
# no labels). Five annotators labelled five items of each digit; on average two of the five guess. The
# prototypes are fitted to these labels: by soft vote, and by EM with J = 2.

# %%


def target_items(split: Split) -> tuple[Tensor, Tensor]:
    """All items of the target digits as positions in the pool, and their classes."""
    sizes = split.target.sizes
    return torch.cat([row[:size] for row, size in zip(split.target.items, sizes, strict=True)]), torch.arange(
        len(sizes)
    ).repeat_interleave(sizes)


def embedded(split: Split, space: str) -> tuple[Tensor, Tensor]:
    """Embeddings (n, d) of all items of the target digits, and their classes."""
    items, label = target_items(split)
    with torch.no_grad():
        return split.spaces[space](split.target.inputs(items[None])[0]), label


def shown_classes(split: Split, episodes: Episodes) -> Tensor:
    """The target digit behind each class of each task, (b, k): every task numbers its classes differently."""
    items, label = target_items(split)
    of_item = torch.zeros(len(split.target.pool), dtype=torch.long).index_put((items,), label)
    return of_item[episodes.support].unflatten(1, (episodes.ways, -1))[..., 0]


def target_tasks(split: Split, shots: int, mixture: Mixture, purpose: str, annotators: int = 5) -> Episodes:
    """Target tasks; one purpose always draws the same."""
    generator = generator_of(split.drawing, f"{purpose}/{shots}")
    return draw_episodes(split.target, split.drawing.shape(shots, annotators), mixture, TASKS, generator)


def spaces_figure(split: Split, episodes: Episodes) -> Figure:
    """Target items and the prototypes of the first task, a panel per space."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    digit = shown_classes(split, episodes)[0]
    for axis, name in zip(figure.subplots(1, len(SHOWN)), SHOWN, strict=True):
        embeddings, label = embedded(split, name)
        plane = PCA(2).fit(embeddings.numpy())
        place = plane.transform(embeddings.numpy())
        for kind, title in enumerate(split.sources.names[2]):
            mine = (label == kind).numpy()
            axis.scatter(
                *place[mine].T, s=12, alpha=0.35, color=f"C{kind}", linewidths=0, label=f"digit {title}"
            )
        means = np.stack([place[(label == kind).numpy()].mean(0) for kind in label.unique()])
        axis.scatter(*means.T, s=130, marker="+", color="black", zorder=4, label="mean of all items")
        for mark, method, title in (("^", SOFT_VOTE, "prototype, soft vote"), ("s", OWN, "prototype, J = 2")):
            _, fitted = predict(split.spaces[name], split.target, episodes, method)
            points = plane.transform(fitted.prototypes[0].numpy())
            for number, (point, kind) in enumerate(zip(points, digit.tolist(), strict=True)):
                axis.scatter(
                    *point,
                    s=70,
                    marker=mark,
                    color=f"C{kind}",
                    edgecolors="black",
                    zorder=5,
                    label=None if number else title,
                )
        axis.set(
            title=f"{name}\n{plane.explained_variance_ratio_.sum():.0%} of the variance shown",
            xticks=[],
            yticks=[],
            aspect="equal",
        )
        axis.set_adjustable("datalim")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False
    )
    return figure


SHOWN = ("pixels, scaled", "untrained, scaled", "trained")
MANY_GUESS = Mixture(0.1, 0.5, 0.4)
spaces_figure(splits[0], target_tasks(splits[0], 5, MANY_GUESS, "prototypes")).savefig(
    OUT / "spaces.png", dpi=120
)

# %% [markdown]
# In numbers: `ratio` is the variance between classes over that within classes, in all directions. `in_plane`
# is the same in the plane through the class means, the only directions that matter to prototypes at these
# means. `nats` is half the mean squared distance between class means: the log odds that an item contributes,
# where a label by an annotator with accuracy 0.65 contributes ln(0.65 / 0.175) = 1.3. Scaling changes `nats`
# only.

# %%


def spread(embeddings: Tensor, label: Tensor) -> dict[str, float]:
    """Distances between classes relative to their widths."""
    means = torch.stack([embeddings[label == kind].mean(0) for kind in label.unique()])
    apart, within = means[label] - embeddings.mean(0), embeddings - means[label]
    plane = torch.linalg.svd(means - means.mean(0), full_matrices=False)[2][: len(means) - 1]
    return {
        "ratio": float(apart.square().sum() / within.square().sum()),
        "in_plane": float((apart @ plane.T).square().sum() / (within @ plane.T).square().sum()),
        "nats": float(torch.pdist(means).square().mean() / 2),
    }


measured = {name: [spread(*embedded(split, name)) for split in splits] for name in splits[0].spaces}
for column in ("ratio", "in_plane", "nats"):
    table = pd.DataFrame({name: [row[column] for row in spreads] for name, spreads in measured.items()})
    shown = table if column == "nats" else table[["pixels", "untrained", "trained"]]
    print(f"{column}\n{shown.rename_axis('split').round(2).to_string()}")
    higher = np.sum(table["trained"] > table["pixels"])
    print(f"higher in the trained space than in pixels in {higher} of {SPLITS} splits\n")

# %% [markdown]
# Does it classify better? First with clean labels, where only the space matters (nearest class mean; scale
# does not matter); then with five annotators, of whom one in five guesses, and J = 2.

# %%
CLEAN = Method("majority-vote", prior=PROTOTYPICAL)


def space_scores(shots: int, *, clean: bool) -> pd.DataFrame:
    """Accuracy on every target task in every space; the same tasks for all."""
    rows = []
    for number, split in enumerate(splits):
        episodes, method = target_tasks(split, shots, Mixture(), "spaces"), OWN
        if clean:
            episodes, method = replace(episodes, labels=episodes.support_truth[..., None]), CLEAN
        for name, space in split.spaces.items():
            scores = accuracy(predict(space, split.target, episodes, method)[0], episodes.query_truth).mean(1)
            rows.append(
                pd.DataFrame(
                    {"split": number, "method": name, "task": range(TASKS), "accuracy": scores.numpy()}
                )
            )
    return pd.concat(rows, ignore_index=True)


def difference(scores: pd.DataFrame, first: str, second: str) -> str:
    """Mean paired difference of accuracy with its interval, and in how many splits it is positive."""
    row = paired_difference(scores, first, second)
    return f"{row['difference']:+.3f} ±{row['half_width']:.3f} ({str(row['ahead']).removesuffix(' splits')})"


rows = []
for clean, others in (
    (True, ("pixels", "untrained")),
    (False, ("pixels, scaled", "untrained, scaled", "untrained", "trained, scaled")),
):
    for shots in (1, 5, 50):
        scores = space_scores(shots, clean=clean)
        own = scores.loc[scores["method"] == "trained", "accuracy"].mean()
        rows += [
            ("clean" if clean else "noisy", shots, f"{own:.3f}", other, difference(scores, "trained", other))
            for other in others
        ]
columns = ["labels", "items per class", "trained", "other space", "trained minus other"]
print(pd.DataFrame(rows, columns=pd.Index(columns)).to_string(index=False))

# %% [markdown]
# On digits that were not used in training, meta-training raises the ratio over all directions. That is not
# enough: in the plane of the class means, pixels keep the classes further apart, and pixels classify better,
# with clean and with noisy labels. The untrained network, once scaled, is within two points of the trained
# one, and ahead of it at 50 items; without scaling it is at least seven points behind with noisy labels. So
# four source digits taught a useful scale much more than a better space. With many source classes, as in
# Omniglot, this is different (see benchmarks/results).
#
# The effect of EM in the space can be measured as well: the distance of a task's prototypes from the means of
# all items of their digits.

# %%
rows = []
for split in splits:
    episodes = target_tasks(split, 5, MANY_GUESS, "prototypes")
    embeddings, label = embedded(split, "trained")
    means = torch.stack([embeddings[label == kind].mean(0) for kind in label.unique()])[
        shown_classes(split, episodes)
    ]  # (b, k, d)
    clean = replace(episodes, labels=episodes.support_truth[..., None])
    away = {
        name: (predict(split.spaces["trained"], split.target, tasks, method)[1].prototypes - means)
        .norm(dim=-1)
        .mean(1)
        for name, tasks, method in (
            ("soft vote", episodes, SOFT_VOTE),
            ("J = 2", episodes, OWN),
            ("clean labels", clean, SOFT_VOTE),
        )
    }
    rows.append(
        {name: str(interval(value.numpy())) for name, value in away.items()}
        | {"J = 2 minus soft vote": str(interval((away["J = 2"] - away["soft vote"]).numpy()))}
    )
print(pd.DataFrame(rows).rename_axis("split").to_string())

# %% [markdown]
# EM moves the prototypes nearer to the class means in every split: the votes of guessing annotators pull all
# prototypes towards the centre, and EM undoes part of that. Clean labels would bring them nearer still.
#
# ## 2. Are the confusion matrices right?
#
# Two crowds of five: one with the kinds of annotators simulated in meta-training, and one with kinds that
# training never saw (flippers, who give the next class, and annotators who guess for some classes only).
# First a picture: the first task of the second crowd in the first split, 50 items per class.

# %%
CROWDS = {"as in training": Mixture(), "with unknown kinds": Mixture(0.1, 0.4, 0.2, 0.15, 0.15)}


def matrices(confusion: Tensor) -> pd.DataFrame:
    """The matrices (j, k, l) of one task as a table."""
    classes = pd.RangeIndex(1, confusion.shape[1] + 1)
    index = pd.MultiIndex.from_product(
        [[f"annotator {number + 1}" for number in range(len(confusion))], classes]
    )
    return pd.DataFrame(confusion.flatten(0, 1).numpy(), index, classes)


split = splits[0]
episodes = target_tasks(split, 50, CROWDS["with unknown kinds"], "with unknown kinds")
_, fitted = predict(split.spaces["trained"], split.target, episodes, OWN)
confusion_figure(matrices(fitted.confusion[0]), matrices(episodes.confusion[0])).savefig(
    OUT / "confusion.png", dpi=120
)

# %% [markdown]
# Then all tasks, with more and more items. `error` is the mean total variation distance of rows,
# `correlation` that of estimated with true accuracies over all annotators, `bias` the mean of estimated minus
# true accuracy. The estimates of J = 2 are compared with:
#
# * *prior only*: the mode of the prior, the estimate without any label: one over the number of classes in
#   every cell;
# * *average annotator*: the mean matrix of the crowd for every annotator; it knows the crowd but uses no
#   labels;
# * *someone else's*: the estimate of J = 2 for an annotator of another task;
# * *truth known*: counts against the true classes, with the same prior.

# %%


def skill(confusion: Tensor) -> Tensor:
    """Mean probability of a right label."""
    return confusion.diagonal(dim1=-2, dim2=-1).mean(-1)


def correlation(estimated: Tensor, true: Tensor) -> float:
    """Correlation over all annotators of all tasks; not a number where the estimate is constant."""
    first, second = estimated.flatten() - estimated.mean(), true.flatten() - true.mean()
    return (
        float(first @ second / (first.norm() * second.norm()))
        if float(first.abs().max()) > 1e-6
        else float("nan")
    )


def correlation_text(estimated: Tensor, true: Tensor) -> str:
    """The correlation with its 95 % interval from 200 resamples of tasks."""
    generator = torch.Generator().manual_seed(TASK_SEED)
    again = torch.randint(len(true), (200, len(true)), generator=generator)
    low, high = np.quantile([correlation(estimated[tasks], true[tasks]) for tasks in again], CENTRAL)
    return f"{correlation(estimated, true):.2f} ({low:.2f}, {high:.2f})"


def estimates(split: Split, episodes: Episodes, mean: Tensor) -> dict[str, Tensor]:
    """Confusion matrices by every method of estimation."""
    space, source = split.spaces["trained"], split.target
    blind = episodes.noisy_support(torch.zeros(*episodes.support.shape, 1))
    own = predict(space, source, episodes, OWN)[1].confusion
    return {
        "J = 2": own,
        "J = 3": predict(space, source, episodes, replace(OWN, steps=3))[1].confusion,
        "soft vote": predict(space, source, episodes, SOFT_VOTE)[1].confusion,
        "prior only": torch.full_like(own, 1 / episodes.ways),
        "average annotator": mean.expand_as(own),
        "someone else's": own.roll(1, 0),
        "truth known": em.m_step(
            one_hot(episodes.support_truth, episodes.ways).float(), blind, OWN.prior
        ).confusion,
    }


SHOTS = (1, 5, 15, 50)
rows, curves = [], []
for crowd, mixture in CROWDS.items():
    mean = draw_confusion(mixture, 20_000, 1, 3, torch.Generator().manual_seed(1)).mean((0, 1))
    for shots in SHOTS:
        tasks = [target_tasks(split, shots, mixture, crowd) for split in splits]
        estimated_by = [
            estimates(split, episodes, mean) for split, episodes in zip(splits, tasks, strict=True)
        ]
        true = torch.cat([episodes.confusion for episodes in tasks])
        for name in estimated_by[0]:
            estimated = torch.cat([each[name] for each in estimated_by])
            error = interval(confusion_error(estimated, true).mean(1).numpy())
            row = {"crowd": crowd, "labels each": 3 * shots, "estimate": name, "error": str(error)}
            bias = float((skill(estimated) - skill(true)).mean())
            constant = name in ("prior only", "average annotator")
            text = "-" if constant else correlation_text(skill(estimated), skill(true))
            rows.append({**row, "correlation": text, "bias": f"{bias:+.2f}"})
            curves.append({**row, "error": error.mean, "half_width": error.half_width})
table = pd.DataFrame(rows)
print(table.to_string(index=False))
table.to_csv(OUT / "confusion.csv", index=False)

# %%
lines, figure = pd.DataFrame(curves), Figure(figsize=(9.5, 3.8), layout="constrained")
panels = figure.subplots(1, len(CROWDS), sharey=True)
for axis, (crowd, group) in zip(panels, lines.groupby("crowd", sort=False), strict=True):
    for number, (name, line) in enumerate(group.groupby("estimate", sort=False)):
        dashed = name in ("prior only", "average annotator", "someone else's", "truth known")
        style = {
            "ls": "--" if dashed else "-",
            "marker": "osD^vPX"[number],
            "ms": 4,
            "color": f"C{number}",
            "capsize": 2,
        }
        axis.errorbar(line["labels each"], line["error"], line["half_width"], label=name, **style)
    axis.set(title=str(crowd), xlabel="labelled items per annotator", xscale="log")
    axis.set_xticks([3 * shots for shots in SHOTS], [str(3 * shots) for shots in SHOTS])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
panels[0].set(ylabel="error of the confusion matrices", ylim=(0, None))
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
figure.savefig(OUT / "confusion_error.png", dpi=120)

# %% [markdown]
# * **Too few labels.** With three labels each (one item per class) the error is only a little below that of
#   the prior alone, and far above that of the average annotator. The same holds for counts against the known
#   truth: labels are lacking, not a better fit. The prior is flat, so estimated accuracies are far too low.
# * **Enough labels.** From 45 labels per annotator J = 2 is better than the average annotator in both crowds,
#   and at 150 its error is little more than half of that, or less. With 15 it depends on the crowd: where
#   annotators are much alike, the average is still better.
# * **EM against a vote.** J = 2 is nearer to the truth than the soft vote at every size, and its accuracies
#   correlate better. More labels do not correct the soft vote: at 150 each it still underestimates
#   accuracies, by 0.06 on average. With 150 labels a third step helps.
# * **Unknown kinds** are estimated nearly as well as known ones: confusion matrices are free, not tied to
#   those of meta-training.
#
# ## 3. When does EM help over voting?
#
# All methods use the trained networks and the same tasks; only the labels of the last M step differ. Starting
# from five items per class, five annotators, and one in five guessing, one of the three is varied at a time.
# A positive number favours the first of the two methods.

# %%
METHODS = {
    "J = 2": OWN,
    "J = 3": replace(OWN, steps=3),
    "J = 10": replace(OWN, steps=10),
    "soft vote": SOFT_VOTE,
    "majority vote": replace(OWN, labels="majority-vote"),
    "Dawid-Skene first": replace(OWN, labels="dawid-skene"),
}
PAIRS = (
    ("J = 2", "majority vote"),
    ("J = 2", "soft vote"),
    ("J = 2", "Dawid-Skene first"),
    ("J = 3", "J = 2"),
    ("J = 10", "J = 2"),
)
AXES: dict[str, tuple[float, ...]] = {
    "spammers": (0.0, 0.2, 0.4, 0.6, 0.8),
    "annotators": (1, 2, 3, 5, 7, 15),
    "shots": (1, 2, 5, 15, 50),
}
CENTRE: dict[str, tuple[float, ...]] = {"shots": (5,), "annotators": (5,), "spammers": (0.2,)}


def cell_scores(**cells: tuple[float, ...]) -> pd.DataFrame:
    """Scores of all methods in all splits, on the same tasks, with these values instead of the centre's."""
    each = []
    for number, split in enumerate(splits):
        target = split.drawing.target.model_copy(update={"tasks": TASKS, **CENTRE, **cells})
        own = {name: (split.spaces["trained"], method) for name, method in METHODS.items()}
        each.append(
            target_scores(split.drawing.model_copy(update={"target": target}), split.target, own).assign(
                split=number
            )
        )
    return pd.concat(each, ignore_index=True)


def gains(scores: pd.DataFrame, by: str) -> pd.DataFrame:
    """Paired differences for each value of one column."""
    rows = []
    for value, group in scores.groupby(by):
        for first, second in PAIRS:
            score = paired_difference(group, first, second)
            rows.append(
                {
                    by: value,
                    "pair": f"{first} minus {second}",
                    **score,
                    "text": difference(group, first, second),
                }
            )
    return pd.DataFrame(rows)


figure = Figure(figsize=(12.5, 4.2), layout="constrained")
panels = figure.subplots(1, len(AXES), sharey=True)
all_gains = []
for axis, (by, values) in zip(panels, AXES.items(), strict=True):
    scores = cell_scores(**{by: values})
    by_value = gains(scores, by)
    all_gains.append(by_value.assign(axis=by).rename(columns={by: "value"}))
    level = scores.pivot_table(index=by, columns="method", values="accuracy")[
        ["majority vote", "J = 2"]
    ].round(3)
    print(
        level.join(
            by_value.pivot(index=by, columns="pair", values="text")[by_value["pair"].unique()]
        ).to_string(),
        "\n",
    )
    for number, (pair, line) in enumerate(by_value.groupby("pair", sort=False)):
        place = np.arange(len(values)) + 0.08 * (number - 2)
        style = {"marker": "osD^v"[number], "ms": 4, "color": f"C{number}", "capsize": 2, "lw": 1.2}
        axis.errorbar(
            place, line["difference"].astype(float), line["half_width"].astype(float), label=pair, **style
        )
    axis.axhline(0, color="black", lw=0.8)
    axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    words = {
        "spammers": "share of annotators who guess",
        "annotators": "annotators",
        "shots": "labelled items per class",
    }
    axis.set(xlabel=words[by])
    axis.grid(alpha=0.3)
panels[0].set_ylabel("difference of query accuracy")
figure.legend(
    *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(PAIRS), frameon=False
)
figure.savefig(OUT / "gains.png", dpi=120)
pd.concat(all_gains).drop(columns="text").to_csv(OUT / "gains.csv", index=False)
easy = cell_scores(shots=(50,), annotators=(15,), spammers=(0.0,))
print("50 items per class, 15 annotators, none of whom guesses:")
print(gains(easy, "shots")[["pair", "text"]].to_string(index=False))

# %% [markdown]
# Where EM helps:
#
# * With one to five items per class, J = 2 is ahead of both votes by one to four points in most cells.
# * Its gain over a majority vote grows from about one and a half points where no annotator guesses to about
#   three where two or three in five do.
# * With a single annotator there are no others to weigh against. The gain is there all the same: items that
#   look alike correct each other's labels.
# * Prototypes on Dawid and Skene's labels are two to four points behind with two or three annotators, or
#   where three in five or more guess.
#
# Where it does not:
#
# * With 50 items per class all methods are within a point. With 15 annotators of whom none guesses, the lead
#   over a majority vote is gone.
# * Where four in five guess, the lead over the soft vote is not significant.
# * With 15 annotators the labels suffice by themselves: Dawid and Skene's are as good within half a point.
# * More steps bring little. J = 3 is within a point of J = 2 everywhere, and ahead with one or two
#   annotators. J = 10 is one to two points ahead with a single annotator; elsewhere it is mostly within a
#   point, on either side.
# * All of these gains are small compared with that of more labels: a majority vote of five annotators is
#   better than EM with three.
#
# The networks were trained for J = 2, which may favour it. `probcrowd demo` trains one for every method; J =
# 2 is ahead of the votes there, too.
