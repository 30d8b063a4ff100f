"""Add labels without refitting; the cost depends on the items touched, not on the size of the table.

Incremental EM (Neal and Hinton 1998): each round subtracts the touched items' share of the expected counts,
recomputes their responsibilities from old and new labels, adds the new share, and runs an M step. A round
increases the same bound as a pass over all items. Time and memory grow with the labels of the touched items
and with the annotators' tables (P x K numbers a round), not with the fitted table. Only a full fit updates
the other items as well; `refit_gap` estimates what that would change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64

from probcrowd.data.rows import gold_codes
from probcrowd.data.table import Packed, Table
from probcrowd.data.validation import declare, reject
from probcrowd.estimators.results import Fitted, ItemResults
from probcrowd.inference.aggregation.e_step import FLOOR, Scores, Statistics, count, e_step

_ROUNDS, _SETTLED = 50, 1e-6


@dataclass
class Additions:
    """Labels added after the fit, by item code; codes of new items follow those of the fit. Modified in
    place, once all checks have passed.

    fitted_scores: scores of new items under the full fit.
    """

    fitted_scores: Scores
    names: list[Any] = field(default_factory=list)
    codes: dict[Any, int] = field(default_factory=dict)
    cells: dict[int, list[int]] = field(default_factory=dict)
    weights: dict[int, list[float]] = field(default_factory=dict)
    gold: dict[int, int] = field(default_factory=dict)
    shares: dict[int, Float64[np.ndarray, " k"]] = field(default_factory=dict)
    probabilities: dict[int, Float64[np.ndarray, " k"]] = field(default_factory=dict)
    labels: int = 0


def add_labels(aggregator: Any, fitted: Fitted, table: Table, gold: pd.Series | None) -> Fitted:
    """Return the fit with the labels of `table` added; `table` has the codes of the fit.

    aggregator: the fitted `TableAggregator`, which gives the model of annotators. gold: may include items
    without labels in `table`.

    Raises:
        ValueError: see `TableAggregator.partial_fit`.
    """
    tables = fitted.model
    added = tables.additions or Additions(aggregator.new_scores(fitted, fitted.rows.cells))
    table = _with_gold_of_old(fitted, added, table, gold)
    item, new = _codes_of(fitted, added, table.items)
    _require_new(fitted, added, table, item, new)
    added.codes |= new
    added.names.extend(new)
    cells = fitted.rows.cells.joined(table.key, len(table.annotators))
    history = fitted.rows.history
    if history is not None:
        history = np.pad(history, ((0, len(cells) - len(history)), (0, 0)))

    touched = np.unique(item)
    before, old_shares = _packed_items(fitted, added, touched), _shares_in_counts(fitted, added, touched)
    grown, taken = tables.statistics.extended(len(cells)), count(before, old_shares, len(cells))
    rest = Statistics(
        np.maximum(grown.counts - taken.counts, 0), np.maximum(grown.class_count - taken.class_count, 0)
    )
    columns = item[table.item].tolist(), cells.locate(table.key).tolist(), table.weights.tolist()
    for code, cell, weight in zip(*columns, strict=True):
        added.cells.setdefault(code, []).append(cell)
        added.weights.setdefault(code, []).append(weight)
    added.gold |= {code: k for code, k in zip(item.tolist(), table.gold.tolist(), strict=True) if k >= 0}
    added.labels += len(table.item)

    model = aggregator.annotator_model(cells, history, averaged=aggregator.confidence == "variational")
    after, shares, statistics = _packed_items(fitted, added, touched), np.zeros(old_shares.shape), grown
    # Start at posterior means: at the mode, annotators without counts are never wrong, and would stay so
    means = getattr(model, "means", None)
    scores = model.scores(grown) if means is None else means(grown).scores
    for _ in range(_ROUNDS):
        last = shares.copy()
        statistics = rest + e_step(after, scores, responsibilities=shares).statistics
        scores = model.scores(statistics)
        if np.abs(shares - last).max(initial=0.0) < _SETTLED:
            break
    mode = aggregator.annotator_model(cells, history).scores(statistics)
    rows = replace(fitted.rows, cells=cells, counts=statistics.counts, history=history)
    prior, tables = np.exp(mode.log_prior), tables.with_labels(statistics, scores, mode, added)
    parts = {"rows": rows, "class_prior": prior, "class_shares": prior, "model": tables}
    fitted = replace(fitted, annotators=table.annotators, **parts)
    probabilities = aggregator.item_probabilities(fitted, after, shares)
    for code, share, probability in zip(touched.tolist(), shares, probabilities, strict=True):
        added.shares[code], added.probabilities[code] = share.copy(), probability.copy()
    return fitted


def refit_gap(fitted: Fitted, new_scores: Callable[[Fitted], Scores]) -> pd.Series:
    """Return the columns of `TableAggregator.refit_gap_`."""
    added, packed = fitted.model.additions, fitted.packed
    labels, shift, largest = 0 if added is None else added.labels, 0.0, 0.0
    if added is not None and labels:
        old, new = added.fitted_scores, new_scores(fitted)
        used = np.bincount(packed.cell, minlength=len(old.log_table)).astype(float)
        logs = (np.clip(each.log_table[: len(used)], FLOOR, None) for each in (new, old))
        change = np.ptp(np.subtract(*logs), axis=1)
        prior = float(np.ptp(new.log_prior - old.log_prior))
        shift = prior + float(change @ used / max(used.sum(), 1)) * float(packed.size.mean())
        largest = prior + float(change.max(initial=0.0)) * float(packed.size.max(initial=0))
    share = labels / max(len(packed.cell) + labels, 1)
    values = {"labels_added": labels, "share_added": share, "mean_shift": shift, "largest_shift": largest}
    return pd.Series(values)


def results_with_additions(fitted: Fitted) -> ItemResults:
    """Return the results of all items, including added ones."""
    added, old = fitted.model.additions, fitted.items
    if added is None:
        return old
    more = len(added.names)
    responsibilities, size, size_known, known = (
        np.concatenate([each, np.zeros((more, *each.shape[1:]), each.dtype)])
        for each in (old.responsibilities, old.size, old.size_known, old.known)
    )
    for code, probabilities in added.probabilities.items():
        responsibilities[code] = probabilities
        size[code] += len(added.cells.get(code, []))
        size_known[code] += len(added.cells.get(code, []))
        known[code] |= code in added.gold
    names = old.items.append(pd.Index(added.names)) if more else old.items
    return ItemResults(names, responsibilities, size, size_known, known)


def packed_with_additions(fitted: Fitted) -> Packed:
    """Return all annotations, including added ones; as patterns if none were added."""
    tables = fitted.model
    if tables.additions is None:
        return tables.patterns
    touched = np.array(sorted(tables.additions.shares), np.int64)
    first = fitted.packed.take(np.setdiff1d(np.arange(fitted.packed.num_items), touched))
    then = _packed_items(fitted, tables.additions, touched)
    weighted = first.weight is not None or then.weight is not None
    return Packed(
        np.concatenate([first.starts, first.starts[-1] + then.starts[1:]]),
        np.concatenate([first.cell, then.cell]),
        np.concatenate([first.weights, then.weights]) if weighted else None,
        np.concatenate([first.known, then.known]),
    )


def _with_gold_of_old(fitted: Fitted, added: Additions, table: Table, gold: pd.Series | None) -> Table:
    """Return the table with the items of the fit whose class `gold` adds."""
    if gold is None:
        return table
    known = gold.loc[gold.notna() & ~gold.index.isin(table.items)]
    known = known.loc[known.index.isin(fitted.items.items) | known.index.isin(added.names)]
    if not len(known):
        return table
    items = declare(known.index.unique(), "items")
    codes = np.concatenate([table.gold, gold_codes(items, fitted.classes, known)])
    return replace(table, items=table.items.append(items), gold=codes)


def _codes_of(
    fitted: Fitted, added: Additions, items: pd.Index
) -> tuple[Int64[np.ndarray, " i"], dict[Any, int]]:
    """Return the codes of items, and a dict of those that are new."""
    codes = fitted.items.items.get_indexer(items).astype(np.int64)
    new: dict[Any, int] = {}
    for place in np.flatnonzero(codes < 0):
        name = items[place]
        if name not in added.codes and name not in new:
            new[name] = fitted.packed.num_items + len(added.names) + len(new)
        codes[place] = added.codes[name] if name in added.codes else new[name]
    return codes, new


def _packed_items(fitted: Fitted, added: Additions, items: Int64[np.ndarray, " m"]) -> Packed:
    """Pack all labels of those items, labels of the fit first."""
    in_fit = items < fitted.packed.num_items
    base = fitted.packed.take(items[in_fit])
    size = np.zeros(len(items), np.int64)
    size[in_fit] = base.size
    later = [added.cells.get(code, []) for code in items.tolist()]
    weights = [w for code in items.tolist() for w in added.weights.get(code, [])]
    numbers = size, [len(cells) for cells in later]
    place = np.concatenate([np.repeat(np.arange(len(items)), number) for number in numbers])
    cell = np.concatenate([base.cell, np.array([each for cells in later for each in cells], np.int32)])
    weight = np.concatenate([base.weights, weights])
    known = np.full(len(items), -1, np.int32)
    known[in_fit] = base.known
    pairs = zip(items.tolist(), known.tolist(), strict=True)
    known = np.array([added.gold.get(code, old) for code, old in pairs], np.int32)
    order = np.argsort(place, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(place, minlength=len(items)))])
    weight = weight[order] if (weight != 1).any() else None
    return Packed(starts, cell[order].astype(np.int32), weight, known if (known >= 0).any() else None)


def _shares_in_counts(
    fitted: Fitted, added: Additions, items: Int64[np.ndarray, " m"]
) -> Float64[np.ndarray, "m k"]:
    """Return the responsibilities that the items have in the counts: zeros for new ones."""
    tables = fitted.model
    shares = np.zeros((len(items), len(fitted.classes)))
    for row, code in enumerate(items.tolist()):
        if code in added.shares:
            shares[row] = added.shares[code]
        elif code < fitted.packed.num_items:
            shares[row] = tables.shares[code if tables.place is None else tables.place[code]]
    return shares


def _require_new(
    fitted: Fitted, added: Additions, table: Table, item: Int64[np.ndarray, " i"], new: dict[Any, int]
) -> None:
    """Raise ValueError for pairs that already have a label, and for classes that contradict earlier ones."""
    ids = fitted.annotators
    # One earlier id shows the type ("1" or 1) of all
    declare(fitted.items.items[:1].append(pd.Index(list(new))), "items")
    declare(ids[:1].append(table.annotators[len(ids) :]), "annotators")
    owner, touched = fitted.rows.cells.annotator, np.unique(item)
    old = _packed_items(fitted, added, touched)
    pairs = set(zip(np.repeat(touched, old.size).tolist(), owner[old.cell].tolist(), strict=True))
    given = zip(item[table.item].tolist(), table.annotator.tolist(), strict=True)
    repeated = np.array([pair in pairs for pair in given], dtype=bool)
    named = list(zip(table.items[table.item], table.annotators[table.annotator], strict=True))
    message = "(item, annotator) pairs that already have a label: fit again to replace a label"
    reject(repeated, pd.Series(named), message)
    if old.gold is not None:
        earlier = dict(zip(touched.tolist(), old.gold.tolist(), strict=True))
        known = np.array([earlier[code] for code in item.tolist()])
        differ = (known >= 0) & (table.gold >= 0) & (known != table.gold)
        reject(differ, pd.Series(table.items), "items whose known class differs from the one given earlier")
