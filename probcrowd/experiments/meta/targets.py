"""Target tasks of the meta-learning experiment: by shots, annotators, and kind of annotators or labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from probcrowd.data.image_sets import label_me
from probcrowd.experiments.meta.labelme import LABELME, labelme_episodes
from probcrowd.runs.meta.configuration import MetaTraining
from probcrowd.runs.meta.sources import generator_of
from probcrowd.simulate.annotators import Mixture
from probcrowd.simulate.episodes import Episodes, EpisodeShape, EpisodeSource, draw_episodes

KINDS = ("spammers", "flippers", "class-spammers", "sparse", "imbalanced")
LABELS_PER_ITEM = 2.5  # of sparse tasks
_USUAL, _OTHERS = Mixture(0.1, 0.7, 0.2), 0.4


@dataclass(frozen=True)
class Target:
    """Target tasks of one kind and size. share: of spammers, or of the annotators that name the kind."""

    kind: str
    shots: int
    annotators: int
    share: float
    shape: EpisodeShape
    mixture: Mixture

    def usual(self, settings: MetaTraining) -> EpisodeShape:
        """The shape of validation tasks of this size: balanced, and labelled as in meta-training."""
        return settings.shape(self.shots, self.shape.annotators)

    def draw(self, settings: MetaTraining, source: EpisodeSource) -> tuple[EpisodeSource, Episodes]:
        """Draw the tasks, with the source of their inputs; "spammers": those of `evaluate.target_scores`."""
        if self.kind == LABELME:
            return labelme_episodes(settings, self.shots)
        purpose = "target" if self.kind == "spammers" else self.kind
        generator = generator_of(
            settings, f"{purpose}/{self.shots}/{self.annotators}/{self.share}", 0, source.items.device
        )
        return source, draw_episodes(source, self.shape, self.mixture, settings.target.tasks, generator)


def targets(settings: MetaTraining, kind: str) -> Iterator[Target]:
    """All target tasks of a kind.

    spammers        the shares of `settings.target`, one tenth experts, hammers otherwise, as in the paper
    flippers        four tenths label the next class with probability .1 to .5, one tenth are experts, hammers
                    otherwise
    class-spammers  four tenths guess on about half of the classes, one tenth are experts, hammers otherwise
    sparse          an item has 2.5 labels on average, of three annotators or more; a fifth are spammers
    imbalanced      half of the classes have two fifths of the items that balanced ones would have; a fifth
                    are spammers; not for one shot
    labelme         the annotators of LabelMe; settings are chosen on simulated annotators
    """
    if kind == LABELME:
        for shots in settings.target.shots:
            simulated = settings.shape(shots, max(settings.episode.annotators))
            yield Target(kind, shots, label_me().labels.shape[1], 0.0, simulated, _USUAL)
        return
    for shots, annotators in product(settings.target.shots, settings.target.annotators):
        shape = settings.shape(shots, annotators)
        # One annotator labels every item of sparse tasks, each other one with this probability
        observed = min(1.0, (LABELS_PER_ITEM - 1) / max(annotators - 1, 1))
        changes = {"sparse": {"observed": observed}, "imbalanced": {"imbalanced": True}}.get(kind, {})
        mixtures = {
            "spammers": dict(zip(settings.target.spammers, settings.target.mixtures, strict=True)),
            "flippers": {_OTHERS: Mixture(0.1, 0.5, 0.0, flipper=_OTHERS)},
            "class-spammers": {_OTHERS: Mixture(0.1, 0.5, 0.0, class_spammer=_OTHERS)},
            "sparse": {_USUAL.spammer: _USUAL},
            "imbalanced": {_USUAL.spammer: _USUAL} if shots > 1 else {},
        }
        for share, mixture in mixtures[kind].items():
            yield Target(kind, shots, annotators, share, replace(shape, **changes), mixture)
