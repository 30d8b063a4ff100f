"""LabelMe as target of meta-learning: all eight classes and the real labels of its 59 annotators.

The paper's source tasks, Mini-ImageNet, share an input space with LabelMe's images; the data folder has
features of a VGG-16 instead, of LabelMe alone. So source classes are clusters (k-means) of features of images
that no task shows: `probcrowd.data.images.label_me`. No true label takes part in meta-training or in the
choice of settings; support items of a task are as many per true class as in the paper. Sources, features and
networks differ from the paper's, so its numbers are not comparable.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from probcrowd.data.image_sets import label_me
from probcrowd.data.images import ClassItems
from probcrowd.runs.meta.configuration import MetaTraining
from probcrowd.runs.meta.sources import generator_of
from probcrowd.simulate.episodes import Episodes, EpisodeSource, draw_items

LABELME = "labelme"


def labelme_episodes(settings: MetaTraining, shots: int) -> tuple[EpisodeSource, Episodes]:
    """Draw target tasks with `shots` annotated images per true class, and queries without labels.

    The annotators' confusion matrices are not known: nan.
    """
    images = label_me()
    truth, ways = torch.from_numpy(images.truth), int(images.truth.max()) + 1
    features, given = torch.from_numpy(images.features), torch.from_numpy(images.labels)
    classes, names = torch.arange(ways), tuple(map(str, range(ways)))
    generator, drawn = generator_of(settings, f"labelme/{shots}"), []
    for part, size in (("support", shots), ("query", settings.episode.queries)):
        rows = torch.from_numpy(np.flatnonzero(images.part == part))
        source = EpisodeSource.of(ClassItems(features[rows], truth[rows], classes, classes, names))
        shape = replace(settings.shape(size, 1), ways=ways, queries=0)
        drawn.append(rows[draw_items(source, shape, settings.target.tasks, generator).flatten(1)])
    support, query = drawn
    unknown = torch.full((len(support), given.shape[1], ways, ways), torch.nan)
    parts = (support, truth[support], given[support], query, truth[query], unknown)
    everything = EpisodeSource.of(ClassItems(features, truth, classes, classes, names), settings.device)
    return everything, Episodes(*(part.to(settings.device) for part in parts))
