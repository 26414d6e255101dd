"""Phases of a run in steps: what changes, and before which step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from resnet_core.config import CurriculumConfig, ModelConfig, ScheduleConfig
from resnet_core.config.variants import check_growth
from resnet_core.schedule import to_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Batches:
    """Sizes that convert epochs into steps."""

    samples_per_epoch: int
    size: int  # global batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """Image size and network from `first_step` (0-based) until the next phase."""

    first_step: int
    image_size: int  # of training images, pixels
    model: ModelConfig


def phases(
    curriculum: CurriculumConfig, schedule: ScheduleConfig, batches: Batches, *, image_size: int, model: ModelConfig
) -> tuple[Phase, ...]:
    """Return the phases in order, the first at step 0; an empty list means the run's `image_size` or `model`.

    Raises:
        ValueError: a phase is shorter than a step, or the networks do not grow into the run's `model`.
    """
    starts = [0, *(to_steps(end, schedule.unit, batches.samples_per_epoch, batches.size) for end in curriculum.until)]
    if len(set(starts)) < len(starts):
        raise ValueError(f"curriculum.until must leave each phase at least one step: got {curriculum.until!r}")
    sizes = curriculum.image_size or (image_size,) * len(starts)
    models = _networks(curriculum, model) or (model,) * len(starts)
    return tuple(
        Phase(first_step=start, image_size=size, model=network)
        for start, size, network in zip(starts, sizes, models, strict=True)
    )


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """Return the phase of the 0-based `step`."""
    return [phase for phase in phases if phase.first_step <= step][-1]


def _networks(curriculum: CurriculumConfig, model: ModelConfig) -> tuple[ModelConfig, ...]:
    if curriculum.model and curriculum.model[-1] != model.name:
        raise ValueError(f"curriculum.model must end with model.name = {model.name!r}: got {curriculum.model!r}")
    if curriculum.model and model.depths:
        raise ValueError(f"model.depths must be empty with curriculum.model, which sets the depths: got {model.depths}")
    networks = tuple(replace(model, name=name) for name in curriculum.model)
    for small, large in pairwise(network.variant for network in networks):
        if replace(small, depths=large.depths) != large:
            raise ValueError(f"curriculum.model must be networks that differ in depth only: got {curriculum.model!r}")
        check_growth(small, large.depths)
    return networks
