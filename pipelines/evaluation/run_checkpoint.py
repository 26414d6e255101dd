"""The checkpoint of a run that is to be scored, registered or measured, and its recipe."""

from __future__ import annotations

from infra.errors import UserError
from infra.storage import open_store
from pipelines.checkpoint import Checkpoint, RunFolder, Warn
from pipelines.config.recipe import Recipe, build_recipe


def recipe_of(checkpoint: Checkpoint) -> Recipe:
    """Return the resolved recipe that a checkpoint was trained with, including its number of classes."""
    stored = dict(checkpoint.recipe)
    if "data.test_split" not in stored:  # saved before there was a validation split
        stored["data.test_split"] = stored.get("data.eval_split", "test")
    return build_recipe({}, stored, where=f"recipe of checkpoint {checkpoint.step}")


def open_run(uri: str) -> RunFolder:
    """Open the folder of a run. Raises UserError if there is no folder that can be read."""
    store = open_store(uri)
    store.check_access(write=False)
    return RunFolder(store)


def find_checkpoint(folder: RunFolder, step: int | None, warn: Warn) -> Checkpoint:
    """Return a run's best checkpoint, or the checkpoint of a step.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    checkpoint = folder.best(warn) if step is None else folder.load(step)
    if checkpoint is None:
        raise UserError(f"{folder.store.description} holds no checkpoint: give the folder of a run that has saved one")
    return checkpoint
