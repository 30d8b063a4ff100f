r"""The label model of weak supervision as an aggregator, computed by the package snorkel (Ratner et al. 2019,
arXiv:1810.02840).

    o_i = one-hot labels of item i by all annotators (J K), zeros where there are none
    O = mean_i o_i o_i^T,     P = diag(class balance)
    mu[(j, l), k] = P(annotator j gives a label, and it is l | truth k)
                    sums over l to the share of items that j labelled

    minimise  |(O - mu P mu^T) between different annotators|^2 + |mu P 1 - diag O|^2 + |l2 (mu - mu_0)|^2
    p(k | labels of item i)  ~  P_k prod of mu[(j, l), k] over the labels l of item i, each by its annotator j

Gradient descent matches these moments of pairs of annotators for a fixed number of epochs. Items enter
through O alone, and a missing label carries no information about the class. Two label models that are common
baselines have no package that runs: see `MISSING`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int16
from scipy.special import softmax

from probcrowd.data.rows import Rows
from probcrowd.data.table import Table
from probcrowd.data.validation import check_number, check_whole, reject
from probcrowd.estimators.aggregation.item_models import ItemModel
from probcrowd.estimators.results import Fitted
from probcrowd.inference.aggregation.e_step import sums_by_owner
from probcrowd.inference.aggregation.result import Result

MOST_CELLS = 2 * 10**8
MISSING: dict[str, str] = {
    "Snorkel": (
        "The generative model of the first Snorkel (Ratner et al. 2017, arXiv:1711.10160), fitted by Gibbs "
        "sampling on a factor graph, is in no package on PyPI: snorkel starts there at 0.9.0, whose "
        "LabelModel is the method of MeTaL."
    ),
    "MeTaL": (
        "snorkel-metal 0.5.0, the last release (2019), installs but does not run. Importing it needs "
        "tensorboardX, which it does not declare; then every fit raises AttributeError: 'Graph' object has "
        "no attribute 'node', which networkx removed in 2.4. An older networkx does not install beside torch "
        "2.13 (which needs 2.5.1 or newer) and does not import on Python 3.11 (fractions.gcd). Its method, "
        "without declared dependencies between annotators, is that of SnorkelLabelModel, with the same "
        "defaults."
    ),
}


@dataclass(kw_only=True, eq=False, repr=False)
class SnorkelLabelModel(ItemModel):
    """The LabelModel of snorkel 0.10: annotators' confusion from the moments of pairs of annotators.

    It needs the extra "label-models". The method is the matrix completion of MeTaL (Ratner et al. 2019, AAAI,
    arXiv:1810.02840), for annotators who err independently; not the generative model of the Snorkel paper of
    2017. Neither that nor the package snorkel-metal can be run; `MISSING` says why. After 100 epochs it may
    not have converged: the result may depend on `random_state`.

    snorkel holds a dense matrix of labelled items x annotators. Memory: 8 K + 20 bytes a cell (K classes),
    and 35 bytes a cell of the square matrix over (annotator, class); time grows with that matrix as well:
    3,000 annotators take 20 s before the first epoch.

    Items without labels have the class balance. For new items, only labels by annotators of the fit count.
    The fit does not use gold; known items are certain afterwards. There is no objective (`log_posterior_` is
    empty, `n_iter_` 0) and no stopping rule (`converged_` is False). `confusion_` and `annotators_` are
    posterior means given the label probabilities, as for `GLAD`; snorkel's own parameters are
    `propensity_`. Global random states are restored.

    Args:
        epochs: gradient steps. learning_rate: their size. l2: the penalty above, and the weight decay of the
            steps. Defaults are snorkel's.
        class_balance: p(class) by class, a dict or a Series (as `class_prior_` of another aggregator); None:
            uniform, as in snorkel.
        random_state: the seed of the initial scale.
        dependence, abstention: as for `DawidSkene`; dependence: "warn" or "ignore".

    `fit` raises:
        ImportError: snorkel is not installed.
        TypeError, ValueError: invalid parameters; annotations that a label matrix cannot hold (weights other
            than 1, several labels of one item by one annotator); fewer than three annotators with labels;
            more than 2 * 10^8 cells in either matrix; a fit that diverges.
    """

    epochs: int = 100
    learning_rate: float = 0.01
    l2: float = 0.0
    class_balance: Any = None
    random_state: int = 0

    @property
    def propensity_(self) -> pd.DataFrame:
        """P(the annotator gives an item that label | true class), snorkel's parameters, laid out as
        `confusion_`.

        Rows sum to about the share of labelled items that have a label by the annotator. snorkel keeps every
        number in [e, 1 - e], with e = 10^-ceil(log10 I) for I items, 0.01 at most.
        """
        fitted = self._record
        rows = pd.MultiIndex.from_product(
            [fitted.annotators, self.classes_], names=["annotator", "true_class"]
        )
        return pd.DataFrame(
            fitted.model["propensity"].reshape(len(rows), -1), rows, self.classes_.rename("label")
        )

    def _check(self) -> None:
        super()._check()
        check_whole("epochs", self.epochs)
        check_number("learning_rate", self.learning_rate, above=0)
        check_number("l2", self.l2, least=0)
        if not isinstance(self.random_state, Integral) or not 0 <= self.random_state < 2**32:
            raise ValueError(f"random_state={self.random_state!r}: choose a whole number from 0 to 2^32 - 1")

    def _solve(self, table: Table) -> Fitted:
        _require_matrix(table)
        return super()._solve(table)

    def _predict(self, table: Table) -> Float64[np.ndarray, "i k"]:
        _require_matrix(table)
        return super()._predict(table)

    def _fit_rows(self, rows: Rows, classes: pd.Index) -> Result:
        settings = {
            "n_epochs": int(self.epochs),
            "lr": float(self.learning_rate),
            "l2": float(self.l2),
            "seed": int(self.random_state),
        }
        balance = _read_balance(self.class_balance, classes)
        propensity = _learn(_matrix(rows), balance, settings)
        parameters = {"propensity": propensity, "class_prior": balance}
        return Result(_bayes(rows, propensity, balance), np.empty(0), False, parameters)

    def _predict_rows(self, rows: Rows) -> Float64[np.ndarray, "i k"]:
        return _bayes(rows, self._fitted.model["propensity"], self._fitted.class_prior)


def _bayes(
    rows: Rows, propensity: Float64[np.ndarray, "j k l"], balance: Float64[np.ndarray, " k"]
) -> Float64[np.ndarray, "i k"]:
    """Return the probabilities of snorkel's `predict_proba`, without its dense matrix and without underflow;
    items with gold are certain.
    """
    log_likelihood = np.log(propensity)[rows.annotator, :, rows.label]  # (n, k)
    sums = sums_by_owner(log_likelihood, rows.item, rows.num_items)
    probabilities = softmax(sums + np.log(balance), axis=1)
    known = np.flatnonzero(rows.gold >= 0)
    probabilities[known] = np.eye(rows.num_classes)[rows.gold[known]]
    return probabilities


def _matrix(rows: Rows) -> Int16[np.ndarray, "v j"]:
    """Return the dense matrix of labels over labelled items and annotators, -1 where there is no label."""
    items, place = np.unique(rows.item, return_inverse=True)
    active, side = len(np.unique(rows.annotator)), rows.num_annotators * rows.num_classes
    if active < 3:
        raise ValueError(
            f"snorkel compares pairs of annotators: it needs labels by at least 3, and there are {active}"
        )
    for size, what in (
        (len(items) * rows.num_annotators, "of labelled items x annotators"),
        (side**2, "over pairs of (annotator, class)"),
    ):
        if size > MOST_CELLS:
            raise ValueError(
                f"snorkel needs a dense matrix {what}, which has {size:,} cells, more than {MOST_CELLS:,}: "
                "choose another aggregator"
            )
    matrix = np.full((len(items), rows.num_annotators), -1, np.int16)
    matrix[place, rows.annotator] = rows.label
    return matrix


def _learn(
    matrix: Int16[np.ndarray, "v j"], balance: Float64[np.ndarray, " k"], settings: dict[str, int | float]
) -> Float64[np.ndarray, "j k l"]:
    """Fit snorkel's label model and return P(annotator gives label l | class k).

    Raises:
        ImportError: snorkel is not installed.
        ValueError: the fit diverged.
    """
    with _global_state_restored():
        model = _label_model()(cardinality=len(balance), verbose=False)
        try:
            model.fit(matrix, class_balance=balance.tolist(), progress_bar=False, **settings)
        except Exception as error:  # snorkel raises no narrower one
            if "NaN" not in str(error):
                raise
            number = matrix.shape[1]
            raise ValueError(
                f"the fit diverged with learning_rate={settings['lr']!r} and {number} annotators: "
                "choose a lower one"
            ) from error
        mu = model.mu.detach().numpy().astype(np.float64)  # (j l, k)
    return np.ascontiguousarray(mu.reshape(matrix.shape[1], len(balance), -1).transpose(0, 2, 1))


def _label_model() -> Any:
    """Return snorkel's LabelModel, which raises where it would search endlessly for a permutation of NaN."""
    try:
        from snorkel.labeling.model import LabelModel
    except ImportError as error:
        raise ImportError(
            f'SnorkelLabelModel needs the package snorkel ({error}): install the extra "label-models": '
            'pip install ".[label-models]" in a clone of the repository'
        ) from error

    class Checked(LabelModel):
        def _clamp_params(self) -> None:
            if not bool(self.mu.isfinite().all()):
                raise FloatingPointError("parameters are NaN after the last epoch")
            super()._clamp_params()

    return Checked


