"""LIA: labels, difficulties and competences learned together by networks (Platanios et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64
from sklearn.utils.validation import check_is_fitted

from probcrowd.data.features import matched, standardised
from probcrowd.data.files import by_item
from probcrowd.data.table import Table
from probcrowd.estimators.lia.fitted import FittedLIA
from probcrowd.estimators.lia.network_aggregator import NetworkAggregator, positions
from probcrowd.estimators.lia.options import HELD_OUT, check, resolve_prior, resolve_schedule
from probcrowd.estimators.lia.saved import (
    fit_dependencies,
    restore_fitted,
    restore_state,
    save_fitted,
    save_state,
)
from probcrowd.estimators.results import Fitted
from probcrowd.inference.lia.em import fit_lia
from probcrowd.inference.lia.held_out_prior import search_prior_scales
from probcrowd.inference.lia.objectives import OBJECTIVES, ObjectiveName
from probcrowd.models.lia.prior import Inputs, LIAPrior
from probcrowd.storage.fit import load_fit, load_table, open_fit, stored_table

MAX_PAIRS = 10**8  # cells of a table of items x annotators


@dataclass(kw_only=True, eq=False, repr=False)
class LIA(NetworkAggregator):
    """Truth, difficulty and competence as networks of the features of items and annotators.

    With `features` of the items this is the paper's LIA, without them its LIA-E, which learns an embedding of
    every item. Labels of the fitted items are posteriors given all of their labels (`probabilities_`,
    `labels_`); h(x), what the truth network predicts without labels, is `truth_probabilities_` for them and
    `predict_items` for others.

    Args:
        objective: "joint", a likelihood with a prior, whose EM never lowers its log posterior; or, with their
            flaws, "as_written" (equations 4, 7 and 9 of the paper), "as_coded" (the authors' first code,
            whose answer for an item is h(x)), "composite" (joint EM, then equation 9 without its normaliser).
        prior: scales and sizes of the networks. None: linear networks and a table for each annotator; for
            "as_written" and "as_coded" the paper's sizes, four layers of 16 units and embeddings of 16, where
            "as_coded" has a linear difficulty. With a few hundred items or fewer, a prior on several layers
            may hold all their weights at zero: features then have no effect. "held-out": the default's sizes,
            with the scales that score best on held-out labels, about 7 to 13 settings of one to five fits
            each (`spreads_`).
        rounds: of EM. steps: of every M step. last_steps: on the last objective. None: 25 and 500 L-BFGS
            steps; for "as_written" and "as_coded" the paper's 1,000 and 1,000 AMSGrad steps.
        batch: labels of a batch of whole items for AMSGrad, or "all": L-BFGS on all items. None: "all", or
            1,024 as in the paper.
        learning_rate: of AMSGrad. tolerance: the gain per item, in nats, at which the last steps have
            converged.
        random_state: the seed of the initial values and of batches. progress: show a progress bar.
        dependence, abstention: as for `DawidSkene`.

    `confusion_` has posterior means given the label probabilities, under the prior "accurate"; the model's
    own confusion matrices are in `competence_`. Memory: about 50 x classes^2 x latent bytes per label of the
    table or of a batch, and the features.
    """

    objective: ObjectiveName = "joint"
    prior: LIAPrior | Literal["held-out"] | None = None
    rounds: int = 10
    steps: int | None = None
    last_steps: int | None = None
    batch: int | Literal["all"] | None = None
    learning_rate: float = 1e-3
    tolerance: float = 1e-6
    random_state: int = 0
    progress: bool = False

    unknown = "are taken as typical annotators"

    def fit(
        self,
        annotations: Any,
        gold: pd.Series | None = None,
        *,
        history: pd.DataFrame | None = None,
        features: pd.DataFrame | np.ndarray | None = None,
        annotator_features: pd.DataFrame | None = None,
        folder: Path | str | None = None,
        resume: bool = False,
    ) -> LIA:
        """Fit the networks; returns this estimator.

        Args:
            annotations, gold: as for every aggregator. history: not supported.
            features: numbers by item, ids as the index; the rows of an array are items 0, 1, ... Items
                without labels are ignored.
            annotator_features: numbers by annotator, ids as the index. None: a competence of its own for
                each.
            folder: where to save a checkpoint after every round and, at the end, the fit (`load_lia`).
            resume: continue the fit in the folder.

        Raises:
            TypeError, ValueError: invalid tables, items or annotators without features; a folder in use or of
                another fit.
            FloatingPointError: the objective is no longer finite.
        """
        if history is not None:
            self._require("history", "takes no history", "do")
        given = (features, annotator_features, folder, resume)
        return self._fit(annotations, gold, lambda table: self._solve(table, *given))

    @property
    def competence_(self) -> pd.DataFrame:
        """P(label | true class) of an average item, by (annotator, true class) and label; rows sum to 1."""
        check_is_fitted(self, "classes_")
        return self._competence_frame(None)

    @property
    def difficulty_(self) -> pd.Series:
        """By item: the probability that a typical annotator is wrong about it."""
        check_is_fitted(self, "classes_")
        items = pd.Index(self._fitted.items.items, name="item")
        return pd.Series(self._network.difficulty(), items, name="difficulty")

    @property
    def annotator_map_(self) -> pd.DataFrame:
        """By annotator: two principal components (figure 2 of the paper), accuracy on an average item,
        labels.

        The components are those of log confusion matrices. Annotators near each other label alike; the origin
        is the mean annotator.
        """
        check_is_fitted(self, "classes_")
        accuracy = np.einsum("jkk,k->j", self._network.competence(), self.class_prior_.to_numpy())
        num_labels = self.annotators_["num_labels"].to_numpy()
        points = self._network.annotator_map(self._fitted.annotators)
        return points.assign(accuracy=accuracy, num_labels=num_labels)

    @property
    def spreads_(self) -> pd.DataFrame:
        """The search over prior scales on held-out labels (`prior="held-out"`), one row per setting tried.

        Columns: scales, mean score (nats per label), gain over the previous best with its standard error, and
        whether it was accepted.
        """
        check_is_fitted(self, "classes_")
        if self._network.spreads is None:
            raise AttributeError(f"prior scales were given, not searched: fit with prior={HELD_OUT!r}")
        return self._network.spreads.copy()

    def probability_right(
        self, items: Any = None, annotators: Any = None, *, features: pd.DataFrame | np.ndarray | None = None
    ) -> pd.DataFrame:
        """The probability that an annotator (columns) is right about an item (rows).

        Args:
            items: ids of fitted items. None: all of them. annotators: ids. None: all.
            features: of other items, instead of `items`; their classes are distributed as h(x).

        Raises:
            ValueError: both items and features, unknown ids, or more than 10^8 pairs.
        """
        check_is_fitted(self, "classes_")
        if items is not None and features is not None:
            raise ValueError("give items of the fit or features of others, not both")
        columns = positions(self._fitted.annotators, annotators, "annotators")
        if features is None:
            seen, place = None, positions(self._fitted.items.items, items, "items")
            ids, posterior = self._fitted.items.items.take(place), self._network.posterior[place]
        else:
            frame = by_item(features, "features")
            seen, place, ids = self._standardise(frame, "features"), np.full(len(frame), -1), frame.index
            posterior = self._network.truth_at(place, seen)
        if len(place) * len(columns) > MAX_PAIRS:
            raise ValueError(
                f"{len(place):,} items x {len(columns):,} annotators are too many for one table: "
                "choose some of either"
            )
        right = self._network.probability_right(posterior, place, seen, columns)
        names = pd.Index(self._fitted.annotators.take(columns), name="annotator")
        return pd.DataFrame(right, pd.Index(ids, name="item"), names)

    def predict_proba(
        self,
        annotations: Any = None,
        *,
        features: pd.DataFrame | np.ndarray | None = None,
        annotator_features: pd.DataFrame | None = None,
    ) -> pd.DataFrame:
        """p(class | annotations) by item (rows) and class (columns), of the fitted table or of another one.

        Args:
            annotations: another table; items of the fit keep their features, and an item whose labels are
                those of the fit keeps its answer.
            features: of items that are not in the fit; None: they count as average ones.
            annotator_features: of annotators that are not in the fit, if it had features of annotators; None:
                they count as typical ones.

        Raises:
            TypeError, ValueError: invalid tables, unknown items or annotators without features, features that
                the fit had not.
        """
        if features is None and annotator_features is None:
            return super().predict_proba(annotations)
        check_is_fitted(self, "classes_")
        given = {"features": features, "annotator_features": annotator_features}
        results = self._results(annotations, warn=annotator_features is None, **given)
        return results.probability_frame(self.classes_)

    def _competence_frame(self, question: int | None) -> pd.DataFrame:
        rows = pd.MultiIndex.from_product(
            [self._fitted.annotators, self.classes_], names=["annotator", "true_class"]
        )
        matrices = self._network.competence(question).reshape(len(rows), -1)
        return pd.DataFrame(matrices, rows, self.classes_.rename("label"))

    def _predict(
        self, table: Table, features: Any = None, annotator_features: Any = None
    ) -> Float64[np.ndarray, "i k"]:
        place = self._fitted.items.items.get_indexer(table.items)
        seen = annotators = None
        if features is not None:
            seen = np.zeros((len(place), self._standard("features").width))
            new = np.flatnonzero(place < 0)
            seen[new] = self._standardise(matched(features, table.items[new], "features"), "features")
        if annotator_features is not None:
            name, new_ids = "annotator_features", table.annotators[len(self._fitted.annotators) :]
            self._standard(name)
            annotators = self._standardise(matched(annotator_features, new_ids, name), name)
        if OBJECTIVES[self.objective].prediction == "truth network":
            return self._network.truth_at(place, seen)
        return self._network.posterior_at(table.rows, place, seen, annotators)

    def _check(self) -> None:
        super()._check()
        check(self)

    def _solve(
        self,
        table: Table,
        features: Any,
        annotator_features: Any,
        folder: Path | str | None,
        resume: bool,
        questions: tuple[Int64[np.ndarray, " i"], int] | None = None,
    ) -> Fitted:
        """Fit, in a folder if one is given. questions: that of each item, and how many there are."""
        item, item_standard = standardised(features, table.items, "features")
        name = "annotator_features"
        annotator, annotator_standard = standardised(annotator_features, table.annotators, name)
        inputs = Inputs(item, annotator, *(questions or (None, 0)))
        data = table.rows, inputs
        how = OBJECTIVES[self.objective], resolve_schedule(self)
        options: dict[str, Any] = {"seed": int(self.random_state), "progress": self.progress}
        estimator = "LIA" if questions is None else "MultiLabelLIA"
        depends_on = fit_dependencies(estimator, self.get_params(deep=False), table, inputs)
        with open_fit(folder, resume=resume, **depends_on) as saved:
            spreads: pd.DataFrame | None = None
            if self.prior == HELD_OUT:
                search = partial(search_prior_scales, *data, LIAPrior(), *how, **options)
                spreads = stored_table(saved, "spreads", search)
            if saved is not None:
                options["keep"] = partial(save_state, saved)
                options["state"] = None if saved.checkpoint is None else restore_state(saved.checkpoint)
            fitted = fit_lia(*data, resolve_prior(self, spreads), *how, **options)
            network = FittedLIA.of(fitted, inputs, (item_standard, annotator_standard), spreads)
            if saved is not None:
                save_fitted(saved, table, network)
        return self._with_network(table, network)

    def _with_network(self, table: Table, network: FittedLIA) -> Fitted:
        self.prior_, probabilities = resolve_prior(self, network.spreads), network.posterior
        if OBJECTIVES[self.objective].prediction == "truth network":  # gold stays certain
            probabilities = np.where(table.gold[:, None] >= 0, network.posterior, network.truth)
        return self._summarise_networks(table, network, probabilities)


def load_lia(folder: Path | str) -> LIA:
    """Load the finished fit that `LIA.fit` saved in a folder.

    Raises:
        ValueError: no finished fit, one of several questions, or damaged files.
    """
    return restore_lia(folder, "LIA")


def restore_lia(folder: Path | str, estimator: str) -> LIA:
    """Load LIA's part of the fit of an estimator."""
    saved = load_fit(folder, estimator)
    prior = saved.parameters.pop("prior")
    if isinstance(prior, dict):
        sizes: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in prior.items()}
        prior = LIAPrior(**sizes)
    lia = LIA(prior=prior, dependence="ignore", **saved.parameters)
    spreads = load_table(folder, "spreads") if prior == HELD_OUT else None
    return lia._set(lia._with_network(*restore_fitted(saved, spreads)))
