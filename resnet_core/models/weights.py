"""Conversion of weights from and to other libraries, as flat maps of names to tensors; the caller reads files.

Our names are torchvision's where torchvision has the layer. timm's `resnet` has other names for attention only, its
`resnetv2` (pre-activation) for every layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from resnet_core.state_dict_errors import refuse

_HEAD = "fc."
_SHOWN = 5  # names per kind of fault
_TORCHVISION = re.compile(r"(conv1|bn1|fc|layer[1-4]\.\d+\.((conv|bn)[1-3]|downsample\.[01]))\.\w+")

# module names, ours to timm's resnetv2; in addition, timm's stages.0.blocks.0 is our layer1.0
_RESNETV2 = {
    "conv1": "stem.conv",
    "conv1.0": "stem.conv1",
    "conv1.1": "stem.norm1",
    "conv1.3": "stem.conv2",
    "conv1.4": "stem.norm2",
    "conv1.6": "stem.conv3",
    "fc": "head.fc",
}
_FROM_RESNETV2 = {theirs: ours for ours, theirs in _RESNETV2.items()}


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], *, new_head: bool = False) -> None:
    """Copy `tensors`, which have our names, into the model, cast to its dtypes.

    Args:
        new_head: keep the model's last layer and ignore the one in `tensors`: for other classes.

    Raises:
        ValueError: tensors are missing, unexpected or of another shape; then nothing has changed. The norms' counts of
            batches may be missing, because nothing is computed from them.
    """
    mine, theirs = (
        {name: tensor for name, tensor in each.items() if not (new_head and name.startswith(_HEAD))}
        for each in (model.state_dict(), tensors)
    )
    faults = {
        "missing": [name for name in mine if name not in theirs and not name.endswith("num_batches_tracked")],
        "unexpected": [name for name in theirs if name not in mine],
        "mismatched": [
            f"{name} ({list(theirs[name].shape)}, not {list(mine[name].shape)})"
            for name in mine
            if name in theirs and theirs[name].shape != mine[name].shape
        ],
    }
    refuse(faults, shown=_SHOWN)
    with torch.no_grad():
        for name, tensor in theirs.items():
            mine[name].copy_(tensor)


def to_torchvision(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert our names to torchvision's.

    Raises:
        ValueError: torchvision's ResNet does not have some of the tensors.
    """
    refuse({"non-torchvision": [name for name in tensors if not _TORCHVISION.fullmatch(name)]}, shown=_SHOWN)
    return dict(tensors)


def from_torchvision(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert torchvision's names to ours.

    Raises:
        ValueError: torchvision's ResNet does not have some of the tensors.
    """
    return to_torchvision(tensors)


def to_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert our names to timm's: those of `resnetv2` for a pre-activation network, otherwise those of `resnet`."""
    if "norm.weight" not in tensors:
        return {
            name.replace(".attention.spatial.", ".se.spatial.conv.").replace(".attention.", ".se."): tensor
            for name, tensor in tensors.items()
        }
    renamed = {_to_resnetv2(name): tensor for name, tensor in tensors.items()}
    return {name: tensor[..., None, None] if name == "head.fc.weight" else tensor for name, tensor in renamed.items()}


def from_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the names of timm's `resnet` or `resnetv2` to ours; other names do not change."""
    if not any(name.startswith("stages.") for name in tensors):
        return {
            name.replace(".se.spatial.conv.", ".attention.spatial.").replace(".se.", ".attention."): tensor
            for name, tensor in tensors.items()
        }
    renamed = {_from_resnetv2(name): tensor for name, tensor in tensors.items()}
    return {name: tensor.flatten(1) if name == "fc.weight" else tensor for name, tensor in renamed.items()}


def _to_resnetv2(name: str) -> str:
    if block := re.fullmatch(r"layer(\d+)\.(\d+)\.(.+)", name):
        stage, index, rest = block.groups()
        return f"stages.{int(stage) - 1}.blocks.{index}.{re.sub('^bn', 'norm', rest)}"
    module, _, role = name.rpartition(".")
    return f"{_RESNETV2.get(module, module)}.{role}"


def _from_resnetv2(name: str) -> str:
    if block := re.fullmatch(r"stages\.(\d+)\.blocks\.(\d+)\.(.+)", name):
        stage, index, rest = block.groups()
        return f"layer{int(stage) + 1}.{index}.{re.sub('^norm', 'bn', rest)}"
    module, _, role = name.rpartition(".")
    return f"{_FROM_RESNETV2.get(module, module)}.{role}"
