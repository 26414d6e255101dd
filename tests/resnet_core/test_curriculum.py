"""The curriculum: durations become steps once, and what does not fit is told with the key's name."""

from __future__ import annotations

import pytest

from resnet_core.config import CurriculumConfig, ModelConfig, ScheduleConfig
from resnet_core.curriculum import Batches, Phase, phase_at, phases

RESNET20, RESNET50, RESNET56 = (ModelConfig(name=name) for name in ("resnet20", "resnet50", "resnet56"))
IMAGENET = Batches(samples_per_epoch=1_281_167, size=1024)


def test_phases_begin_at_whole_steps() -> None:
    """FFCV's 88 epochs: 160 pixels until its ramp from 65 to 76 epochs crosses the middle, then 192."""
    curriculum = CurriculumConfig(until=(70.5,), image_size=(160, 192))
    found = phases(curriculum, ScheduleConfig(length=88), IMAGENET, image_size=192, model=RESNET50)
    assert found == (
        Phase(first_step=0, image_size=160, model=RESNET50),
        Phase(first_step=88_205, image_size=192, model=RESNET50),
    )


def test_steps_are_taken_as_they_are() -> None:
    curriculum = CurriculumConfig(until=(100, 250), model=("resnet20", "resnet32", "resnet56"))
    schedule = ScheduleConfig(unit="steps", length=400)
    found = phases(curriculum, schedule, IMAGENET, image_size=28, model=RESNET56)
    assert [(phase.first_step, phase.image_size, phase.model.name) for phase in found] == [
        (0, 28, "resnet20"),
        (100, 28, "resnet32"),
        (250, 28, "resnet56"),
    ]


def test_no_curriculum_is_one_phase() -> None:
    found = phases(CurriculumConfig(), ScheduleConfig(), IMAGENET, image_size=224, model=RESNET50)
    assert found == (Phase(first_step=0, image_size=224, model=RESNET50),)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"until": (5.0, 3.0), "image_size": (1, 2, 3)}, r"curriculum\.until must be positive and strictly increasing"),
        ({"until": (5.0,), "image_size": (128,)}, r"curriculum\.image_size must be empty or one for each of 2 phases"),
        ({"until": (5.0,), "model": ("a", "b", "c")}, r"curriculum\.model must be empty or one for each of 2 phases"),
        ({"until": (5.0,), "image_size": (0, 128)}, r"curriculum\.image_size must be positive"),
        ({"until": (5.0,)}, r"curriculum\.until must be empty unless curriculum\.image_size"),
    ],
)
def test_bad_lists(keys, message):
    with pytest.raises(ValueError, match=message):
        CurriculumConfig(**keys)


def test_a_phase_of_no_step_and_another_network_at_the_end() -> None:
    schedule, batch = ScheduleConfig(), Batches(samples_per_epoch=100, size=100)
    with pytest.raises(ValueError, match=r"curriculum\.until must leave each phase at least one step"):
        phases(
            CurriculumConfig(until=(0.5,), image_size=(1, 2)),
            schedule,
            batch,
            image_size=2,
            model=RESNET20,
        )
    with pytest.raises(ValueError, match=r"curriculum\.model must end with model\.name = 'resnet56'"):
        grown = CurriculumConfig(until=(1.0,), model=("resnet20", "resnet32"))
        phases(grown, schedule, batch, image_size=2, model=RESNET56)


@pytest.mark.parametrize(
    ("names", "model", "message"),
    [
        (
            ("resnet18", "resnet50"),
            {"name": "resnet50"},
            r"curriculum\.model must be networks that differ in d",
        ),
        (
            ("resnet56", "resnet20"),
            {"name": "resnet20"},
            r"none below the present \[9, 9, 9\]",
        ),
        (("plain20", "plain56"), {"name": "plain56"}, r"model\.shortcut leaves no block that starts as the identity"),
        (("resnet20", "resnet56"), {"name": "resnet56", "activation": "silu"}, r"model\.activation must be \"relu\""),
    ],
)
def test_networks_that_cannot_grow_are_refused_before_the_run(names, model, message) -> None:
    curriculum = CurriculumConfig(until=(1.0,), model=names)
    with pytest.raises(ValueError, match=message):
        phases(curriculum, ScheduleConfig(), IMAGENET, image_size=28, model=ModelConfig(**model))


def test_the_phase_of_a_step() -> None:
    curriculum = CurriculumConfig(until=(100, 250), image_size=(16, 20, 28))
    schedule = ScheduleConfig(unit="steps", length=400)
    found = phases(curriculum, schedule, IMAGENET, image_size=28, model=RESNET56)
    assert [phase_at(found, step).image_size for step in (0, 99, 100, 249, 250, 399)] == [16, 16, 20, 20, 28, 28]
