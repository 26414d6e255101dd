"""Scaled loss: fp16 has no numbers below 6e-8, so a scale lifts small gradients above it."""

from __future__ import annotations

import torch
from torch import Tensor

_GONE = "torch.amp.GradScaler of this version of torch stores its scale elsewhere: LossScaler.tensors must be adapted"


class LossScaler(torch.amp.GradScaler):
    """Torch's scaler, with its state as named tensors.

    A step whose gradients overflow changes no weight and halves the scale; 2,000 steps without overflow double it.
    Torch's own optimizers skip such a step on the GPU. For the others (LARS, LAMB, `momentum_form = "caffe"`) the host
    must check, so it waits for the GPU once per step.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device.type)
        # otherwise torch creates the scale at the first step, after a checkpoint was loaded
        self._lazy_init_scale_growth_tracker(device)

    def tensors(self) -> dict[str, Tensor]:
        """Return the live state by name."""
        scale, growth = self._scale, self._growth_tracker
        assert scale is not None and growth is not None, _GONE
        return {"scale": scale, "growth_tracker": growth}
