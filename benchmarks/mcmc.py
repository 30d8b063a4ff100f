"""Posterior sampling: effective draws per second against NumPyro's example formulation, and full posteriors
of up to a million annotations.

    python benchmarks/mcmc.py [--quick] [--largest 1000000]

1. Dawid and Skene's anaesthetists (45 items, 5 annotators, 315 annotations, 4 classes) under the `rater`
   prior. The formulation is that of NumPyro's annotation example: true labels enumerated, labels in a dense
   items x positions array, random starts. Same model, prior and data, 1,000 warm-up iterations and 1,000
   draws for NUTS, 1,000 and 20,000 sweeps for Gibbs (every second kept). Seconds are those of the second run
   in the process, when everything is compiled. ESS is the smallest bulk ESS of all entries of class prior and
   confusion matrices. 2. The same data under flat priors: R-hat of the class prior as sampled, and of
   functionals that renaming the classes cannot change. 3. Simulated tables of 10^4, 10^5, 10^6 annotations, 4
   classes: seconds and peak memory of Gibbs, 4 chains, and R-hat of the invariant functionals.

Needs the package funsor, as NumPyro's enumeration does. Threads: as many chains as cores.
"""

from __future__ import annotations

import argparse
import resource
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from arviz_base import from_dict
from arviz_stats import ess, rhat
from numpyro.infer import MCMC, NUTS
from numpyro.ops.indexing import Vindex

from probcrowd.data.files import anesthesia
from probcrowd.data.rows import Rows
from probcrowd.inference.posterior.gibbs import gibbs
from probcrowd.inference.posterior.label_switching import alignment, invariants, switching
from probcrowd.inference.posterior.nuts import nuts
from probcrowd.models.priors import DirichletPrior

CLASSES = 4


def example_formulation(annotator: np.ndarray, labels: np.ndarray, prior: DirichletPrior) -> None:
    """Dawid-Skene with enumerated true labels on a dense array: items x positions, annotator[p] gave the
    label at position p.
    """
    items, positions = labels.shape
    with numpyro.plate("annotator", int(annotator.max()) + 1, dim=-2), numpyro.plate("class", CLASSES):
        confusion = numpyro.sample("confusion", dist.Dirichlet(jnp.asarray(prior.confusion)))
    class_prior = numpyro.sample("class_prior", dist.Dirichlet(jnp.asarray(prior.class_prior)))
    with numpyro.plate("item", items, dim=-2):
        truth = numpyro.sample("truth", dist.Categorical(class_prior), infer={"enumerate": "parallel"})
        with numpyro.plate("position", positions):
            numpyro.sample("label", dist.Categorical(Vindex(confusion)[annotator, truth, :]), obs=labels)


def worst(samples: dict[str, np.ndarray]) -> tuple[float, float]:
    """Smallest bulk ESS and largest R-hat over all entries."""
    group = from_dict({"posterior": samples}).posterior.to_dataset()
    sizes, ratios = ess(group), rhat(group)
    return min(float(sizes[name].min()) for name in sizes), max(float(ratios[name].max()) for name in ratios)


def report(name: str, seconds: float, samples: dict[str, np.ndarray], baseline: float | None) -> float:
    smallest, ratio = worst({site: samples[site] for site in ("class_prior", "confusion")})
    rate = smallest / seconds
    beside = "" if baseline is None else f"   ratio {rate / baseline:.1f}"
    print(
        f"{name:44s} {seconds:7.2f} s   min ESS {smallest:8.0f}   "
        f"R-hat {ratio:6.3f}   {rate:9.0f} ESS/s{beside}",
        flush=True,
    )
    return rate


def on_anaesthetists(prior: DirichletPrior, scale: float) -> None:
    annotations = anesthesia()
    rows = Rows.from_annotations(annotations)
    order = np.lexsort((annotations.annotator, annotations.item))
    labels, annotator = annotations.label[order].reshape(45, 7), annotations.annotator[order][:7]
    warmup, draws = int(1000 * scale), int(1000 * scale)
    baseline = None
    for chains in (1, 4):
        for attempt in range(2):
            method = "vectorized" if chains > 1 else "sequential"
            sampler = MCMC(
                NUTS(example_formulation),
                num_warmup=warmup,
                num_samples=draws,
                num_chains=chains,
                chain_method=method,
                progress_bar=False,
            )
            began = time.perf_counter()
            sampler.run(jax.random.key(attempt), annotator, labels, prior)
            jax.block_until_ready(sampler.get_samples())
            seconds = time.perf_counter() - began
        samples = {
            name: np.asarray(value) for name, value in sampler.get_samples(group_by_chain=True).items()
        }
        rate = report(
            f"NumPyro's example formulation, {chains} chain{'s' * (chains > 1)}", seconds, samples, baseline
        )
        baseline = rate if baseline is None else baseline
    for method in ("vectorized", "parallel"):
        for attempt in range(2):
            began = time.perf_counter()
            made = nuts(
                "dawid_skene",
                rows,
                prior,
                warmup=warmup,
                draws=draws,
                method=method,
                seed=attempt,
                progress=False,
            )
            seconds = time.perf_counter() - began
        report(f"ours, NUTS, 4 chains {method}", seconds, made.samples, baseline)
    for attempt in range(2):
        began = time.perf_counter()
        made = gibbs(
            "dawid_skene", rows, prior, warmup=warmup, draws=10 * draws, thin=2, seed=attempt, progress=False
        )
        seconds = time.perf_counter() - began
    report("ours, Gibbs, 4 chains", seconds, made.samples, baseline)


