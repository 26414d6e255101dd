"""What changes in the middle of a run: the recipe's section `curriculum`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from resnet_core.config.check import require
from resnet_core.config.variants import ModelName


@dataclass(frozen=True, kw_only=True, slots=True)
class CurriculumConfig:
    """Phases of a run, each with its image size and its depth; a list that is empty leaves that alone."""

    until: tuple[float, ...] = ()
    """End of each phase but the last, in schedule.unit."""
    image_size: tuple[int, ...] = ()
    """Side of the training images in each phase, pixels; evaluation stays at data.image_size."""
    model: tuple[ModelName, ...] = ()
    """Network of each phase, ever deeper and with model.name at the end; blocks that are new begin as the identity."""

    def __post_init__(self) -> None:
        phases = len(self.until) + 1
        rises = all(low < high for low, high in pairwise((0.0, *self.until, math.inf)))
        require(rises, "curriculum.until", "positive and strictly increasing", self.until)
        for name in ("image_size", "model"):
            given = getattr(self, name)
            require(len(given) in (0, phases), f"curriculum.{name}", f"empty or one for each of {phases} phases", given)
        require(all(size >= 1 for size in self.image_size), "curriculum.image_size", "positive", self.image_size)
        several = bool(self.image_size or self.model)
        require(several or not self.until, "curriculum.until", "empty where nothing changes", self.until)
