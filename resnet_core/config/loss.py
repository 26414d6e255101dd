"""Section `loss` of a recipe: the weights of classes and of hard images in the training loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from resnet_core.config.check import require

ClassWeights = Literal["", "auto"] | dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWeightsConfig:
    """Weights of classes and of hard images in the training loss; the loss itself is `optim.loss`."""

    class_weights: ClassWeights = ""
    """Weights of the classes: auto = N / (K n) for a class with n of the N training images of K classes; a table of
    class names = those weights, and 1 for other classes; "" = none."""
    focal_gamma: float = 0.0
    """Exponent of the focal loss, which weighs an image by (1 - p)^gamma, with p the probability of its class (Lin et
    al. 2017); 0 = off."""

    def __post_init__(self) -> None:
        require(0 <= self.focal_gamma < math.inf, "loss.focal_gamma", "finite, at least 0", self.focal_gamma)
        if isinstance(self.class_weights, dict):
            require(bool(self.class_weights), "loss.class_weights", '"auto", "" or a table of weights', {})
            for name, weight in self.class_weights.items():
                require(0 < weight < math.inf, f"loss.class_weights.{name}", "positive and finite", weight)
        else:
            choices = '"auto", "" or a table of weights'
            require(self.class_weights in ("", "auto"), "loss.class_weights", choices, self.class_weights)
