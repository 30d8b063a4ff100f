"""LIA-ML: several questions about every item, one model (Platanios et al. 2020, section 3.4)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from probcrowd.data.annotations import find_columns
from probcrowd.data.columns import reject
from probcrowd.data.features import matched
from probcrowd.data.files import by_item, some
from probcrowd.data.table import Table
from probcrowd.estimators.lia.lia import LIA, read_lia
from probcrowd.inference.lia.objectives import ObjectiveName
from probcrowd.models.lia.prior import LIAPrior


class MultiLabelLIA(BaseEstimator):
    """Truth, difficulty and competence for several questions at once: does the sentence tell of a cause, of a treatment, of a symptom?

    Every question has a learned embedding, which bends the last layer of the truth network and everybody's competence. Questions share the
    networks, the annotators' competences and the classes of answers (say, yes and no), and so learn from each other. All else is as in
    `LIA`, with (item, question) in the place of the item; memory: the features once for every question.

    Args:
        prior, objective, rounds, steps, last_steps, batch, learning_rate, random_state, progress: as for `LIA`.
    """

    def __init__(
        self,
        *,
        objective: ObjectiveName = "joint",
        prior: LIAPrior | Literal["held-out"] | None = None,
        rounds: int = 10,
        steps: int | None = None,
        last_steps: int | None = None,
        batch: Any = None,
        learning_rate: float = 1e-3,
        random_state: int = 0,
        progress: bool = False,
    ) -> None:
        self.objective: ObjectiveName = objective
        self.prior: LIAPrior | Literal["held-out"] | None = prior
        self.rounds = rounds
        self.steps = steps
        self.last_steps = last_steps
        self.batch = batch
        self.learning_rate = learning_rate
        self.random_state = random_state
        self.progress = progress

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
        """This estimator, fitted.

        Args:
            annotations: a long table with the columns item, annotator, question and label (task and worker are recognised as well).
            gold: known classes by (item, question).
            features, annotator_features, folder, resume: as for `LIA.fit`; features by item.

        Raises:
            TypeError, ValueError: tables that cannot be read, items without features, no column `question`.
        """
        if not isinstance(annotations, pd.DataFrame):
            raise TypeError(
                f"annotations must be a data frame with item, annotator, question and label, not {type(annotations).__name__}"
            )
        if "question" not in annotations.columns:
            raise ValueError(
                f"annotations need a column 'question' beside item, annotator and label; they have {some(annotations.columns)}"
            )
        column = find_columns(annotations, {"item": None, "annotator": None, "label": None}) | {
            "question": annotations.loc[:, "question"]
        }
        for name in ("item", "question"):
            reject(column[name].isna().to_numpy(bool), column[name], f"missing {name} ids")
        frame = pd.DataFrame({name: column[name] for name in ("annotator", "label")})
        frame = frame.assign(item=_joined(column["item"], column["question"]))
        known = None if gold is None else _under_joined(_by_pair(gold))
        lia = LIA(dependence="ignore", **self.get_params(deep=False))
        out = None if folder is None else Path(folder)

        def learn(table: Table) -> None:
            pairs = _split(table.items)
            code, questions = pd.factorize(pairs.get_level_values("question"), sort=True)
            items = pairs.get_level_values("item")
            seen = None
            if features is not None:
                seen = matched(features, items.unique(), "features")
                seen = seen.take(seen.index.get_indexer(items)).set_axis(table.items, axis=0)
            lia._learn(table, seen, annotator_features, out, resume, (code.astype(np.int64), len(questions)))

        if resume and out is None:
            raise ValueError("resume=True needs the folder of the fit to go on with")
        lia._fitted(frame, known, learn)
        return self._take(lia)

    def predict(self) -> pd.Series:
        """The most probable class by (item, question)."""
        return self.labels_

    def predict_proba(self) -> pd.DataFrame:
        """p(class | all that was said) by (item, question) and class."""
        return self.probabilities_

    def score(self, gold: pd.Series) -> pd.Series:
        """By question: the share of items with gold, by (item, question), whose answer is right; in a tie of m classes, 1/m."""
        check_is_fitted(self, "lia_")
        known = _by_pair(gold)
        known = known.loc[known.notna() & known.index.isin(self.pairs_)]
        if not len(known):
            raise ValueError(
                f"gold has no class of any (item, question) of the fit, such as {some(self.pairs_)}"
            )
        parts = known.groupby(known.index.get_level_values(1), sort=True)
        return pd.Series(
            {name: self.lia_.score(None, _under_joined(part)) for name, part in parts}, name="accuracy"
        ).rename_axis("question")

    def predict_items(self, features: pd.DataFrame | np.ndarray) -> pd.DataFrame:
        """h(x) by (item, question) and class, of items that nobody has labelled."""
        check_is_fitted(self, "lia_")
        asked = by_item(features, "features")
        seen, number = self.lia_._seen(asked), len(self.questions_)
        place = np.repeat(np.arange(len(asked)), number)
        found = self.lia_._learned.class_probabilities(seen[place], np.tile(np.arange(number), len(asked)))
        pairs = pd.MultiIndex.from_product([asked.index, self.questions_], names=["item", "question"])
        return pd.DataFrame(found, pairs, self.lia_.classes_.rename("class"))

    def competence(self, question: Any) -> pd.DataFrame:
        """P(label | true class) by (annotator, true class) and label, when asked this question about an average item."""
        check_is_fitted(self, "lia_")
        if question not in self.questions_:
            raise ValueError(f"unknown question {question!r}: the fit knows {some(self.questions_)}")
        return self.lia_._competence_frame(list(self.questions_).index(question))

    @property
    def probabilities_(self) -> pd.DataFrame:
        """p(class | all that was said) by (item, question) and class."""
        check_is_fitted(self, "lia_")
        return self.lia_.probabilities_.set_axis(self.pairs_, axis=0)

    @property
    def labels_(self) -> pd.Series:
        """The most probable class by (item, question)."""
        check_is_fitted(self, "lia_")
        return self.lia_.labels_.set_axis(self.pairs_)

    @property
    def difficulty_(self) -> pd.Series:
        """By (item, question): the probability that a typical annotator is wrong."""
        check_is_fitted(self, "lia_")
        return self.lia_.difficulty_.set_axis(self.pairs_)

    @property
    def annotators_(self) -> pd.DataFrame:
        """What `LIA.annotators_` says, over all questions."""
        check_is_fitted(self, "lia_")
        return self.lia_.annotators_

    def _take(self, lia: LIA) -> MultiLabelLIA:
        self.lia_ = lia
        self.pairs_ = _split(pd.Index(lia.items_.index))
        self.questions_ = pd.Index(
            self.pairs_.get_level_values("question").unique().sort_values(), name="question"
        )
        return self


def load_multi_label_lia(folder: Path | str) -> MultiLabelLIA:
    """The finished fit that `MultiLabelLIA.fit` kept in a folder.

    Raises:
        ValueError: there is none, or it is of another kind, or files of it are damaged.
    """
    lia = read_lia(Path(folder))
    if lia._learned.inputs.question is None:
        raise ValueError(f"{folder} holds a fit of LIA to one question: read it with load_lia")
    names = MultiLabelLIA().get_params()
    return MultiLabelLIA(
        **{name: value for name, value in lia.get_params(deep=False).items() if name in names}
    )._take(lia)


def _joined(items: Any, questions: Any) -> pd.Index:
    """(item, question) as one text each, from which both can be read again."""
    return pd.Index(
        [
            json.dumps([_plain(item), _plain(question)])
            for item, question in zip(items, questions, strict=True)
        ]
    )


def _split(joined: pd.Index) -> pd.MultiIndex:
    return pd.MultiIndex.from_tuples([tuple(json.loads(pair)) for pair in joined], names=["item", "question"])


def _under_joined(gold: pd.Series) -> pd.Series:
    return pd.Series(gold.to_numpy(), _joined(gold.index.get_level_values(0), gold.index.get_level_values(1)))


def _by_pair(gold: Any) -> pd.Series:
    """Gold under (item, question), in this order where the index names them."""
    if not isinstance(gold, pd.Series):
        raise TypeError(f"gold labels must be a Series by (item, question), not {type(gold).__name__}")
    if gold.index.nlevels != 2:
        raise ValueError(f"gold labels need an index of (item, question), theirs is of {some(gold.index)}")
    return (
        gold.reorder_levels(["item", "question"]) if set(gold.index.names) == {"item", "question"} else gold
    )


def _plain(value: Any) -> str | int | float:
    plain = value.item() if isinstance(value, np.generic) else value
    if not isinstance(plain, (str, int, float)):
        raise TypeError(
            f"ids of items and questions must be text, numbers or booleans, not {value!r}: convert them"
        )
    return plain