def under_flat_priors(scale: float) -> None:
    rows, prior = Rows.from_annotations(anesthesia()), DirichletPrior.named("flat", CLASSES)
    scattered = np.random.default_rng(0).integers(CLASSES, size=(4, rows.num_items))
    size = int(1000 * scale)
    runs = {
        "NUTS, scattered starts": lambda: nuts(
            "dawid_skene", rows, prior, warmup=size, draws=size, seed=0, start="dispersed", progress=False
        ),
        "NUTS, starts at the votes": lambda: nuts(
            "dawid_skene", rows, prior, warmup=size, draws=size, seed=0, progress=False
        ),
        "Gibbs, scattered starts": lambda: gibbs(
            "dawid_skene",
            rows,
            prior,
            warmup=size,
            draws=size,
            thin=20,
            seed=0,
            start=scattered,
            progress=False,
        ),
    }
    for name, run in runs.items():
        made = run()
        raw = worst({"class_prior": made.samples["class_prior"]})[1]
        smallest, free = worst(invariants(made.samples, made.stats["log_likelihood"]))
        print(
            f"{name:28s} R-hat of class_prior {raw:6.2f}; of invariants {free:6.3f} "
            f"(min ESS {smallest:.0f}). {switching(alignment(made.agreement))}"
        )


def simulated(annotations: int, seed: int) -> Rows:
    """Items of 5 distinct annotators each, whose activity is lognormal, accuracy Beta(6, 2.5), one in twenty
    a spammer.
    """
    rng = np.random.default_rng(seed)
    items, annotators = annotations // 5, int(annotations**0.5)
    activity = np.log(rng.lognormal(size=annotators))
    chosen = np.concatenate(
        [
            np.argpartition(-(activity + rng.gumbel(size=(part, annotators))), 5, 1)[:, :5]
            for part in _parts(items, annotators)
        ]
    )
    accuracy = np.where(rng.random(annotators) < 0.05, 1 / CLASSES, rng.beta(6, 2.5, annotators))
    truth = rng.choice(CLASSES, items, p=[0.4, 0.3, 0.2, 0.1])
    right = rng.random(chosen.shape) < accuracy[chosen]
    label = np.where(
        right, truth[:, None], (truth[:, None] + rng.integers(1, CLASSES, chosen.shape)) % CLASSES
    )
    item = np.repeat(np.arange(items), 5)
    return Rows(
        item, chosen.ravel(), label.ravel(), np.ones(len(item)), np.full(items, -1), annotators, CLASSES
    )


def _parts(items: int, annotators: int) -> list[int]:
    size = max(1, 20_000_000 // annotators)
    return [min(size, items - begin) for begin in range(0, items, size)]


def full_posteriors(largest: int) -> None:
    prior = DirichletPrior.named("accurate", CLASSES)
    for power in (4, 5, 6):
        if 10**power > largest:
            return
        rows = simulated(10**power, power)
        began = time.perf_counter()
        made = gibbs("dawid_skene", rows, prior, warmup=300, draws=1000, thin=1, seed=1, progress=False)
        seconds = time.perf_counter() - began
        smallest, ratio = worst(invariants(made.samples, made.stats["log_likelihood"]))
        size, anchored = worst({name: made.samples[name] for name in ("class_prior", "confusion")})
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(
            f"10^{power} annotations, {rows.num_items} items, {rows.num_annotators} annotators: "
            f"{seconds:6.1f} s for 4 x (300 + 1000) sweeps, invariants R-hat {ratio:.4f}, "
            f"min ESS {smallest:.0f}; parameters {anchored:.4f}, {size:.0f}; peak {peak:.2f} GB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the draws and small tables: to see that it runs"
    )
    parser.add_argument("--largest", type=int, default=1_000_000, help="annotations of the largest table")
    arguments = parser.parse_args()
    scale: Any = 0.1 if arguments.quick else 1.0
    with jax.enable_x64(True):
        print("anaesthetists, rater's prior")
        on_anaesthetists(DirichletPrior.named("rater", CLASSES), scale)
    print("\nanaesthetists, flat priors")
    under_flat_priors(scale)
    print("\nfull posteriors by Gibbs")
    full_posteriors(min(arguments.largest, 10_000) if arguments.quick else arguments.largest)


if __name__ == "__main__":
    main()
