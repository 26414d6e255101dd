"""A GPU that a worker has filled by itself: one line with the keys to change, at the first time."""

from __future__ import annotations

import torch

from infra.errors import UserError

_OWN_SHARE = 0.5  # of the GPU's memory


def memory_error(error: Exception, device: torch.device, images: int) -> UserError | None:
    """Return the line for a worker that passed `images` at once and filled its GPU; None for any other error.

    Where others hold most of the memory, such as a worker that was killed a moment ago, another start may find it free.
    """
    if not isinstance(error, torch.OutOfMemoryError) or device.type != "cuda":
        return None
    total = torch.cuda.get_device_properties(device).total_memory
    if torch.cuda.max_memory_reserved(device) < _OWN_SHARE * total:
        return None
    name = torch.cuda.get_device_name(device)
    return UserError(
        f"out of memory on {device} ({name}, {total / 2**30:.0f} GiB) with {images} images in a forward pass: set "
        f"compute.microbatch_size={max(1, images // 2)} or lower, or model.activation_checkpointing=true"
    )
