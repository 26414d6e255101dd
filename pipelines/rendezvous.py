"""Where torch's ranks meet: a store that listens on the address of its node, not on every network of it.

Ray Train's own backend lets rank 0 open torch's `TCPStore` by address and port, which then listens at `*`. Ours hands
the store a socket that is bound already (`master_listen_fd` of `torch.distributed.TCPStore`): on loopback where Ray is
on loopback.

The process group serves CPU tensors by gloo, also where workers have GPUs: what ranks decide together must not wait for
a GPU's queue. It is not bound to a device (`device_id`): torch would then connect NCCL here, where Ray Train ends the
run at an error, and not at the first collective, where a worker that died is started again.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

import ray
import torch
import torch.distributed as dist
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig, get_device
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not re-exported in so many words

from infra.errors import UserError
from infra.interface import interface_of
from pipelines.mailbox import Event

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ray.actor import ActorHandle

_NODES_NAMED = 4
_stores: list[TCPStore] = []  # rank 0 serves for as long as its process lives


def worker_device(*, gpu: bool) -> torch.device:
    """Return the device of this Train worker: the GPU that Ray gave it, or the CPU.

    Ray decides which. Its accelerator callback shows each worker all GPUs that the group has on the node
    (CUDA_VISIBLE_DEVICES), and its `TorchConfig` makes the worker's own the current device of the training thread,
    before the training function begins. A thread that a worker starts must do that for itself.

    Raises:
        UserError: torch does not see the GPU, or cannot compute on it.
    """
    if not gpu:
        return torch.device("cpu")
    device = get_device()
    remedy = "correct the driver or the installed torch of that node, or set run.use_gpu=false"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type != "cuda" or device.index >= count:
        what = f"the worker was given {device}" if device.type == "cuda" else "run.use_gpu is on"
        raise UserError(f"{what}, and torch sees {count or 'no'} GPU(s) on {ray.util.get_node_ip_address()}: {remedy}")
    _probe(device, remedy)
    return device


def _probe(device: torch.device, remedy: str) -> None:
    try:
        torch.zeros(1, device=device).add_(1)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # a GPU that is older than any this torch has kernels for
        name, reason = torch.cuda.get_device_name(device), str(error).partition("\n")[0]
        raise UserError(f"torch cannot compute on {device} ({name}): {reason}: {remedy}") from error


def backend_for(*, gpus: bool) -> str:
    """Return torch's map from devices to backends, for workers that see the GPUs which they hold, or hold none.

    It is named in full: torch's own choice follows the GPUs that are visible, which Ray also shows to workers that hold
    none, and its maps for NCCL alone and for "no backend" leave CPU tensors out.
    """
    return "cpu:gloo,cuda:nccl" if gpus else "gloo"


def serve_store(host: str) -> int:
    """Serve a store at that address of this machine, and tell its port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as bound:
        port: int = bound.getsockname()[1]
        file = bound.detach()  # the store's from here on
    _stores.append(TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=file))
    return port


def _serve() -> tuple[str, int]:
    """By the rank 0: (host, port) of the store."""
    host = ray.util.get_node_ip_address()
    return host, serve_store(host)


def _join(backend: str, host: str, port: int, place: int, size: int, limit: timedelta) -> None:
    # by itself gloo takes the interface of the host's name, which may be that of 127.0.1.1, or open to a network
    if interface := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit)
    dist.init_process_group(backend, store=store, rank=place, world_size=size, timeout=limit)


def _given() -> tuple[str, str, bool]:
    """By each worker that holds a GPU: (host, device that Ray gave it, whether torch sees GPUs)."""
    return ray.util.get_node_ip_address(), str(get_device()), torch.cuda.is_available()


def devices_line(given: Iterable[tuple[str, str]]) -> str:
    """Return a line with the GPUs of each host: "workers on 10.0.0.4: cuda:0, cuda:1"."""
    devices: dict[str, list[str]] = {}
    for host, device in given:
        devices.setdefault(host, []).append(device)
    named = [f"{host}: {', '.join(found)}" for host, found in islice(devices.items(), _NODES_NAMED)]
    more = len(devices) - len(named)
    return f"workers on {'; '.join(named)}{f' and {more} more node(s)' if more else ''}"


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, NodeAddress)
        sees_gpus = False
        if worker_group.get_resources_per_worker().get("GPU", 0) > 0:
            given = worker_group.execute(_given)
            sees_gpus = all(seen for _, _, seen in given)  # else `worker_device` ends the run with a reason
            if backend_config.mailbox is not None:
                text = devices_line((host, device) for host, device, _ in given)
                backend_config.mailbox.put.remote(Event(text=text))
        host, port = worker_group.execute_single(0, _serve)
        worker_group.execute(_set_torch_distributed_env_vars)
        backend, limit, size = (
            backend_for(gpus=sees_gpus),
            timedelta(seconds=backend_config.timeout_s),
            len(worker_group),
        )
        arguments = [(backend, host, port, rank, size, limit) for rank in range(size)]
        ray.get([worker_group.execute_single_async(rank, _join, *each) for rank, each in enumerate(arguments)])


@dataclass
class NodeAddress(TorchConfig):
    """Ray Train's process group, met at the node's address: gloo, with NCCL beside it where workers have GPUs."""

    mailbox: ActorHandle[Any] | None = field(default=None, repr=False)
    """Actor that is told which GPU each worker was given."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What sets the group up."""
        return _Backend
