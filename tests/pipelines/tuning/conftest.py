"""A small space over the coloured pictures, as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.tuning.space import load_space
from pipelines.tuning.trial_recipes import StudyPlan

RECIPE = """
[model]
name = "resnet20"
depths = [1, 1, 1]
num_classes = 3
[data]
uri = "{data}"
image_size = 16
train_crop = "center"
eval_resize = 16
ordered = true
[optim]
global_batch_size = 6
lr_per_256 = 1.0
[schedule]
unit = "steps"
length = 20
[run]
home = "{home}"
num_workers = {workers}
log_every_steps = 5
"""
SPACE = """
title = "Colours"
recipe = "{recipe}"
[space]
"optim.lr_per_256" = {{log_uniform = [0.1, 4.0], points = 3}}
"model.depths" = {{choice = [[1, 1, 1], [2, 1, 1]]}}
[budget]
trials = 4
reports = 4
{more}
"""


class Spaces:
    """Writes spaces into a folder."""

    def __init__(self, folder: Path, data: str, workers: int = 1) -> None:
        self.folder = folder
        self.recipe = folder / "study-recipe.toml"  # `folder` may have a recipe of its own
        self.recipe.write_text(RECIPE.format(data=data, home=folder / "runs", workers=workers))

    def write(self, more: str = "", **changes: str) -> Path:
        """The space, with `more` at its end and parts of its text changed: old="new" where old has _ for a blank."""
        text = SPACE.format(recipe=self.recipe, more=more)
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        path = self.folder / "study.toml"
        path.write_text(text)
        return path

    def plan(self, more: str = "", **changes: str) -> StudyPlan:
        plan = StudyPlan(load_space(str(self.write(more, **changes))), {})
        plan.check()
        return plan


@pytest.fixture
def spaces(tmp_path: Path) -> Spaces:
    """Without data: for what trains nothing."""
    return Spaces(tmp_path, data="nowhere")
