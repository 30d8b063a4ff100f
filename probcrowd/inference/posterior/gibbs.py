r"""Blocked Gibbs sampling of models whose `Model.gibbs` gives conjugate blocks: all true classes given the
parameters, then all parameters.

    blocks      parameters given the true classes z
    CONFUSION   class_prior ~ Dirichlet, confusion[k, :] ~ Dirichlet with weighted counts, one matrix or one
                per annotator; with features, prototype[k] ~ Normal(sum of x_i / (tau + n_k), I / (tau + n_k))
    COIN        accuracy[j] ~ Beta(right + weight of right rows, wrong + weight of the others)
    SPAM        which rows were spam, then competence[j] ~ Beta and spam[j] ~ Dirichlet

The sampler leaves the posterior of the declared model invariant, weights included: a row of weight w enters
as its density to the power w. It moves between modes no better than other samplers. Chains that start at the
majority vote do not reveal other modes; start some elsewhere.

Memory: chains x draws x parameters (the derived `confusion` of coins and spammers included), chains x items x
classes, and a copy of the data (12 bytes a row). Nothing of size draws x items.
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
from probcrowd.inference.posterior.gibbs_state import Retained, Table, allocate_draws, make_state, make_table
from probcrowd.metrics.scores import most_probable
from probcrowd.models.catalogue import MODELS, find_model
from probcrowd.models.gibbs_blocks import COIN, SPAM, GibbsBlocks
from probcrowd.models.model import Model

SECONDS_PER_CHUNK = 0.5  # between updates of the progress bar, and until an interrupt is noticed


def gibbs(
    model: str | Model,
    rows: Rows,
    prior: Any = None,
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
    """Draw from the posterior of a model with Gibbs blocks, with stats `lp` and `log_likelihood` (true
    classes summed out).

    Responsibilities are averaged over all sweeps after the warm-up, those between retained draws included.
    The same seed gives the same bits for any number of `threads` (by default one per chain, at most one per
    core).

    Args:
        prior: the model's record or the name of one; the model's default without it.
        embeddings: features of the items, for models with features.
        thin: retain every thin-th sweep.
        start: the initial class of each item, for all chains or a row per chain; by default the majority
            vote, ties broken at random.

    Raises:
        ValueError: a model without Gibbs blocks, a prior that does not fit, features missing, superfluous or
            of another length, rows out of order, sizes below their minimum, or initial classes that do not
            exist.
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
    model = find_model(model)
    if model.gibbs is None:
        able = ", ".join(name for name, other in MODELS.items() if other.gibbs is not None)
        raise ValueError(f"{model.name} has no Gibbs blocks: sample it by NUTS, or choose one of {able}")
    blocks = model.gibbs(model.prior(rows.num_classes, prior), rows)
    table = make_table(model, rows, embeddings)
    generators = np.random.default_rng(seed).spawn(chains)
    truths = _starts(table, start, generators)
    retained = allocate_draws(chains, draws, table, blocks, rows.num_annotators)
    sweeps, stop, lock = warmup + draws * thin, Event(), Lock()

    with tqdm(
        total=chains * sweeps, desc=f"{model.name}, {chains} chains", unit="sweep", disable=not progress
    ) as bar:

        def run(chain: int) -> None:
            state = make_state(table, blocks, rows.num_annotators)
            kernels.count_all(truths[chain], table, state)
            own = Retained(*(array[chain] for array in retained))

            def advance(first: int, last: int) -> None:
                kernels.advance(first, last, warmup, thin, table, blocks, state, own, generators[chain])
                with lock:
                    bar.update(last - first)

            try:
                _in_chunks(advance, sweeps, stop)
            except BaseException:  # at once, before the pool starts the next chain
                stop.set()
                raise

        with ThreadPoolExecutor(threads) as pool:
            try:
                for future in [pool.submit(run, chain) for chain in range(chains)]:
                    future.result()
            except BaseException:  # Ctrl-C too: the other chains end after their chunk
                stop.set()
                raise
    stats = {
        "lp": retained.log_likelihood + _log_prior(retained, blocks),
        "log_likelihood": retained.log_likelihood,
    }
    samples = _samples(model, blocks.kind, retained)
    return Draws(samples, stats, retained.total_probability / (draws * thin), retained.agreement)


