"""LIA-ML: several questions about every item, one model (Platanios et al. 2020, section 3.4)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from probcrowd.data.features import matched
from probcrowd.data.files import by_item, some
from probcrowd.data.table import Table
from probcrowd.data.validation import find_columns, reject
from probcrowd.estimators.lia.lia import LIA, restore_lia
from probcrowd.estimators.results import Fitted
from probcrowd.inference.lia.objectives import ObjectiveName
from probcrowd.models.lia.prior import LIAPrior


@dataclass(kw_only=True, eq=False, repr=False)
class MultiLabelLIA(BaseEstimator):
    """Truth, difficulty and competence for several questions about every item.

    For example: does the sentence mention a cause, a treatment, a symptom?

    Every question has a learned embedding, which changes the last layer of the truth network and the
    competence of all annotators alike. Questions share the networks, the annotators' competences and the
    classes of answers (for example yes and no), so they learn from each other. The rest is as in `LIA`, with
    (item, question) instead of the item;
    memory: the features once for every question.

    Args:
        prior, objective, rounds, steps, last_steps, batch, learning_rate, random_state, progress: as for
            `LIA`.
    """

    objective: ObjectiveName = "joint"
    prior: LIAPrior | Literal["held-out"] | None = None
    rounds: int = 10
    steps: int | None = None
    last_steps: int | None = None
    batch: Any = None
    learning_rate: float = 1e-3
    random_state: int = 0
    progress: bool = False

    def fit(
        self,
        annotations: pd.DataFrame,
        gold: pd.Series | None = None,
        *,
        features: pd.DataFrame | np.ndarray | None = None,
        annotator_features: pd.DataFrame | None = None,
        folder: Path | str | None = None,
        resume: bool = False,
    ) -> MultiLabelLIA:
        """Fit the networks; returns this estimator.

        Args:
            annotations: a long table with the columns item, annotator, question and label (task and worker
                are recognised as well).
            gold: known classes by (item, question).
            features, annotator_features, folder, resume: as for `LIA.fit`; features by item.

        Raises:
            TypeError, ValueError: invalid tables, items without features, no column `question`.
        """
        if not isinstance(annotations, pd.DataFrame):
            kind = type(annotations).__name__
            raise TypeError(
                f"annotations must be a data frame with item, annotator, question and label, not {kind}"
            )
        if "question" not in annotations.columns:
            raise ValueError(
                "annotations need a column 'question' beside item, annotator and label; "
                f"they have {some(annotations.columns)}"
            )
        column = find_columns(annotations, {"item": None, "annotator": None, "label": None})
        column["question"] = annotations.loc[:, "question"]
        for name in ("item", "question"):
            reject(column[name].isna().to_numpy(bool), column[name], f"missing {name} ids")
        frame = pd.DataFrame({name: column[name] for name in ("annotator", "label")})
        frame = frame.assign(item=_joined(column["item"], column["question"]))
        known = None if gold is None else _with_joined_index(_by_pair(gold))
        lia = LIA(dependence="ignore", **self.get_params(deep=False))

        def fit(table: Table) -> Fitted:
            pairs = _split(table.items)
            code, questions = pd.factorize(pairs.get_level_values("question"), sort=True)
            items, repeated = pairs.get_level_values("item"), None
            if features is not None:
                unique = matched(features, items.unique(), "features")
                repeated = unique.take(unique.index.get_indexer(items)).set_axis(table.items, axis=0)
            item_questions = code.astype(np.int64), len(questions)
            return lia._solve(table, repeated, annotator_features, folder, resume, item_questions)

        lia._fit(frame, known, fit)
        return self._set_fitted(lia)

    def predict(self) -> pd.Series:
        """The most probable class by (item, question)."""
        return self.labels_

    def predict_proba(self) -> pd.DataFrame:
        """p(class | all labels) by (item, question) and class."""
        return self.probabilities_

    def score(self, gold: pd.Series) -> pd.Series:
        """By question: the share of items with gold, by (item, question), that are right; 1/m in a tie of
        m."""
        lia, known = self._lia(), _by_pair(gold)
        known = known.loc[known.notna() & known.index.isin(self.pairs_)]
        if not len(known):
            raise ValueError(
                f"gold has no class of any (item, question) of the fit, such as {some(self.pairs_)}"
            )
        parts = known.groupby(known.index.get_level_values(1), sort=True)
        scores = {name: lia.score(None, _with_joined_index(part)) for name, part in parts}
        return pd.Series(scores, name="accuracy").rename_axis("question")

    def predict_items(self, features: pd.DataFrame | np.ndarray) -> pd.DataFrame:
        """h(x) by (item, question) and class, for items without labels."""
        lia, frame, number = self._lia(), by_item(features, "features"), len(self.questions_)
        seen = lia._standardise(frame, "features")[np.repeat(np.arange(len(frame)), number)]
        questions = np.tile(np.arange(number), len(frame))
        probabilities = lia._network.truth_at(np.full(len(seen), -1), seen, questions)
        pairs = pd.MultiIndex.from_product([frame.index, self.questions_], names=["item", "question"])
        return pd.DataFrame(probabilities, pairs, lia.classes_.rename("class"))

    def competence(self, question: Any) -> pd.DataFrame:
        """P(label | true class) for this question about an average item, by (annotator, true class) and
        label."""
        lia = self._lia()
        if question not in self.questions_:
            raise ValueError(f"unknown question {question!r}: the fit has {some(self.questions_)}")
        return lia._competence_frame(list(self.questions_).index(question))

    @property
    def probabilities_(self) -> pd.DataFrame:
        """p(class | all labels) by (item, question) and class."""
        return self._lia().probabilities_.set_axis(self.pairs_, axis=0)

    @property
    def labels_(self) -> pd.Series:
        """The most probable class by (item, question)."""
        return self._lia().labels_.set_axis(self.pairs_)

    @property
    def difficulty_(self) -> pd.Series:
        """By (item, question): the probability that a typical annotator is wrong."""
        return self._lia().difficulty_.set_axis(self.pairs_)

    @property
    def annotators_(self) -> pd.DataFrame:
        """`LIA.annotators_`, over all questions."""
        return self._lia().annotators_

    def _lia(self) -> LIA:
        check_is_fitted(self, "lia_")
        return self.lia_

    def _set_fitted(self, lia: LIA) -> MultiLabelLIA:
        self.lia_ = lia
        self.pairs_ = _split(pd.Index(lia.items_.index))
        questions = self.pairs_.get_level_values("question").unique().sort_values()
        self.questions_ = pd.Index(questions, name="question")
        return self


def load_multi_label_lia(folder: Path | str) -> MultiLabelLIA:
    """Load the finished fit that `MultiLabelLIA.fit` saved in a folder.

    Raises:
        ValueError: no finished fit, one of another estimator, or damaged files.
    """
    lia = restore_lia(folder, "MultiLabelLIA")
    parameters = {name: getattr(lia, name) for name in MultiLabelLIA().get_params()}
    return MultiLabelLIA(**parameters)._set_fitted(lia)


def _joined(items: Any, questions: Any) -> pd.Index:
    """(item, question) as one JSON text each."""
    pairs = zip(items, questions, strict=True)
    return pd.Index([json.dumps([_plain(item), _plain(question)]) for item, question in pairs])


def _split(joined: pd.Index) -> pd.MultiIndex:
    return pd.MultiIndex.from_tuples([tuple(json.loads(pair)) for pair in joined], names=["item", "question"])


def _with_joined_index(gold: pd.Series) -> pd.Series:
    return pd.Series(gold.to_numpy(), _joined(gold.index.get_level_values(0), gold.index.get_level_values(1)))


def _by_pair(gold: Any) -> pd.Series:
    """Gold by (item, question), with the levels put in this order if they are named."""
    if not isinstance(gold, pd.Series):
        raise TypeError(f"gold labels must be a Series by (item, question), not {type(gold).__name__}")
    if gold.index.nlevels != 2:
        raise ValueError(f"gold labels need an index of (item, question), not {some(gold.index)}")
    named = set(gold.index.names) == {"item", "question"}
    return gold.reorder_levels(["item", "question"]) if named else gold


def _plain(value: Any) -> str | int | float:
    plain = value.item() if isinstance(value, np.generic) else value
    if not isinstance(plain, (str, int, float)):
        raise TypeError(
            f"ids of items and questions must be text, numbers or booleans, not {value!r}: convert them"
        )
    return plain
