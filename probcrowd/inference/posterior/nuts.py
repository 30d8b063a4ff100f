"""Posterior draws by NUTS (NumPyro), for every model of the catalogue.

Chains begin at the mode that the votes lead to, so that they agree on what the classes are called; `start="dispersed"` begins anywhere, as an
explicit check for other modes. R-hat of chains with a common start says nothing about other modes.

Iterations run in compiled chunks, so a bar can move and an interrupt is heard; what was compiled is used again for other data of the same
shape. Chains side by side: "vectorized" in one program, "parallel" in threads, "sequential" one after the other; the draws are the same
up to rounding. Memory: every draw of every site (chains x draws x sites), nothing of size draws x items but the models' own item effects.
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
from probcrowd.inference.posterior.density import Sites, Target, make_data, make_target
from probcrowd.inference.posterior.draws import Draws
from probcrowd.inference.posterior.initial import dispersed_start, find_mode, vote_start
from probcrowd.models.catalogue import find_model

Chains = Literal["vectorized", "parallel", "sequential"]
CHUNK = 50  # iterations per compiled call
_COMPILING = Lock()  # so that chains in threads do not all compile the same program


def nuts(
    model: str,
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
    """Draws of the posterior of a model.

    Args:
        prior: the model's record; the catalogue's default without it.
        thin: iterations per draw that is kept.
        embeddings: features (i, d), for `prototype_crowd`.
        method: how chains run side by side.
        target_accept, max_depth: of NUTS; raise the first if there are divergences, the second if the tree depth is reached.
        double: compute in float64.

    Raises:
        ValueError: counts that make no sense, or data that do not fit the model.
        FloatingPointError: the density is not finite where the chains begin.
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
        data = make_data(model, rows, embeddings, double=double)
        target = make_target(
            model, find_model(model).prior(rows.num_classes) if prior is None else prior, data
        )
        keys = jax.random.split(jax.random.key(seed), 2 * chains)
        if start == "mode":
            starts = [find_mode(target, data, vote_start(target, data)).unconstrained] * chains
        else:
            starts = [dispersed_start(target, data, key) for key in keys[chains:]]
        # A copy each: the compiled program may reuse the memory of what it is given
        begins = jax.tree.map(lambda *parts: np.stack([np.asarray(part) for part in parts]), *starts)
        program, stop = _program(target, warmup, target_accept, max_depth), Event()
        with tqdm(
            total=(warmup + draws * thin) * chains,
            desc=f"{model}, {chains} chains",
            unit="iteration",
            disable=not progress,
        ) as bar:

            def run(chosen: slice) -> tuple[Sites, Sites]:
                with jax.enable_x64(double):  # the setting belongs to a thread
                    begin = jax.tree.map(lambda part: jnp.asarray(part[chosen]), begins)
                    return _run(
                        program, begin, keys[:chains][chosen], data, warmup, draws * thin, bar.update, stop
                    )

            each = [slice(c, c + 1) for c in range(chains)]
            if method == "vectorized":
                groups = [run(slice(None))]
            elif method == "parallel":
                with ThreadPoolExecutor(max_workers=chains) as pool:
                    try:
                        groups = [future.result() for future in [pool.submit(run, chosen) for chosen in each]]
                    except BaseException:  # Ctrl-C too: the other chains end with their chunk
                        stop.set()
                        raise
            else:
                groups = [run(chosen) for chosen in each]
        unconstrained, stats = (
            {name: np.concatenate([group[part][name] for group in groups]) for name in groups[0][part]}
            for part in (0, 1)
        )
        kept = slice(thin - 1, None, thin)
        unconstrained, stats = jax.tree.map(lambda part: part[:, kept], (unconstrained, stats))
        return _described(target, data, unconstrained, stats)


