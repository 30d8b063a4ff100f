"""Parameters of `LIA`: checks, and the prior and the schedule that the defaults of an objective amount to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from probcrowd.data.validation import check_number, check_option, check_whole
from probcrowd.inference.lia.em import Schedule
from probcrowd.inference.lia.held_out_prior import best_prior
from probcrowd.inference.lia.objectives import OBJECTIVES
from probcrowd.models.lia.prior import LIAPrior

HELD_OUT = "held-out"
PUBLISHED = ("as_written", "as_coded")  # objectives whose defaults are the paper's
_PAPER = LIAPrior(hidden=(16,) * 4, annotator_embedding=16)


def check(lia: Any) -> None:
    """Raise a ValueError for parameters that are out of range or do not fit each other."""
    check_option("objective", lia.objective, OBJECTIVES)
    if not (lia.prior in (None, HELD_OUT) or isinstance(lia.prior, LIAPrior)):
        raise ValueError(f"prior={lia.prior!r}: give a LIAPrior, {HELD_OUT!r} or None")
    if lia.prior == HELD_OUT and lia.objective in PUBLISHED:
        raise ValueError(f"prior={HELD_OUT!r}: the objective {lia.objective!r} has no prior to choose")
    check_whole("rounds", lia.rounds)
    check_whole("steps", lia.steps, others=(None,))
    check_whole("last_steps", lia.last_steps, 0, (None,))
    check_whole("batch", lia.batch, others=(None, "all"))
    check_whole("random_state", lia.random_state, 0)
    check_number("learning_rate", lia.learning_rate, above=0)


def resolve_prior(lia: Any, spreads: pd.DataFrame | None = None) -> LIAPrior:
    """The prior given, the one selected on held-out labels (`spreads`), or that of the objective."""
    if isinstance(lia.prior, LIAPrior):
        return lia.prior
    if spreads is not None:
        return best_prior(LIAPrior(), spreads)
    if lia.objective not in PUBLISHED:
        return LIAPrior()
    return _PAPER if lia.objective == "as_written" else replace(_PAPER, difficulty_hidden=())


def resolve_schedule(lia: Any) -> Schedule:
    """The schedule of steps, with the defaults of the objective."""
    published = lia.objective in PUBLISHED
    steps, last_steps, batch = (1000, 1000, 1024) if published else (25, 500, "all")
    batch = batch if lia.batch is None else lia.batch
    return Schedule(
        lia.rounds,
        steps if lia.steps is None else lia.steps,
        last_steps if lia.last_steps is None else lia.last_steps,
        None if batch == "all" else int(batch),
        lia.learning_rate,
        lia.tolerance,
    )
