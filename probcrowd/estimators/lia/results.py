"""What a fitted LIA answers under the users' ids: classes of labelled items, competences, difficulties, and whom to ask."""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64
from sklearn.utils.validation import check_is_fitted

from probcrowd.data.features import matched
from probcrowd.data.files import by_item, some
from probcrowd.data.table import Table
from probcrowd.estimators.lia.fitted import principal_map
from probcrowd.estimators.lia.truth_network import NetworkAggregator

MOST_RIGHT = 10**8


class LIAAnswers(NetworkAggregator):
    """The part of `LIA` that is asked after a fit."""

    _unknown = "are taken as typical annotators"
    _posterior: Float64[np.ndarray, "i k"]
    _deaf = False  # whether answers are h(x)
    _others: tuple[Any, Any] = None, None  # features of items and of annotators that the fit does not know

    @property
    def competence_(self) -> pd.DataFrame:
        """P(label | true class) by (annotator, true class) and label, on an item of average features; rows sum to 1."""
        check_is_fitted(self, "classes_")
        return self._competence_frame(None)

    @property
    def difficulty_(self) -> pd.Series:
        """By item: the probability that a typical annotator is wrong about it."""
        check_is_fitted(self, "classes_")
        place = np.arange(len(self._answered.items))
        found = self._learned.difficulty(self._posterior, place)
        return pd.Series(found, pd.Index(self._answered.items, name="item"), name="difficulty")

    @property
    def annotator_map_(self) -> pd.DataFrame:
        """By annotator: two principal components of the scores of labels (figure 2 of the paper), accuracy on an average item, number of labels.

        Annotators near each other label alike; the origin is the mean annotator.
        """
        check_is_fitted(self, "classes_")
        points = principal_map(self._learned.logits(), self._annotator_ids)
        accuracy = np.einsum("jkk,k->j", self._learned.typical(), self.class_prior_.to_numpy())
        return points.assign(accuracy=accuracy, num_labels=self.annotators_["num_labels"].to_numpy())

    def probability_right(
        self, items: Any = None, annotators: Any = None, *, features: pd.DataFrame | np.ndarray | None = None
    ) -> pd.DataFrame:
        """The probability that an annotator (columns) is right about an item (rows): whom to ask.

        Args:
            items: ids of fitted items. None: all of them. annotators: ids. None: all.
            features: of other items, in the place of `items`; their classes are those that h(x) expects.

        Raises:
            ValueError: both items and features, unknown ids, or more than 10^8 pairs.
        """
        check_is_fitted(self, "classes_")
        if items is not None and features is not None:
            raise ValueError("give items of the fit or features of others, not both")
        columns = self._places(self._annotator_ids, annotators, "annotators")
        if features is not None:
            asked = by_item(features, "features")
            seen, place, ids = self._seen(asked), np.full(len(asked), -1), asked.index
            posterior = self._learned.class_probabilities(seen)
        else:
            seen, place = None, self._places(self._answered.items, items, "items")
            ids, posterior = self._answered.items.take(place), self._posterior[place]
        if len(place) * len(columns) > MOST_RIGHT:
            raise ValueError(
                f"{len(place):,} items x {len(columns):,} annotators are too many for one table: name some of either"
            )
        found = self._learned.right(posterior, place, seen, columns)
        return pd.DataFrame(
            found, pd.Index(ids, name="item"), pd.Index(self._annotator_ids.take(columns), name="annotator")
        )

    def predict_proba(
        self,
        annotations: Any = None,
        *,
        features: pd.DataFrame | np.ndarray | None = None,
        annotator_features: pd.DataFrame | None = None,
    ) -> pd.DataFrame:
        """p(class | annotations) by item (rows) and class (columns), of the fitted table or of another one.

        Args:
            annotations: another table; items of the fit keep their features, an item with the labels that it had keeps its answer.
            features: of items that the fit does not know; None: they count as average ones.
            annotator_features: of annotators that the fit does not know, if it had features of annotators; None: they count as typical ones.

        Raises:
            TypeError, ValueError: tables that cannot be read, unknown items or annotators without features, features that the fit had not.
        """
        if features is None and annotator_features is None:
            return super().predict_proba(annotations)
        check_is_fitted(self, "classes_")
        table = self._new(annotations) if annotator_features is None else self._read(annotations)
        asked = copy(self)
        asked._others = features, annotator_features
        return self._describe(table, asked._answers(table)).probability_frame(self.classes_)

    def _competence_frame(self, question: int | None) -> pd.DataFrame:
        rows = pd.MultiIndex.from_product(
            [self._annotator_ids, self.classes_], names=["annotator", "true_class"]
        )
        return pd.DataFrame(
            self._learned.typical(question).reshape(len(rows), -1), rows, self.classes_.rename("label")
        )

    def _predict(self, table: Table) -> Float64[np.ndarray, "i k"]:
        features, annotator_features = self._others
        place = self._answered.items.get_indexer(table.items)
        seen = people = None
        if features is not None:
            seen = np.zeros((len(place), self._width("features", 0)))
            new = np.flatnonzero(place < 0)
            seen[new] = self._seen(matched(features, table.items[new], "features"))
        if annotator_features is not None:
            known = len(self._annotator_ids)
            self._width("annotator_features", 1)
            people = self._seen(
                matched(annotator_features, table.annotators[known:], "annotator_features"), 1
            )
        if self._deaf:
            return self._learned.truth(place, seen)
        return self._learned.posterior(table.rows, place, seen, people)

    def _places(self, ids: pd.Index, chosen: Any, name: str) -> Int64[np.ndarray, " p"]:
        if chosen is None:
            return np.arange(len(ids))
        asked = pd.Index([chosen] if isinstance(chosen, str) or np.ndim(chosen) == 0 else chosen)
        place = ids.get_indexer(asked)
        if (place < 0).any():
            raise ValueError(
                f"{name} that the fit does not know: {some(asked[place < 0])}; it knows {some(ids)}"
            )
        return place.astype(np.int64)
