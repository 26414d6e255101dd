"""A scaled loss: fp16 has no gradients below 6e-8, and a scale lifts them above it."""

from __future__ import annotations

import torch
from torch import Tensor

_GONE = "torch.amp.GradScaler keeps its scale elsewhere in this version of torch"


class LossScaler(torch.amp.GradScaler):
    """torch's scaler, with its state as named tensors.

    A step whose gradients overflow changes no weight, and halves the scale; 2,000 steps without one double it. Torch's
    own optimizers skip such a step on the GPU. For the others (LARS, LAMB, `momentum_form = "caffe"`) the host asks,
    which waits for the GPU once a step.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device.type)
        self._lazy_init_scale_growth_tracker(device)  # else at the first step, after a checkpoint has been loaded

    def tensors(self) -> dict[str, Tensor]:
        """Return the live state by name."""
        scale, growth = self._scale, self._growth_tracker
        assert scale is not None and growth is not None, _GONE
        return {"scale": scale, "growth_tracker": growth}
