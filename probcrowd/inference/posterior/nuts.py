"""Posterior draws by NUTS (NumPyro), for every model.

Chains start at the mode reached from the votes, so that they agree on the names of the classes;
`start="dispersed"` starts them anywhere, as an explicit check for other modes. R-hat of chains with a common
start says nothing about other modes.

Iterations run in compiled chunks, so that a progress bar moves and interrupts are noticed; compiled code is
reused for other data of the same shape. Chains run "vectorized" in one program, "parallel" in threads, or
"sequential"; the draws are equal up to rounding. Memory: chains x draws x sites; nothing of size draws x
items except the model's own item effects.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Event, Lock
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.infer.hmc import hmc
from tqdm import tqdm

from probcrowd.data.rows import Rows
from probcrowd.data.table import vote_shares
from probcrowd.inference.posterior.density import Target, make_data, make_target
from probcrowd.inference.posterior.draws import Draws
from probcrowd.inference.posterior.initial import dispersed_start, find_mode, vote_start
from probcrowd.models.catalogue import find_model
from probcrowd.models.model import Model, Sites

Chains = Literal["vectorized", "parallel", "sequential"]
CHUNK = 50  # iterations per compiled call
_COMPILING = Lock()  # chains in threads share one compilation


def nuts(
    model: str | Model,
    rows: Rows,
    prior: Any = None,
    *,
    embeddings: np.ndarray | None = None,
    chains: int = 4,
    warmup: int = 1000,
    draws: int = 1000,
    thin: int = 1,
    method: Chains = "parallel",
    start: Literal["mode", "dispersed"] = "mode",
    seed: int,
    target_accept: float = 0.8,
    max_depth: int = 10,
    double: bool = True,
    progress: bool = True,
) -> Draws:
    """Draw from the posterior of a model.

    Args:
        prior: the model's record or the name of one; the model's default without it.
        thin: iterations per retained draw.
        embeddings: features (i, d), for models with features.
        method: how chains run side by side.
        target_accept: raise it if there are divergences. max_depth: raise it if trees reach it.
        double: compute in float64.

    Raises:
        ValueError: numbers below their minimum, or data that do not fit the model.
        FloatingPointError: the density is not finite at the initial values.
    """
    for name, value, least in (
        ("chains", chains, 1),
        ("warmup", warmup, 1),
        ("draws", draws, 1),
        ("thin", thin, 1),
        ("max_depth", max_depth, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if not 0 < target_accept < 1:
        raise ValueError(f"target_accept must be between 0 and 1, got {target_accept}")
    with jax.enable_x64(double):
        model = find_model(model)
        data = make_data(model, rows, embeddings, double=double)
        target = make_target(model, model.prior(rows.num_classes, prior), data)
        keys = jax.random.split(jax.random.key(seed), 2 * chains)
        if start == "mode":
            starts = [find_mode(target, data, vote_start(target, data)).unconstrained] * chains
        else:
            starts = [dispersed_start(target, data, key) for key in keys[chains:]]
        # Copies: the compiled program may reuse the memory of its arguments
        positions = jax.tree.map(lambda *parts: np.stack([np.asarray(part) for part in parts]), *starts)
        program, stop = _program(target, warmup, target_accept, max_depth), Event()
        with tqdm(
            total=(warmup + draws * thin) * chains,
            desc=f"{model.name}, {chains} chains",
            unit="iteration",
            disable=not progress,
        ) as bar:

            def run(chosen: slice) -> tuple[Sites, Sites]:
                with jax.enable_x64(double):  # the setting is per thread
                    position = jax.tree.map(lambda part: jnp.asarray(part[chosen]), positions)
                    return _run(
                        program, position, keys[:chains][chosen], data, warmup, draws * thin, bar.update, stop
                    )

            each = [slice(c, c + 1) for c in range(chains)]
            if method == "vectorized":
                groups = [run(slice(None))]
            elif method == "parallel":
                with ThreadPoolExecutor(max_workers=chains) as pool:
                    try:
                        groups = [future.result() for future in [pool.submit(run, chosen) for chosen in each]]
                    except BaseException:  # Ctrl-C too: the other chains end after their chunk
                        stop.set()
                        raise
            else:
                groups = [run(chosen) for chosen in each]
        unconstrained, stats = (
            {name: np.concatenate([group[part][name] for group in groups]) for name in groups[0][part]}
            for part in (0, 1)
        )
        unconstrained, stats = jax.tree.map(lambda part: part[:, thin - 1 :: thin], (unconstrained, stats))
        return _to_draws(target, data, unconstrained, stats)


@lru_cache(maxsize=16)
def _program(
    target: Target, warmup: int, target_accept: float, max_depth: int
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Compile two functions: start chains, and advance them by one chunk."""
    # NumPyro builds the sampler in `initialise`, which has to run before `advance` is traced
    prepare, sample = hmc(potential_fn_gen=target.potential_of, algo="NUTS")

    def initialise(positions: Sites, keys: Any, data: tuple[Any, ...]) -> Any:
        def one(position: Sites, key: Any) -> Any:
            options = {"target_accept_prob": target_accept, "max_tree_depth": max_depth}
            return prepare(position, warmup, model_args=data, rng_key=key, **options)

        return jax.vmap(one)(positions, keys)

    def advance(states: Any, data: tuple[Any, ...]) -> tuple[Any, Any]:
        def iteration(states: Any, _: None) -> tuple[Any, Any]:
            states = jax.vmap(lambda state: sample(state, model_args=data))(states)
            statistics = {
                "diverging": states.diverging,
                "energy": states.energy,
                "n_steps": states.num_steps,
                "acceptance_rate": states.accept_prob,
                "step_size": states.adapt_state.step_size,
            }
            return states, (states.z, statistics)

        return jax.lax.scan(iteration, states, None, length=CHUNK)

    return jax.jit(initialise), jax.jit(advance)


