"""What a training run is made of at one step, and its form on disk: flat maps of named tensors, no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resnet_core.faults import refuse
from resnet_core.optim import state_tensors
from resnet_core.optim.averaging import WeightAverage
from resnet_core.optim.scaling import LossScaler

Tensors = dict[str, dict[str, Tensor]]


@dataclass(kw_only=True, slots=True)
class TrainState:
    """The only mutable thing of a run. `step` is its clock: the number of updates done."""

    model: nn.Module
    forward: nn.Module  # what a step calls: the model, or a wrapper around it such as DDP
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None = None
    scaler: LossScaler | None = None
    """Of a run in fp16."""
    step: int = 0

    @property
    def scored_model(self) -> nn.Module:
        """The model to evaluate and to ship: the averaged weights where there are any."""
        return self.average.model if self.average else self.model

    @property
    def synchronized(self) -> bool:
        """Whether BatchNorm takes its statistics over all ranks, which then must all make the same forward passes."""
        return any(isinstance(module, nn.SyncBatchNorm) for module in self.model.modules())

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def tensors(self) -> Tensors:
        """The live tensors by group and name: "model", "ema" if there is an average, "scaler" in fp16, "optimizer".

        The optimizer's are named after its parameters, `momentum_buffer.layer1.0.conv1.weight`; before the first step
        they are what it would start with.
        """
        groups: Tensors = {"model": dict(self.model.state_dict())}
        if self.average:
            groups["ema"] = dict(self.average.model.state_dict())
        if self.scaler:
            groups["scaler"] = self.scaler.tensors()
        groups["optimizer"] = state_tensors(self.optimizer, self.model)
        return groups

    def snapshot(self) -> Tensors:
        """Return a copy of `tensors()` in CPU memory, contiguous: further steps do not change it."""
        return self.frozen().to_host()

    def frozen(self) -> Frozen:
        """Copy `tensors()` on their device, in its queue: the host does not wait, nor do further steps change it."""
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
        """Put `saved`, as `snapshot` gives it, in the place of the present values; `step` is the caller's to set.

        ValueError, before anything is changed, if a tensor is missing, unexpected, or of another shape or dtype.
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
    """What the device reaches when the copy is whole; None on a CPU."""

    def to_host(self) -> Tensors:
        """Return it in CPU memory. It is fetched beside the steps that a GPU computes, from any thread."""
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
    """A copy in pinned memory, under way."""
    if tensor.device.type == "cpu":  # a count of steps
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


def _flat(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{group}.{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}


def _check_same_layout(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    faults = {
        "missing": mine.keys() - theirs.keys(),
        "unexpected": theirs.keys() - mine.keys(),
        "misshapen": {
            f"{name} ({_layout(theirs[name])}, not {_layout(mine[name])})"
            for name in mine.keys() & theirs.keys()
            if _layout(theirs[name]) != _layout(mine[name])
        },
    }
    refuse({kind: sorted(names) for kind, names in faults.items()}, shown=3)


def _layout(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
