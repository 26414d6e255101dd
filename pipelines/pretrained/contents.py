"""Tensors in a file of weights, safetensors or a PyTorch file, without running any code that the file may hold."""

from __future__ import annotations

import io
import json
import re
from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from infra.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

NOTE = "resnet_ray"  # key of our own metadata in a safetensors file
_WRAPPERS = ("state_dict", "model", "model_state", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.", "model.")  # of DistributedDataParallel, torch.compile and Lightning
_ZIP, _PROTOCOLS = b"PK\x03\x04", tuple(bytes([0x80, version]) for version in range(2, 6))
_CODE = re.compile(
    r"Unsupported (?:global|class|operand|instruction)|GLOBAL ([\w.]+)|Can only build|REDUCE|weights_only"
)
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_NOT_WEIGHTS = {  # first bytes of other kinds of files
    b"version https://git-lfs": "is a pointer of Git LFS, not the file: run `git lfs pull`, or download the file",
    b"<": "is a web page, and not the file: give the address of the file itself",
    b"{": "is a JSON file, and not the file of weights",
}


def read_tensors(data: bytes, where: str) -> dict[str, Tensor]:
    """Return the tensors of a file by name: those of a state_dict, without wrappers and common prefixes.

    Args:
        data: content of a safetensors file, or of a file that `torch.save` wrote.
        where: name of the file, for errors.

    Raises:
        UserError: the file is damaged, is of another kind, holds code, or holds no state_dict.
    """
    if data.startswith((_ZIP, *_PROTOCOLS)):
        return _unprefixed(_state_dict(_unpickled(data, where), where))
    import safetensors.torch

    try:
        return _unprefixed(safetensors.torch.load(data))
    except safetensors.SafetensorError as error:
        begin = data[:64].lstrip()
        kind = next((text for first, text in _NOT_WEIGHTS.items() if begin.startswith(first)), "")
        expected = f"is not a safetensors file or a PyTorch file: {error}"
        raise UserError(f"{where} {kind or expected}") from error


def written(tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> bytes:
    """Return a safetensors file of the tensors, with `note` in its metadata."""
    from safetensors.torch import save

    owned = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    return save(owned, metadata={NOTE: json.dumps(dict(note), sort_keys=True)})


def read_note(data: bytes) -> dict[str, Any] | None:
    """Return the `note` of a file that `written` made; None if another program made the file."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        note: dict[str, Any] = json.loads(header["__metadata__"][NOTE])
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
    return note


def _unpickled(data: bytes, where: str) -> Any:
    """Read a PyTorch file with torch's restricted unpickler, which builds tensors and containers only."""
    import torch

    try:
        # torchvision's own training script saves its command line in its checkpoints, as a Namespace
        with torch.serialization.safe_globals([Namespace]):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever a damaged file leads to
        text = str(error)
        if _CODE.search(text) and "PytorchStreamReader" not in text:
            named = _GLOBAL.search(text)
            what = f" ({named[1]})" if named else ""
            raise UserError(
                f"{where} holds Python code{what}, which is not run: save the network's state_dict alone, or take a "
                "safetensors file"
            ) from error
        raise UserError(f"{where} is damaged, or is not a PyTorch file: download or copy it again") from error


def _state_dict(content: Any, where: str) -> dict[str, Tensor]:
    import torch

    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{where} holds no state_dict, but {type(content).__name__}")
    others = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise UserError(f"{where} holds no state_dict: {', '.join(others[:5])} are not tensors")
    return {str(name): tensor for name, tensor in content.items()}


def _unprefixed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for _ in _PREFIXES:
        for prefix in _PREFIXES:
            if tensors and all(name.startswith(prefix) for name in tensors):
                tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
