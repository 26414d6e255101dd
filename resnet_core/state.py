"""What a training run is made of at one step, and its form on disk: flat maps of named tensors, no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resnet_core.faults import refuse
from resnet_core.optim import state_tensors
from resnet_core.optim.averaging import WeightAverage

Tensors = dict[str, dict[str, Tensor]]


@dataclass(kw_only=True, slots=True)
class TrainState:
    """The only mutable thing of a run. `step` is its clock: the number of updates done."""

    model: nn.Module
    forward: nn.Module  # what a step calls: the model, or a wrapper around it such as DDP
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None = None
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
        """The live tensors by group and name: "model", "ema" if there is an average, "optimizer".

        The optimizer's are named after its parameters, `momentum_buffer.layer1.0.conv1.weight`; before the first step
        they are what it would start with.
        """
        groups: Tensors = {"model": dict(self.model.state_dict())}
        if self.average:
            groups["ema"] = dict(self.average.model.state_dict())
        groups["optimizer"] = state_tensors(self.optimizer, self.model)
        return groups

    def snapshot(self) -> Tensors:
        """A copy of `tensors()` in CPU memory, contiguous: further steps do not change it."""
        return {
            group: {
                name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
                for name, tensor in tensors.items()
            }
            for group, tensors in self.tensors().items()
        }

    @torch.no_grad()
    def load_tensors(self, saved: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Put `saved`, as `snapshot` gives it, in the place of the present values; `step` is the caller's to set.

        ValueError, before anything is changed, if a tensor is missing, unexpected, or of another shape or dtype.
        """
        mine, theirs = _flat(self.tensors()), _flat(saved)
        _check_same_layout(mine, theirs)
        for name, tensor in mine.items():
            tensor.copy_(theirs[name])


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
