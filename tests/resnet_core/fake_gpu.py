"""A GPU that is none: fake `cuda` tensors have shapes and devices, and no values.

An operation on tensors of two devices fails; so does whatever makes a host wait for what a GPU has yet to compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from resnet_core.augment import batch, photometric

CUDA = torch.device("cuda", 0)
_aten = torch.ops.aten
# Results whose shape, or whose value on the host, the GPU has to tell.
_WAITS = {
    _aten._local_scalar_dense,
    _aten.item,
    _aten.is_nonzero,
    _aten.equal,
    _aten.nonzero,
    _aten.masked_select,
    _aten._unique2,
    _aten.unique_dim,
    _aten.bincount,
    _aten.repeat_interleave,
}
_INDEXED = {_aten.index, _aten.index_put, _aten.index_put_}
_COPIES = {_aten._to_copy, _aten.copy_, _aten.to}
# torch has no fake of it
_STEPS = {_aten._fused_sgd_}


class WaitsForTheGpu(AssertionError):
    """An operation on the step's path makes the host wait."""


class _Kernels(TorchDispatchMode):
    """Stand for the kernels that torch has no fake of."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in _STEPS:
            assert {each.device for group in args[:3] for each in group} == {CUDA}
            return None
        return func(*args, **(kwargs or {}))


class Watch(TorchDispatchMode):
    """Refuse what makes a host wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet, kwargs = func.overloadpacket, kwargs or {}
        if packet in _WAITS:
            raise WaitsForTheGpu(str(func))
        if packet in _INDEXED and any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1]):
            raise WaitsForTheGpu(f"{func} by a mask")
        result = func(*args, **kwargs)
        if packet in _COPIES:
            source = args[1] if packet is _aten.copy_ else args[0]
            if isinstance(result, Tensor) and result.device.type != source.device.type:
                raise WaitsForTheGpu(f"{func} from {source.device} to {result.device}")
        return result


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Within it all tensors are fake. Constants that are kept from step to step are forgotten before and after."""
    _forget()
    try:
        with FakeTensorMode(), _Kernels():
            yield
    finally:
        _forget()


def _forget() -> None:
    for cached in (batch._times_255, photometric._luma, photometric._principal_steps):
        cached.cache_clear()