@contextmanager
def _global_state_restored() -> Iterator[None]:
    """Run the block in float32 on the CPU with gradients, then restore the default dtype and all random
    states.
    """
    import torch

    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state, seed = torch.get_rng_state(), torch.initial_seed()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.inference_mode(False):  # enables gradients
            yield
    finally:
        torch.set_default_dtype(dtype)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.manual_seed(seed)  # for devices that have not started yet
        torch.set_rng_state(torch_state)
        torch.cuda.set_rng_state_all(cuda_states)


def _require_matrix(table: Table) -> None:
    """Raise ValueError for annotations that are not one unweighted label by item and annotator."""
    items, annotators = table.items.take(table.item), table.annotators.take(table.annotator)
    weights = pd.Series(table.weights, index=items)
    reject(
        table.weights != 1,
        weights,
        "snorkel counts every label once and accepts no weights other than 1",
    )
    repeated = (
        pd.Series(table.item * len(table.annotators) + table.annotator).duplicated(keep=False).to_numpy()
    )
    pairs = pd.Series(annotators, index=items)
    reject(
        repeated,
        pairs,
        "several labels of one item by one annotator: snorkel accepts one; "
        "set duplicates='first' or 'last' in `from_frame`",
    )


def _read_balance(balance: Any, classes: pd.Index) -> Float64[np.ndarray, " k"]:
    """Return the class balance in the order of the classes; uniform if it is None.

    Raises:
        TypeError: it is neither a dict nor a Series.
        ValueError: its classes differ, a value is not positive, or the sum is not 1.
    """
    if balance is None:
        return np.full(len(classes), 1 / len(classes))
    if not isinstance(balance, Mapping | pd.Series):
        raise TypeError(f"class_balance must be a dict or a Series by class, not {type(balance).__name__}")
    given = pd.Series(balance, dtype=np.float64)
    values = given.reindex(classes).to_numpy()
    if (
        len(given) != len(classes)
        or not (values > 0).all()
        or not math.isclose(values.sum(), 1, abs_tol=1e-6)
    ):
        raise ValueError(
            f"class_balance={dict(given)!r}: give every class of {list(classes[:10])} a number > 0; "
            "they must sum to 1"
        )
    return values