@lru_cache(maxsize=16)
def _program(
    target: Target, warmup: int, target_accept: float, max_depth: int
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Compiled: begin chains; advance them by one chunk."""
    # NumPyro makes the sampler in `begin`, which has to run before `advance` is traced
    prepare, sample = hmc(potential_fn_gen=target.potential_of, algo="NUTS")

    def begin(positions: Sites, keys: Any, data: tuple[Any, ...]) -> Any:
        def one(position: Sites, key: Any) -> Any:
            options = {"target_accept_prob": target_accept, "max_tree_depth": max_depth}
            return prepare(position, warmup, model_args=data, rng_key=key, **options)

        return jax.vmap(one)(positions, keys)

    def advance(states: Any, data: tuple[Any, ...]) -> tuple[Any, Any]:
        def iteration(states: Any, _: None) -> tuple[Any, Any]:
            states = jax.vmap(lambda state: sample(state, model_args=data))(states)
            told = {
                "diverging": states.diverging,
                "energy": states.energy,
                "n_steps": states.num_steps,
                "acceptance_rate": states.accept_prob,
                "step_size": states.adapt_state.step_size,
            }
            return states, (states.z, told)

        return jax.lax.scan(iteration, states, None, length=CHUNK)

    return jax.jit(begin), jax.jit(advance)


def _run(
    program: tuple[Callable[..., Any], Callable[..., Any]],
    begin: Sites,
    keys: Any,
    data: tuple[Any, ...],
    warmup: int,
    draws: int,
    update: Callable[[int], Any],
    stop: Event,
) -> tuple[Sites, Sites]:
    """Unconstrained draws and statistics (c, s, ...) of some chains."""
    with _COMPILING:
        states = program[0](begin, keys, data)
        states, made = program[1](states, data)
    kept, done, total = [], 0, warmup + draws
    while True:
        fresh = min(CHUNK, total - done)
        update(fresh * len(keys))
        if done + fresh > warmup:
            kept.append(
                jax.tree.map(
                    lambda part, done=done, fresh=fresh: np.asarray(part[max(warmup - done, 0) : fresh]), made
                )
            )
        done += fresh
        if done == total or stop.is_set():
            break
        states, made = program[1](states, data)
        jax.block_until_ready(made)
    return jax.tree.map(lambda *parts: np.swapaxes(np.concatenate(parts), 0, 1), *kept)


def _described(target: Target, data: tuple[Any, ...], unconstrained: Sites, stats: Sites) -> Draws:
    """The draws as sites, with the log density and the responsibilities that they imply."""
    shares = jnp.asarray(vote_shares(jax.tree.map(np.asarray, data[-1]).vote_totals), data[-1].weight.dtype)
    made: list[Any] = []
    for chain in range(len(stats["energy"])):
        total, each = _describer(target)(
            jax.tree.map(lambda part, chain=chain: jnp.asarray(part[chain]), unconstrained), shares, data
        )
        made.append(jax.tree.map(np.asarray, (total / stats["energy"].shape[1], *each)))
    responsibilities, sites, told, agreement = jax.tree.map(lambda *parts: np.stack(parts), *made)
    stats = stats | told | {"tree_depth": np.ceil(np.log2(stats["n_steps"] + 1)).astype(int)}
    return Draws({name: sites[name] for name in target.model.dims}, stats, responsibilities, agreement)


@lru_cache(maxsize=16)
def _describer(target: Target) -> Callable[..., Any]:
    def describe(unconstrained: Sites, shares: Array, data: tuple[Any, ...]) -> Any:
        rows = data[-1]

        def one(total: Any, position: Sites) -> Any:
            sites = target.sites(position, data)
            items, priors = target.items({name: sites[name] for name in target.latent}, data)
            responsibilities = jnp.exp(items.log_truth())
            log_likelihood = jnp.sum(items.log_prob(rows.gold))
            told = {"log_likelihood": log_likelihood, "lp": log_likelihood + sum(priors.values())}
            return total + responsibilities, (sites, told, responsibilities.T @ shares)

        return jax.lax.scan(
            one, jnp.zeros((rows.num_items, rows.num_classes), rows.weight.dtype), unconstrained
        )

    return jax.jit(describe)
