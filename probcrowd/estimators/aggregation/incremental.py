"""New labels without a new fit: work for the items they are of, however many there are in all.

Incremental EM (Neal and Hinton 1998): what the touched items added to the expected counts is taken out, their responsibilities are found anew with
their old and new labels, and what they add now is put in; some rounds of that, with the annotators' tables made anew in each. A round raises the
same bound that a pass over all items would. Work and memory grow with the labels of the touched items, and with the annotators' tables (P x K numbers
a round), not with the table that was fitted. What all other items would make of the new tables, only a full fit knows; `refit_gap_` estimates it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64

from probcrowd.data.columns import declare, reject
from probcrowd.data.packed import Packed
from probcrowd.data.rows import gold_codes
from probcrowd.data.table import Table
from probcrowd.estimators.aggregation.table_aggregator import TableAggregator
from probcrowd.estimators.item_answers import ItemResults
from probcrowd.inference.aggregation.annotator_summary import RowPosterior
from probcrowd.inference.aggregation.e_step import FLOOR, Statistics, count, e_step
from probcrowd.inference.aggregation.m_step import Averaging

_ROUNDS, _ENOUGH = 50, 1e-6


@dataclass
class _Additions:
    """What came after the fit, by item code; items that are new have codes after those of the fit."""

    names: list[Any] = field(default_factory=list)
    codes: dict[Any, int] = field(default_factory=dict)
    keys: dict[int, list[int]] = field(default_factory=dict)
    weights: dict[int, list[float]] = field(default_factory=dict)
    gold: dict[int, int] = field(default_factory=dict)
    shares: dict[int, Float64[np.ndarray, " k"]] = field(default_factory=dict)
    probabilities: dict[int, Float64[np.ndarray, " k"]] = field(default_factory=dict)
    labels: int = 0


class Incremental(TableAggregator):
    """`partial_fit` for aggregators whose scores follow from the counts."""

    def partial_fit(self, annotations: Any, gold: pd.Series | None = None) -> Incremental:
        """This estimator with labels added, of items and by annotators old or new; the first call is `fit`.

        gold: the known class of items old or new, with or without labels in `annotations`; those of other items are ignored.

        Everything follows but `log_posterior_`, `converged_` and `dependence_`, which stay those of the last full fit. `refit_gap_` says how far
        the answers may be from a full fit.

        Raises:
            TypeError, ValueError: as `fit`; also a class that the fit does not know, an (item, annotator) pair that it has, or a known class of an item
                that contradicts an earlier one; ids of another kind than earlier ones. The estimator is then as it was before.
        """
        if not hasattr(self, "classes_"):
            self.fit(annotations, gold)
            return self
        added = self._additions if hasattr(self, "_additions") else _Additions()
        table = self._with_gold_of_old(self._read(annotations, gold), gold, added)
        item, new = self._codes_of(table.items, added)
        self._require_new(table, item, new, added)
        self._additions = added
        added.codes |= new
        added.names.extend(new)
        design = self._design.joined(table.key, len(table.annotators))
        grown = self._statistics.extended(len(design.cells))

        touched = np.unique(item)
        before, had = self._packed_items(touched, added), self._known_shares(touched, added)
        without = count(before, had, len(design.cells))
        rest = Statistics(
            np.maximum(grown.counts - without.counts, 0),
            np.maximum(grown.class_count - without.class_count, 0),
        )
        keys = design.cells.locate(table.key)
        for code, cell, w in zip(
            item[table.item].tolist(), keys.tolist(), table.weights.tolist(), strict=True
        ):
            added.keys.setdefault(code, []).append(cell)
            added.weights.setdefault(code, []).append(w)
        for code, known in zip(item.tolist(), table.gold.tolist(), strict=True):
            if known >= 0:
                added.gold[code] = known
        added.labels += len(table.item)

        if not hasattr(self, "_fitted_scores"):
            self._fitted_scores = self._scores(self._design)
        channel = self._channel(design, averaged=self.confidence == "variational")
        after, now = self._packed_items(touched, added), np.zeros(had.shape)
        statistics = grown
        # At the mode whoever has no counts yet is never wrong, and would stay so; posterior means are where rounds begin
        scores = channel.means(grown).scores if isinstance(channel, Averaging) else channel.scores(grown)
        for _ in range(_ROUNDS):
            last = now.copy()
            statistics = rest + e_step(after, scores, responsibilities=now).statistics
            scores = channel.scores(statistics)
            if np.abs(now - last).max(initial=0.0) < _ENOUGH:
                break
        self._design, self._annotator_ids, self._statistics = design, table.annotators, statistics
        self._last = replace(self._last, statistics=statistics, scores=scores)
        self._mode = replace(
            self._mode, statistics=statistics, scores=self._channel(design, averaged=False).scores(statistics)
        )
        found = self._averaged(after, now)
        for code, share, probability in zip(touched.tolist(), now, found, strict=True):
            added.shares[code], added.probabilities[code] = share.copy(), probability.copy()
        self._made = {}
        return self

    @property
    def refit_gap_(self) -> pd.Series:
        """How far answers may be from those of a full fit of all labels.

        labels_added; share_added: of all labels; mean_shift and largest_shift: by how much the log odds of an item that was not touched would change
        were its responsibilities found anew with the present tables, as a mean over labels times labels per item, and at most.
        A full fit moves on from there: expect some times the mean shift where EM is slow.
        """
        added = self._additions if hasattr(self, "_additions") else _Additions()
        shift, largest = 0.0, 0.0
        if added.labels:
            old = self._fitted_scores
            used = np.bincount(self._packed.cell, minlength=len(old.log_table)).astype(float)
            new = self._scores(self._design)
            change = np.ptp(
                np.clip(new.log_table[: len(used)], FLOOR, None) - np.clip(old.log_table, FLOOR, None), axis=1
            )
            prior = float(np.ptp(new.log_prior - old.log_prior))
            sizes = self._packed.size
            shift = prior + float(change @ used / max(used.sum(), 1)) * float(sizes.mean())
            largest = prior + float(change.max(initial=0.0)) * float(sizes.max(initial=0))
        total = len(self._packed.cell) + added.labels
        return pd.Series(
            {
                "labels_added": added.labels,
                "share_added": added.labels / max(total, 1),
                "mean_shift": shift,
                "largest_shift": largest,
            }
        )

    def _with_gold_of_old(self, table: Table, gold: pd.Series | None, added: _Additions) -> Table:
        """The table with known items that it does not have, where their class is told."""
        if gold is None:
            return table
        told = gold.loc[gold.notna() & ~gold.index.isin(table.items)]
        told = told.loc[told.index.isin(self._answered.items) | told.index.isin(added.names)]
        if not len(told):
            return table
        items = declare(told.index.unique(), "items")
        return replace(
            table,
            items=table.items.append(items),
            gold=np.concatenate([table.gold, gold_codes(items, self.classes_, told)]),
        )

    def _codes_of(self, items: pd.Index, added: _Additions) -> tuple[Int64[np.ndarray, " i"], dict[Any, int]]:
        """The codes of items, and of those among them that are new."""
        codes = self._answered.items.get_indexer(items).astype(np.int64)
        new: dict[Any, int] = {}
        for place in np.flatnonzero(codes < 0):
            name = items[place]
            if name not in added.codes and name not in new:
                new[name] = self._packed.num_items + len(added.names) + len(new)
            codes[place] = added.codes[name] if name in added.codes else new[name]
        return codes, new

    def _packed_items(self, items: Int64[np.ndarray, " m"], added: _Additions) -> Packed:
        """All labels of those items, those of the fit first."""
        fitted = items < self._packed.num_items
        base = self._packed.take(items[fitted])
        size = np.zeros(len(items), np.int64)
        size[fitted] = base.size
        later = [added.keys.get(code, []) for code in items.tolist()]
        place = np.concatenate(
            [
                np.repeat(np.arange(len(items)), size),
                np.repeat(np.arange(len(items)), [len(keys) for keys in later]),
            ]
        )
        cell = np.concatenate([base.cell, np.array([key for keys in later for key in keys], np.int32)])
        weight = np.concatenate(
            [base.weights, [w for code in items.tolist() for w in added.weights.get(code, [])]]
        )
        gold = np.full(len(items), -1, np.int32)
        gold[fitted] = base.known
        gold = np.array(
            [added.gold.get(code, old) for code, old in zip(items.tolist(), gold.tolist(), strict=True)],
            np.int32,
        )
        order = np.argsort(place, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(place, minlength=len(items)))])
        weighted = bool((weight != 1).any())
        return Packed(
            starts,
            cell[order].astype(np.int32),
            weight[order] if weighted else None,
            gold if (gold >= 0).any() else None,
        )

    def _known_shares(self, items: Int64[np.ndarray, " m"], added: _Additions) -> Float64[np.ndarray, "m k"]:
        """What the items have in the counts: nothing, if they are new."""
        nothing = np.zeros(len(self.classes_))
        made = np.empty((len(items), len(nothing)))
        for row, code in enumerate(items.tolist()):
            if code in added.shares:
                made[row] = added.shares[code]
            elif code < self._packed.num_items:
                made[row] = self._shares[code if self._place is None else self._place[code]]
            else:
                made[row] = nothing
        return made

    def _require_new(
        self, table: Table, item: Int64[np.ndarray, " i"], new: dict[Any, int], added: _Additions
    ) -> None:
        # One earlier id tells the kind ("1" and 1) of all
        declare(self._answered.items[:1].append(pd.Index(list(new))), "items")
        declare(self._annotator_ids[:1].append(table.annotators[len(self._annotator_ids) :]), "annotators")
        owner, asked = self._design.cells.annotator, np.unique(item)
        had = self._packed_items(asked, added)
        pairs = set(zip(np.repeat(asked, had.size).tolist(), owner[had.cell].tolist(), strict=True))
        codes = item[table.item]
        again = np.array(
            [pair in pairs for pair in zip(codes.tolist(), table.annotator.tolist(), strict=True)], dtype=bool
        )
        named = pd.Series(list(zip(table.items[table.item], table.annotators[table.annotator], strict=True)))
        reject(
            again,
            named,
            "(item, annotator) pairs that have a label already: an earlier label cannot be replaced, only a new fit forgets it",
        )
        if had.gold is not None:
            earlier = dict(zip(asked.tolist(), had.gold.tolist(), strict=True))
            old = np.array([earlier[code] for code in item.tolist()])
            reject(
                (old >= 0) & (table.gold >= 0) & (old != table.gold),
                pd.Series(table.items),
                "items whose known class was another one",
            )

    def _of_annotators(self) -> tuple[RowPosterior, Float64[np.ndarray, " k"], Packed | None]:
        rows, class_prior, packed = super()._of_annotators()
        if not hasattr(self, "_additions"):
            return rows, class_prior, packed
        touched = np.array(sorted(self._additions.shares), np.int64)
        rest = self._packed.take(np.setdiff1d(np.arange(self._packed.num_items), touched))
        return rows, class_prior, _joined(rest, self._packed_items(touched, self._additions))

    def _latest(self) -> ItemResults:
        if not hasattr(self, "_additions"):
            return self._answered
        added = self._additions
        old, more = self._answered, len(added.names)
        made = [
            np.concatenate([a, np.zeros((more, *a.shape[1:]), a.dtype)])
            for a in (old.responsibilities, old.size, old.heard, old.known)
        ]
        for code, found in added.probabilities.items():
            made[0][code] = found
            made[1][code] += len(added.keys.get(code, []))
            made[2][code] += len(added.keys.get(code, []))
            made[3][code] |= code in added.gold
        names = old.items.append(pd.Index(added.names)) if more else old.items
        return ItemResults(names, *made)


def _joined(first: Packed, then: Packed) -> Packed:
    """The items of both."""
    weighted = first.weight is not None or then.weight is not None
    return Packed(
        np.concatenate([first.starts, first.starts[-1] + then.starts[1:]]),
        np.concatenate([first.cell, then.cell]),
        np.concatenate([first.weights, then.weights]) if weighted else None,
        np.concatenate([first.known, then.known]),
    )
