"""LIA: labels, difficulties and competences learned together by networks (Platanios et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn.utils.validation import check_is_fitted

from probcrowd.data.features import Standardiser, standardised
from probcrowd.data.options import check_number, check_option, check_whole
from probcrowd.data.table import Table
from probcrowd.estimators.lia.results import LIAAnswers
from probcrowd.estimators.lia.saved import (
    load_fit,
    load_spreads,
    load_state,
    save_fit,
    save_spreads,
    save_state,
    settings_of,
)
from probcrowd.inference.lia.em import Fitted, Schedule, State, fit_lia
from probcrowd.inference.lia.held_out_prior import best_prior, search_prior_scales
from probcrowd.inference.lia.objectives import OBJECTIVES, ObjectiveName
from probcrowd.models.lia.prior import Inputs, LIAPrior
from probcrowd.storage.folder import RunFolder

_PAPER = LIAPrior(hidden=(16,) * 4, annotator_embedding=16)
HELD_OUT = "held-out"


class LIA(LIAAnswers):
    """Truth, difficulty and competence as networks of what is known of items and annotators.

    With `features` of the items this is the paper's LIA, without them its LIA-E, which learns an embedding of every item. Labels of the
    fitted items are posteriors given all that was said of them (`probabilities_`, `labels_`); h(x), what the truth network says without
    having heard anybody, is `truth_probabilities_` for them and `predict_items` for others.

    Args:
        objective: "joint", a likelihood with a prior, whose EM never lowers its log posterior; or, with their flaws, "as_written" (equations
            4, 7 and 9 of the paper), "as_coded" (the authors' first code, whose answer for an item is h(x)), "composite" (joint EM, then
            equation 9 without its normaliser).
        prior: spreads and sizes of the networks. None: linear networks and a table for each annotator; for "as_written" and "as_coded" the
            paper's sizes, four layers of 16 units and embeddings of 16, where "as_coded" has a linear difficulty. With some hundred items or
            fewer, a prior on several layers may hold all their weights at zero: features then say nothing. "held-out": the default's
            sizes, and spreads that labels which a fit has not seen ask for, some 7 to 13 settings of one to five fits each (`spreads_`).
        rounds: of EM. steps: of every M step. last_steps: on the last objective. None: 25 and 500 L-BFGS steps; for "as_written" and
            "as_coded" the paper's 1,000 and 1,000 AMSGrad steps.
        batch: labels of a batch of whole items for AMSGrad, or "all": L-BFGS on all items. None: "all", or 1,024 as in the paper.
        learning_rate: of AMSGrad. tolerance: the gain per item, in nats, at which the last steps have converged.
        random_state: the seed of the start and of batches.
        progress: shows a bar.
        dependence, abstention: as for `DawidSkene`.

    Confusion matrices in `confusion_` are posterior means given the label probabilities, under the prior "accurate"; what the model itself
    says of an annotator is `competence_`. Memory: about 50 x classes^2 x latent bytes per label of the table or of a batch, and the features.
    """

    _spreads: pd.DataFrame | None = None

    def __init__(
        self,
        *,
        objective: ObjectiveName = "joint",
        prior: LIAPrior | Literal["held-out"] | None = None,
        rounds: int = 10,
        steps: int | None = None,
        last_steps: int | None = None,
        batch: int | Literal["all"] | None = None,
        learning_rate: float = 1e-3,
        tolerance: float = 1e-6,
        random_state: int = 0,
        progress: bool = False,
        dependence: str = "warn",
        abstention: Any = None,
    ) -> None:
        self.objective: ObjectiveName = objective
        self.prior: LIAPrior | Literal["held-out"] | None = prior
        self.rounds = rounds
        self.steps = steps
        self.last_steps = last_steps
        self.batch: int | Literal["all"] | None = batch
        self.learning_rate = learning_rate
        self.tolerance = tolerance
        self.random_state = random_state
        self.progress = progress
        self.dependence = dependence
        self.abstention = abstention

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
        """This estimator, fitted.

        Args:
            annotations, gold: as for every aggregator. history: refused.
            features: numbers by item, ids as the index; the rows of an array are items 0, 1, ... Items without labels are left out.
            annotator_features: numbers by annotator, ids as the index. None: competences are learned for each by itself.
            folder: where a checkpoint is kept after every round, and in the end the fit (`load_lia`). resume: go on from there.

        Raises:
            TypeError, ValueError: tables that cannot be read, items or annotators without features; a folder in use or of another fit.
            FloatingPointError: the objective is not a number any more.
        """
        if history is not None:
            raise ValueError("LIA takes no history; DawidSkene, FastDawidSkene, OneCoin and ZenCrowd do")
        if resume and folder is None:
            raise ValueError("resume=True needs the folder of the fit to go on with")
        self._fitted(
            annotations,
            gold,
            lambda table: self._learn(
                table, features, annotator_features, None if folder is None else Path(folder), resume
            ),
        )
        return self

    def _fit(self, table: Table, history: pd.DataFrame | None) -> None:
        self._learn(table, None, None, None, False)

    def _check(self) -> None:
        super()._check()
        check_option("objective", self.objective, OBJECTIVES)
        if not (self.prior in (None, HELD_OUT) or isinstance(self.prior, LIAPrior)):
            raise ValueError(f"prior={self.prior!r}: give a LIAPrior, {HELD_OUT!r} or None")
        if self.prior == HELD_OUT and self._published:
            raise ValueError(f"prior={HELD_OUT!r}: the objective {self.objective!r} has no prior to choose")
        sizes = (
            ("rounds", 1, ()),
            ("steps", 1, (None,)),
            ("last_steps", 0, (None,)),
            ("batch", 1, (None, "all")),
            ("random_state", 0, ()),
        )
        for name, least, others in sizes:
            check_whole(name, getattr(self, name), least, others)
        check_number("learning_rate", self.learning_rate, above=0)

    @property
    def _published(self) -> bool:
        return self.objective in ("as_written", "as_coded")

    @property
    def networks(self) -> LIAPrior:
        """The prior in force: the one given, chosen by held-out labels in the last fit, or of the objective."""
        if isinstance(self.prior, LIAPrior):
            return self.prior
        if self.prior == HELD_OUT and self._spreads is not None:
            return best_prior(LIAPrior(), self._spreads)
        if not self._published:
            return LIAPrior()
        return _PAPER if self.objective == "as_written" else replace(_PAPER, difficulty_hidden=())

    @property
    def spreads_(self) -> pd.DataFrame:
        """What held-out labels said of spreads (`prior="held-out"`), a row per setting in the order in which they were tried: spreads, mean
        score in nats per label, gain over the best before with its standard error, and whether it became the best."""
        check_is_fitted(self, "classes_")
        if self._spreads is None:
            raise AttributeError(f"spreads were given, not chosen: fit with prior={HELD_OUT!r}")
        return self._spreads.copy()

    @property
    def schedule(self) -> Schedule:
        """The steps in force."""
        batch = self.batch if self.batch is not None else 1024 if self._published else "all"
        steps, last = (1000, 1000) if self._published else (25, 500)
        return Schedule(
            self.rounds,
            steps if self.steps is None else self.steps,
            last if self.last_steps is None else self.last_steps,
            None if batch == "all" else int(batch),
            self.learning_rate,
            self.tolerance,
        )

    def _learn(
        self,
        table: Table,
        features: Any,
        annotator_features: Any,
        out: Path | None,
        resume: bool,
        asked: tuple[np.ndarray, int] | None = None,
    ) -> None:
        """Fits, in a folder where there is one. asked: the question of each item, and how many questions there are."""
        item, item_standard = standardised(features, table.items, "features")
        annotator, annotator_standard = standardised(
            annotator_features, table.annotators, "annotator_features"
        )
        inputs, rows = Inputs(item, annotator, *(asked or (None, 0))), table.rows
        options: dict[str, Any] = {"seed": int(self.random_state), "progress": self.progress}
        keep: Callable[[State], None] = lambda state: None
        state: State | None = None
        with ExitStack() as stack:
            folder = None if out is None else stack.enter_context(RunFolder(out))
            if folder is not None:
                settings = settings_of(folder.path, self._asked_for, table, inputs)
                state = load_state(folder) if folder.start(settings, resume) else None
                keep = partial(save_state, folder)
            if self.prior == HELD_OUT:
                self._spreads = None if folder is None else load_spreads(folder.path)
                if self._spreads is None:
                    self._spreads = search_prior_scales(
                        rows, inputs, LIAPrior(), OBJECTIVES[self.objective], self.schedule, **options
                    )
                if folder is not None:
                    save_spreads(folder.path, self._spreads)
            fitted = fit_lia(
                rows,
                inputs,
                self.networks,
                OBJECTIVES[self.objective],
                self.schedule,
                state=state,
                keep=keep,
                **options,
            )
            self._keep(table, inputs, (item_standard, annotator_standard), fitted)
            if folder is not None:
                save_fit(
                    folder,
                    table,
                    _arrays(inputs, (item_standard, annotator_standard), fitted),
                    fitted.parameters,
                    {
                        "converged": fitted.converged,
                        "questions": inputs.num_questions,
                        "columns": [
                            list(standard.columns) if standard else []
                            for standard in (item_standard, annotator_standard)
                        ],
                    },
                )

    def _keep(
        self,
        table: Table,
        inputs: Inputs,
        standards: tuple[Standardiser | None, Standardiser | None],
        fitted: Fitted,
    ) -> None:
        self._posterior = fitted.posterior
        self._deaf = OBJECTIVES[self.objective].answer == "truth network"
        told = fitted.posterior
        if self._deaf:  # but gold is certain
            told = np.where(table.gold[:, None] >= 0, told, fitted.truth)
        self._install(table, inputs, standards, fitted, told)

    @property
    def _asked_for(self) -> dict[str, Any]:
        """What the result depends on."""
        return {
            name: value
            for name, value in self.get_params(deep=False).items()
            if name not in ("progress", "dependence")
        }


def load_lia(folder: Path | str) -> LIA:
    """The finished fit that `LIA.fit` kept in a folder.

    Raises:
        ValueError: there is none, or it is one of several questions, or files of it are damaged.
    """
    made = read_lia(Path(folder))
    if made._learned.inputs.question is not None:
        raise ValueError(f"{folder} holds a fit to several questions: read it with load_multi_label_lia")
    return made


def read_lia(folder: Path) -> LIA:
    """The finished fit in a folder, of one question or of several."""
    parameters, table, arrays, learned, state = load_fit(folder)
    prior = parameters.pop("prior")
    if isinstance(prior, dict):
        sizes: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in prior.items()
        }
        prior = LIAPrior(**sizes)
    made = LIA(prior=prior, dependence="ignore", **parameters)
    made._spreads = load_spreads(folder)
    inputs = Inputs(
        arrays.get("item_features"),
        arrays.get("annotator_features"),
        arrays.get("question"),
        state["questions"],
    )
    standards = (
        _standard(arrays, "item", state["columns"][0]),
        _standard(arrays, "annotator", state["columns"][1]),
    )
    fitted = Fitted(learned, arrays["posterior"], arrays["truth"], arrays["values"], state["converged"])
    made._keep(table, inputs, standards, fitted)
    made._look_for_dependence()
    made._made = {}
    return made


def _arrays(
    inputs: Inputs, standards: tuple[Standardiser | None, Standardiser | None], fitted: Fitted
) -> dict[str, np.ndarray]:
    """What a folder keeps besides table and parameters."""
    arrays = {"posterior": fitted.posterior, "truth": fitted.truth, "values": fitted.values}
    arrays |= {} if inputs.question is None else {"question": inputs.question}
    for name, array, standard in zip(
        ("item", "annotator"), (inputs.item_features, inputs.annotator_features), standards, strict=True
    ):
        if array is not None and standard is not None:
            arrays |= {
                f"{name}_features": array,
                f"{name}_mean": standard.mean,
                f"{name}_size": np.array(standard.root_mean_square),
            }
            arrays |= {} if standard.axes is None else {f"{name}_axes": standard.axes}
    return arrays


def _standard(arrays: dict[str, np.ndarray], name: str, columns: list[str]) -> Standardiser | None:
    if f"{name}_mean" not in arrays:
        return None
    return Standardiser(
        arrays[f"{name}_mean"], float(arrays[f"{name}_size"]), arrays.get(f"{name}_axes"), tuple(columns)
    )
