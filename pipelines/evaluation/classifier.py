"""Build the classifier that is served from a run's checkpoint, with preprocessing and softmax inside.

Shapes: B images, H and W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipelines.checkpoint import Checkpoint
from pipelines.config.recipe import Recipe
from pipelines.evaluation.run_checkpoint import recipe_of
from resnet_core.augment import at_size, center_of
from resnet_core.config import AugmentConfig, ModelConfig
from resnet_core.config.variants import VARIANTS
from resnet_core.models import build_model, depths_of


class ServedClassifier(nn.Module):
    """Classifier in evaluation mode: images uint8 B x H x W x 3 to probabilities float32 B x K."""

    center: Tensor
    scale: Tensor

    def __init__(
        self,
        model: nn.Module,
        augment: AugmentConfig,
        mean_image_HWC: Tensor | None = None,
        *,
        multi_label: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.multi_label = model, multi_label
        # buffers are exported with the model and move with it to its device
        self.register_buffer("center", 255 * torch.as_tensor(center_of(augment, mean_image_HWC)))
        self.register_buffer("scale", 255 * torch.tensor(augment.std))
        self.eval().requires_grad_(False)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Build it on the CPU in fp32, with the averaged weights if the checkpoint has them."""
        recipe = recipe_of(checkpoint)
        weights = checkpoint.weights
        model = build_model(_network_of(weights, recipe))
        model.load_state_dict(weights)
        mean_image = checkpoint.mean_image
        mean = None if mean_image is None else torch.from_numpy(mean_image)
        return cls(model, recipe.augment, mean, multi_label=recipe.model.multi_label)

    def forward(self, images_BHWC: Tensor) -> Tensor:
        center = self.center if self.center.ndim == 1 else at_size(self.center, *images_BHWC.shape[1:3])
        images_BCHW = ((images_BHWC.float() - center) / self.scale).permute(0, 3, 1, 2)
        logits_BK: Tensor = self.model(images_BCHW)
        probabilities_BK = logits_BK.sigmoid() if self.multi_label else logits_BK.softmax(dim=1)
        return probabilities_BK

    def predict(self, images_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the probabilities float32 B x K of images uint8 B x H x W x 3, computed on the model's device."""
        with torch.inference_mode():
            images = torch.tensor(images_BHWC, device=self.center.device)
            probabilities_BK: npt.NDArray[np.float32] = self(images).cpu().numpy()
        return probabilities_BK


def _network_of(weights: Mapping[str, Tensor], recipe: Recipe) -> ModelConfig:
    """Return the network that the weights fit: a network that still grows is not yet as deep as the recipe's."""
    depths = depths_of(weights)
    names = [name for name in recipe.curriculum.model if VARIANTS[name].depths == depths]
    return replace(recipe.model, name=names[0]) if names else recipe.model
