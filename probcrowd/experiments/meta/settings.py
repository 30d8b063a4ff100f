"""Settings of the meta-learning experiment: those of the paper on a data set, in `DATA.toml` here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from probcrowd.runs.meta.configuration import MetaTraining
from probcrowd.runs.meta.demo import DEMO_SETTINGS
from probcrowd.storage.settings import read_settings

QUICK = (
    "training.steps=100",
    "training.validate_every=50",
    "target.tasks=4",
    "target.spammers=[0.2, 0.4]",
    "target.annotators=[3, 5]",
)


def meta_settings(
    data: Path,
    out: Path,
    *,
    encoder: str | None = None,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    quick: bool = False,
) -> MetaTraining:
    """Read the settings for a data set: from `config`, from its own file, or those of digits if it has none.

    Raises:
        ValueError: a file without valid settings, or an invalid override.
    """
    own = Path(__file__).with_name(f"{data}.toml")
    path = config or (own if own.exists() else DEMO_SETTINGS)
    changes = [f'data="{data.as_posix()}"', f'out="{out.as_posix()}"', *(QUICK if quick else ())]
    changes += [f'encoder.kind="{encoder}"'] if encoder else []
    return read_settings(MetaTraining, path, [*changes, *overrides])
