r"""Blocked Gibbs sampling of the conjugate models: all labels given the parameters, then all parameters given the labels.

    model            prior            parameters given the labels z
    multinomial      DirichletPrior   class_prior ~ Dirichlet, confusion[k, :] ~ Dirichlet, with weighted counts
    dawid_skene      DirichletPrior   the same, a confusion matrix per annotator
    one_coin         CoinPrior        accuracy[j] ~ Beta(right + weight of right rows, wrong + weight of the others)
    mace             SpamPrior        which rows were spam, then competence[j] ~ Beta and spam[j] ~ Dirichlet
    prototype_crowd  prototype.Prior  as dawid_skene, and prototype[k] ~ Normal(sum of x_i / (tau + n_k), I / (tau + n_k))

The sampler leaves the posterior of the declared models invariant, weights included: a row of weight w enters as its density to the power w.
It hops between modes no better than others do. Chains that start at the majority vote say nothing of other modes; start some elsewhere.

Held in memory: chains x draws x parameters, of which the derived `confusion` of one_coin and mace is one; chains x items x classes; a copy
of the data (12 bytes a row). Nothing of size draws x items.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int, Int64
from joblib import cpu_count
from scipy.special import gammaln
from tqdm import tqdm

from probcrowd.data.rows import Rows
from probcrowd.inference.posterior import gibbs_kernels as kernels
from probcrowd.inference.posterior.draws import Draws
from probcrowd.inference.posterior.gibbs_state import (
    SPAM,
    Concentrations,
    Kept,
    Table,
    make_concentrations,
    make_room,
    make_state,
    make_table,
)
from probcrowd.metrics.scores import most_probable
from probcrowd.models.catalogue import find_model

SECONDS_PER_CHUNK = 0.5


def gibbs(
    model: str,
    rows: Rows,
    prior: Any,
    *,
    embeddings: Float[np.ndarray, "items d"] | None = None,
    chains: int = 4,
    warmup: int = 500,
    draws: int = 1000,
    thin: int = 1,
    seed: int,
    start: Int[np.ndarray, "*c i"] | None = None,
    progress: bool = True,
    threads: int | None = None,
) -> Draws:
    """Draws from the posterior of a model of the table above, with stats `lp` and `log_likelihood` (labels summed out).

    Responsibilities are averaged over all sweeps after the warm-up, the thinned ones too. The same seed gives the same bits, whatever
    `threads`, which are as many as chains or cores by default.

    Args:
        embeddings: features of the items, for prototype_crowd.
        thin: keep every thin-th sweep.
        start: the class of each item at first, for all chains alike or a row per chain; the majority vote by default, ties at random.

    Raises:
        ValueError: a model that is not conjugate, a prior that does not fit, embeddings that are missing, superfluous or of another length,
            rows out of order, sizes that make no sense, or start classes that do not exist.
        TypeError: the prior of another model.
    """
    threads = min(chains, cpu_count()) if threads is None else threads
    for name, value, least in (
        ("chains", chains, 1),
        ("warmup", warmup, 0),
        ("draws", draws, 1),
        ("thin", thin, 1),
        ("threads", threads, 1),
    ):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}")
    concentrations = make_concentrations(model, rows, prior)
    table = make_table(model, rows, embeddings)
    generators = np.random.default_rng(seed).spawn(chains)
    truths = _starts(table, start, generators)
    kept = make_room(chains, draws, table, concentrations, rows.num_annotators)
    sweeps, stop, lock = warmup + draws * thin, Event(), Lock()

    with tqdm(
        total=chains * sweeps, desc=f"{model}, {chains} chains", unit="sweep", disable=not progress
    ) as bar:

        def run(chain: int) -> None:
            state = make_state(table, concentrations, rows.num_annotators)
            kernels.begin(truths[chain], table, state)
            mine = Kept(*(array[chain] for array in kept))

            def advance(first: int, last: int) -> None:
                kernels.advance(
                    first, last, warmup, thin, table, concentrations, state, mine, generators[chain]
                )
                with lock:
                    bar.update(last - first)

            try:
                _in_chunks(advance, sweeps, stop)
            except BaseException:  # at once: the next chain may begin before anybody reads the result
                stop.set()
                raise

        with ThreadPoolExecutor(threads) as pool:
            try:
                for future in [pool.submit(run, chain) for chain in range(chains)]:
                    future.result()
            except BaseException:  # Ctrl-C too: the other chains end with their chunk
                stop.set()
                raise
    stats = {
        "lp": kept.log_likelihood + _log_prior(kept, concentrations),
        "log_likelihood": kept.log_likelihood,
    }
    return Draws(_samples(model, kept), stats, kept.total_probability / (draws * thin), kept.agreement)


def _in_chunks(advance: Callable[[int, int], None], sweeps: int, stop: Event) -> None:
    """Advance in steps that take about `SECONDS_PER_CHUNK` each."""
    first, size = 0, 1
    while first < sweeps and not stop.is_set():
        last = min(first + size, sweeps)
        began = time.perf_counter()
        advance(first, last)
        pace = size * SECONDS_PER_CHUNK / max(time.perf_counter() - began, 1e-9)
        first, size = last, max(1, int(min(pace, 10.0 * size)))


def _starts(
    table: Table, start: Int[np.ndarray, "*c i"] | None, generators: list[np.random.Generator]
) -> list[Int64[np.ndarray, " i"]]:
    """The first labelling of each chain, gold where there is any."""
    num_items, num_classes = table.share.shape
    if start is None:
        winners = most_probable(table.share)
        codes = [
            np.where(winners, generator.random(winners.shape), -1.0).argmax(1) for generator in generators
        ]
    else:
        if start.shape not in ((num_items,), (len(generators), num_items)):
            raise ValueError(
                f"start must be one class per item, or that for each chain: got shape {start.shape} for {num_items} items"
            )
        if ((start < 0) | (start >= num_classes)).any():
            raise ValueError(
                f"start has codes {start.min()} .. {start.max()}, outside the classes 0 .. {num_classes - 1}"
            )
        codes = list(np.broadcast_to(start, (len(generators), num_items)))
    return [np.where(table.gold >= 0, table.gold, chosen).astype(np.int64) for chosen in codes]


def _log_prior(kept: Kept, prior: Concentrations) -> Float64[np.ndarray, "c s"]:
    """log density of the sites under the prior, every constant included."""
    precision, (num_classes, dimension) = prior.precision, kept.prototype.shape[2:]
    total = -0.5 * precision * (kept.prototype**2).sum((2, 3)) + 0.5 * num_classes * dimension * np.log(
        precision / (2 * np.pi)
    )
    total += _log_dirichlet(kept.log_rows, prior.rows) + _log_dirichlet(kept.log_coin, prior.coin)
    if prior.kind == SPAM:
        return total + _log_dirichlet(kept.log_spam, np.full(num_classes, prior.answers))
    return total + _log_dirichlet(kept.log_class, prior.class_prior)


def _log_dirichlet(
    logs: Float64[np.ndarray, "c s *j k"], concentrations: Float64[np.ndarray, "... k"]
) -> Float64[np.ndarray, "c s"]:
    """log density of Dirichlet variables with those logs, summed over all of a draw."""
    density = (
        np.einsum("...k,...k->...", concentrations - 1, logs)
        + gammaln(concentrations.sum(-1))
        - gammaln(concentrations).sum(-1)
    )
    return density.reshape(*logs.shape[:2], -1).sum(2)


def _samples(model: str, kept: Kept) -> dict[str, np.ndarray]:
    """The sites by name, derived ones included."""
    if model == "mace":
        competence, spam = np.exp(kept.log_coin[..., 0]), np.exp(kept.log_spam)
        guess = np.exp(kept.log_coin[..., 1, None] + kept.log_spam)  # (c, s, j, l)
        num_classes = spam.shape[-1]
        confusion = competence[..., None, None] * np.eye(num_classes) + guess[..., None, :]
        return {"competence": competence, "spam": spam, "confusion": confusion}
    samples = {"class_prior": np.exp(kept.log_class)}
    if model == "one_coin":
        accuracy, wrong = np.exp(kept.log_coin[..., 0]), np.exp(kept.log_coin[..., 1])
        num_classes = samples["class_prior"].shape[-1]
        identity = np.eye(num_classes, dtype=bool)
        confusion = np.where(
            identity, accuracy[..., None, None], wrong[..., None, None] / max(num_classes - 1, 1)
        )
        return samples | {"accuracy": accuracy, "confusion": confusion}
    confusion = np.exp(kept.log_rows, out=kept.log_rows)
    samples["confusion"] = confusion[:, :, 0] if model == "multinomial" else confusion
    return samples | ({"prototype": kept.prototype} if find_model(model).features else {})