def _run(
    program: tuple[Callable[..., Any], Callable[..., Any]],
    positions: Sites,
    keys: Any,
    data: tuple[Any, ...],
    warmup: int,
    draws: int,
    update: Callable[[int], Any],
    stop: Event,
) -> tuple[Sites, Sites]:
    """Return unconstrained draws and statistics (c, s, ...) of some chains."""
    with _COMPILING:
        states = program[0](positions, keys, data)
        states, chunk = program[1](states, data)
    chunks, done, total = [], 0, warmup + draws
    while True:
        used = min(CHUNK, total - done)
        update(used * len(keys))
        if done + used > warmup:
            after = slice(max(warmup - done, 0), used)
            chunks.append(jax.tree.map(lambda part, after=after: np.asarray(part[after]), chunk))
        done += used
        if done == total or stop.is_set():
            break
        states, chunk = program[1](states, data)
        jax.block_until_ready(chunk)
    return jax.tree.map(lambda *parts: np.swapaxes(np.concatenate(parts), 0, 1), *chunks)


def _to_draws(target: Target, data: tuple[Any, ...], unconstrained: Sites, stats: Sites) -> Draws:
    """Constrain the draws, and add their log density, responsibilities and agreement with the votes."""
    shares = jnp.asarray(vote_shares(jax.tree.map(np.asarray, data[-1]).vote_totals), data[-1].weight.dtype)
    results: list[Any] = []
    for chain in range(len(stats["energy"])):
        total, each = _evaluate(target)(
            jax.tree.map(lambda part, chain=chain: jnp.asarray(part[chain]), unconstrained), shares, data
        )
        results.append(jax.tree.map(np.asarray, (total / stats["energy"].shape[1], *each)))
    responsibilities, sites, densities, agreement = jax.tree.map(lambda *parts: np.stack(parts), *results)
    stats = stats | densities | {"tree_depth": np.ceil(np.log2(stats["n_steps"] + 1)).astype(int)}
    return Draws({name: sites[name] for name in target.model.dims}, stats, responsibilities, agreement)


@lru_cache(maxsize=16)
def _evaluate(target: Target) -> Callable[..., Any]:
    def evaluate(unconstrained: Sites, shares: Array, data: tuple[Any, ...]) -> Any:
        rows = data[-1]

        def one(total: Any, position: Sites) -> Any:
            sites = target.sites(position, data)
            items, priors = target.items(sites, data)
            responsibilities = jnp.exp(items.log_truth())
            log_likelihood = jnp.sum(items.log_prob(rows.gold))
            densities = {"log_likelihood": log_likelihood, "lp": log_likelihood + sum(priors.values())}
            return total + responsibilities, (sites, densities, responsibilities.T @ shares)

        start = jnp.zeros((rows.num_items, rows.num_classes), rows.weight.dtype)
        return jax.lax.scan(one, start, unconstrained)

    return jax.jit(evaluate)
