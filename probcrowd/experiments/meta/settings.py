"""Options of the meta-learning experiment, and the settings of the paper's method on a data set."""

from __future__ import annotations

from pathlib import Path

from probcrowd.experiments.harness import Options
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


class MetaOptions(Options):
    """dataset: its name, or a .npz file. encoder: kind of network. config, overrides: change settings.

    quick: short training and few tasks. kinds: of target tasks; none: all. splits: of the classes. only: a
    single split.
    """

    dataset: Path = Path("digits")
    encoder: str | None = None
    config: Path | None = None
    overrides: tuple[str, ...] = ()
    quick: bool = False
    kinds: tuple[str, ...] = ()
    splits: int = 5
    only: int | None = None

    @property
    def training(self) -> MetaTraining:
        """Settings of the paper's method: from `config`, from DATA.toml beside this file, or of digits.

        Raises:
            ValueError: a file without valid settings, or an invalid override.
        """
        own = Path(__file__).with_name(f"{self.dataset}.toml")
        changes = [f'data="{self.dataset.as_posix()}"', f'out="{self.out.as_posix()}"']
        changes += QUICK if self.quick else ()
        changes += [f'encoder.kind="{self.encoder}"'] if self.encoder else []
        path = self.config or (own if own.exists() else DEMO_SETTINGS)
        return read_settings(MetaTraining, path, [*changes, *self.overrides])
