"""From a run's checkpoint to the classifier that is served: preprocessing and softmax inside.

Shapes: B images, H and W pixels, K classes.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from infra.errors import UserError
from infra.storage import open_store
from pipelines.checkpoint import Checkpoint, RunFolder, Warn
from pipelines.recipe import Recipe, build_recipe
from resnet_core.config import AugmentConfig
from resnet_core.models import build_model


class ServedClassifier(nn.Module):
    """uint8 B x H x W x 3 in, float32 probabilities B x K out, in evaluation mode."""

    center: Tensor
    scale: Tensor

    def __init__(self, model: nn.Module, augment: AugmentConfig) -> None:
        super().__init__()
        self.model = model
        # buffers, so that they are exported with the model and follow it to its device
        self.register_buffer("center", 255 * torch.tensor(augment.mean))
        self.register_buffer("scale", 255 * torch.tensor(augment.std))
        self.eval().requires_grad_(False)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """On the CPU, in fp32, with the averaged weights where there are any."""
        recipe = recipe_of(checkpoint)
        model = build_model(recipe.model)
        model.load_state_dict(checkpoint.weights)
        return cls(model, recipe.augment)

    def forward(self, images_BHWC: Tensor) -> Tensor:
        images_BCHW = ((images_BHWC.float() - self.center) / self.scale).permute(0, 3, 1, 2)
        probabilities_BK: Tensor = self.model(images_BCHW).softmax(dim=1)
        return probabilities_BK

    def predict(self, images_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The same from numpy to numpy, computed on the model's device."""
        with torch.inference_mode():
            images = torch.tensor(images_BHWC, device=self.center.device)
            probabilities_BK: npt.NDArray[np.float32] = self(images).cpu().numpy()
        return probabilities_BK


def recipe_of(checkpoint: Checkpoint) -> Recipe:
    """The resolved recipe that a checkpoint was trained by, its number of classes filled in."""
    return build_recipe({}, checkpoint.recipe, where=f"recipe of checkpoint {checkpoint.step}")


def open_run(uri: str) -> RunFolder:
    """The folder of a run. Raises UserError where there is none that can be read."""
    store = open_store(uri)
    store.check_access(write=False)
    return RunFolder(store)


def find_checkpoint(folder: RunFolder, step: int | None, warn: Warn) -> Checkpoint:
    """A run's best checkpoint, or the one of a step.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    checkpoint = folder.best(warn) if step is None else folder.load(step)
    if checkpoint is None:
        raise UserError(f"{folder.store.description} holds no checkpoint: give the folder of a run that has saved one")
    return checkpoint