def _in_chunks(advance: Callable[[int, int], None], sweeps: int, stop: Event) -> None:
    """Advance in chunks of about `SECONDS_PER_CHUNK` each."""
    first, size = 0, 1
    while first < sweeps and not stop.is_set():
        last = min(first + size, sweeps)
        started = time.perf_counter()
        advance(first, last)
        pace = size * SECONDS_PER_CHUNK / max(time.perf_counter() - started, 1e-9)
        first, size = last, max(1, int(min(pace, 10.0 * size)))


def _starts(
    table: Table, start: Int[np.ndarray, "*c i"] | None, generators: list[np.random.Generator]
) -> list[Int64[np.ndarray, " i"]]:
    """Return the initial true classes of each chain: gold where known."""
    num_items, num_classes = table.share.shape
    if start is None:
        winners = most_probable(table.share)
        codes = [
            np.where(winners, generator.random(winners.shape), -1.0).argmax(1) for generator in generators
        ]
    else:
        if start.shape not in ((num_items,), (len(generators), num_items)):
            raise ValueError(
                "start must give one class per item, or a row of these per chain: "
                f"got shape {start.shape} for {num_items} items"
            )
        if ((start < 0) | (start >= num_classes)).any():
            raise ValueError(
                f"start has codes {start.min()} .. {start.max()}, outside the classes 0 .. {num_classes - 1}"
            )
        codes = list(np.broadcast_to(start, (len(generators), num_items)))
    return [np.where(table.gold >= 0, table.gold, chosen).astype(np.int64) for chosen in codes]


def _log_prior(retained: Retained, blocks: GibbsBlocks) -> Float64[np.ndarray, "c s"]:
    """Return the log prior density of the sites, every constant included."""
    precision, (num_classes, dimension) = blocks.precision, retained.prototype.shape[2:]
    total = -0.5 * precision * (retained.prototype**2).sum((2, 3)) + 0.5 * num_classes * dimension * np.log(
        precision / (2 * np.pi)
    )
    total += _log_dirichlet(retained.log_rows, blocks.rows) + _log_dirichlet(retained.log_coin, blocks.coin)
    if blocks.kind == SPAM:
        return total + _log_dirichlet(retained.log_spam, np.full(num_classes, blocks.answers))
    return total + _log_dirichlet(retained.log_class, blocks.class_prior)


def _log_dirichlet(
    logs: Float64[np.ndarray, "c s *j k"], concentrations: Float64[np.ndarray, "... k"]
) -> Float64[np.ndarray, "c s"]:
    """Return the log density of Dirichlet variables with those logs, summed over each draw."""
    density = (
        np.einsum("...k,...k->...", concentrations - 1, logs)
        + gammaln(concentrations.sum(-1))
        - gammaln(concentrations).sum(-1)
    )
    return density.reshape(*logs.shape[:2], -1).sum(2)


def _samples(model: Model, kind: int, retained: Retained) -> dict[str, np.ndarray]:
    """Return the sites by name, derived ones included."""
    num_classes = retained.log_class.shape[-1]
    coin = np.exp(retained.log_coin[..., 0])  # (c, s, j)
    if kind == SPAM:
        guess = np.exp(retained.log_coin[..., 1, None] + retained.log_spam)  # (c, s, j, l)
        confusion = coin[..., None, None] * np.eye(num_classes) + guess[..., None, :]
        return {"competence": coin, "spam": np.exp(retained.log_spam), "confusion": confusion}
    samples = {"class_prior": np.exp(retained.log_class)}
    if kind == COIN:
        wrong = np.exp(retained.log_coin[..., 1])[..., None, None] / max(num_classes - 1, 1)
        confusion = np.where(np.eye(num_classes, dtype=bool), coin[..., None, None], wrong)
        return samples | {"accuracy": coin, "confusion": confusion}
    confusion = np.exp(retained.log_rows, out=retained.log_rows)
    samples["confusion"] = confusion if "annotator" in model.dims["confusion"] else confusion[:, :, 0]
    return samples | ({"prototype": retained.prototype} if model.features else {})
