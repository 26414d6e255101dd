"""State of a training run at one step, and its form on disk: flat maps of named tensors, no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resnet_core.optim import state_tensors
from resnet_core.optim.averaging import WeightAverage
from resnet_core.optim.scaling import LossScaler
from resnet_core.state_dict_errors import refuse

Tensors = dict[str, dict[str, Tensor]]


@dataclass(kw_only=True, slots=True)
class TrainState:
    """Everything that a run changes while it trains; `step` is the number of updates done."""

    model: nn.Module
    forward: nn.Module  # what a step calls: the model, or a wrapper around it such as DDP
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None = None
    scaler: LossScaler | None = None
    """Scaler of the loss, in fp16 only."""
    step: int = 0

    @property
    def scored_model(self) -> nn.Module:
        """Return the model to evaluate and to ship: the averaged weights if the run has them."""
        return self.average.model if self.average else self.model

    @property
    def synchronized(self) -> bool:
        """Return whether BatchNorm takes its statistics over all ranks: then all must make the same forward passes."""
        return any(isinstance(module, nn.SyncBatchNorm) for module in self.model.modules())

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def tensors(self) -> Tensors:
        """Return the live tensors by group and name.

        The groups are "model", "ema" if there is an average, "scaler" in fp16, and "optimizer". The optimizer's tensors
        have the names of their parameters, as in `momentum_buffer.layer1.0.conv1.weight`; before the first step they
        have the optimizer's initial values.
        """
        groups: Tensors = {"model": dict(self.model.state_dict())}
        if self.average:
            groups["ema"] = dict(self.average.model.state_dict())
        if self.scaler:
            groups["scaler"] = self.scaler.tensors()
        groups["optimizer"] = state_tensors(self.optimizer, self.model)
        return groups

    def snapshot(self) -> Tensors:
        """Return a contiguous copy of `tensors()` in CPU memory, which further steps do not change."""
        return self.frozen().to_host()

    def frozen(self) -> Frozen:
        """Copy `tensors()` on their device, in its queue: the host does not wait, and later steps do not change it."""
        copies = {
            group: {
                name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
            }
            for group, tensors in self.tensors().items()
        }
        copied = torch.cuda.Event() if self.device.type == "cuda" else None
        if copied:
            copied.record()
        return Frozen(tensors=copies, device=self.device, copied=copied)

    @torch.no_grad()
    def load_tensors(self, saved: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Replace the current values by `saved`, the result of `snapshot`; the caller sets `step`.

        Raises:
            ValueError: a tensor is missing, unexpected, or of another shape or dtype; then nothing has changed.
        """
        mine, theirs = _flat(self.tensors()), _flat(saved)
        _check_same_layout(mine, theirs)
        for name, tensor in mine.items():
            tensor.copy_(theirs[name])


@dataclass(frozen=True, kw_only=True, slots=True)
class Frozen:
    """A copy of a state on its device."""

    tensors: Tensors
    device: torch.device
    copied: torch.cuda.Event | None
    """Event that the device records when the copy is complete; None on a CPU."""

    def to_host(self) -> Tensors:
        """Return the tensors in CPU memory; any thread may call this, and a GPU keeps computing steps meanwhile."""
        if self.copied is None:
            return self.tensors
        with torch.cuda.device(self.device), torch.cuda.stream(torch.cuda.Stream()):
            stream = torch.cuda.current_stream()
            stream.wait_event(self.copied)
            fetched = {
                group: {name: _pinned(tensor) for name, tensor in tensors.items()}
                for group, tensors in self.tensors.items()
            }
            stream.synchronize()
        return fetched


def _pinned(tensor: Tensor) -> Tensor:
    """Start to copy a tensor into pinned memory; return the copy before it is complete."""
    if tensor.device.type == "cpu":  # such as an optimizer's count of steps
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


def _flat(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{group}.{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}


def _check_same_layout(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    faults = {
        "missing": mine.keys() - theirs.keys(),
        "unexpected": theirs.keys() - mine.keys(),
        "mismatched": {
            f"{name} ({_layout(theirs[name])}, not {_layout(mine[name])})"
            for name in mine.keys() & theirs.keys()
            if _layout(theirs[name]) != _layout(mine[name])
        },
    }
    refuse({kind: sorted(names) for kind, names in faults.items()}, shown=3)


def _layout(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
