"""Process group of torch's ranks, whose store listens only on the address of its node.

With Ray Train's own backend, rank 0 opens torch's `TCPStore` by address and port, and the store listens on all
interfaces. Our backend gives the store a bound socket (`master_listen_fd` of `torch.distributed.TCPStore`). If Ray uses
loopback, so does the store.

The process group uses gloo for CPU tensors, even if workers have GPUs: decisions of the ranks must not wait for a GPU's
queue. It is not bound to a device (`device_id`), because torch would then connect NCCL during start-up. Ray Train ends
the run if start-up fails, but restarts a worker that dies at the first collective.
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
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but without an explicit re-export

from infra.errors import UserError
from infra.interface import interface_of
from pipelines.ray_internals.train import TorchBackend, set_distributed_environment
from pipelines.training.messages import Event

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ray.actor import ActorHandle

_NODES_NAMED = 4
_stores: list[TCPStore] = []  # keeps rank 0's store open as long as the process lives


def worker_device(*, gpu: bool) -> torch.device:
    """Return the device of this Train worker: the GPU that Ray gave it, or the CPU.

    Ray decides which GPU. Its accelerator callback shows each worker all GPUs of the group on the node
    (CUDA_VISIBLE_DEVICES). Its `TorchConfig` makes the worker's GPU the current device of the training thread, before
    the training function begins. A thread that a worker starts must set its own current device.

    Raises:
        UserError: torch does not see the GPU, or cannot compute on it.
    """
    if not gpu:
        return torch.device("cpu")
    device = get_device()
    remedy = "fix the driver or the installed torch of that node, or set run.use_gpu=false"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type != "cuda" or device.index >= count:
        what = f"the worker was given {device}" if device.type == "cuda" else "run.use_gpu is on"
        raise UserError(f"{what}, but torch sees {count or 'no'} GPU(s) on {ray.util.get_node_ip_address()}: {remedy}")
    _probe(device, remedy)
    return device


def _probe(device: torch.device, remedy: str) -> None:
    try:
        torch.zeros(1, device=device).add_(1)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # for example a GPU too old for the kernels of this torch
        name, reason = torch.cuda.get_device_name(device), str(error).partition("\n")[0]
        raise UserError(f"torch cannot compute on {device} ({name}): {reason}: {remedy}") from error


def backend_for(*, gpus: bool) -> str:
    """Return torch's map from devices to backends, for workers that see the GPUs which they hold, or hold none.

    The map is explicit, because torch chooses by visible GPUs, and Ray shows GPUs also to workers that hold none.
    Torch's maps for NCCL alone and for "no backend" do not support CPU tensors.
    """
    return "cpu:gloo,cuda:nccl" if gpus else "gloo"


def serve_store(host: str) -> int:
    """Serve a store at an address of this machine; return its port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as bound:
        port: int = bound.getsockname()[1]
        file = bound.detach()  # the store owns it from now on
    _stores.append(TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=file))
    return port


def _serve() -> tuple[str, int]:
    """Serve the store on rank 0; return its (host, port)."""
    host = ray.util.get_node_ip_address()
    return host, serve_store(host)


def _join(backend: str, host: str, port: int, place: int, size: int, limit: timedelta) -> None:
    # gloo's default is the interface of the host's name, which may be 127.0.1.1 or open to a network
    if interface := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit)
    dist.init_process_group(backend, store=store, rank=place, world_size=size, timeout=limit)


def _given() -> tuple[str, str, bool]:
    """Return (host, device that Ray gave, whether torch sees GPUs) of a worker that holds a GPU."""
    return ray.util.get_node_ip_address(), str(get_device()), torch.cuda.is_available()


def devices_line(given: Iterable[tuple[str, str]]) -> str:
    """Return a line with the GPUs of each host: "workers on 10.0.0.4: cuda:0, cuda:1"."""
    devices: dict[str, list[str]] = {}
    for host, device in given:
        devices.setdefault(host, []).append(device)
    named = [f"{host}: {', '.join(found)}" for host, found in islice(devices.items(), _NODES_NAMED)]
    more = len(devices) - len(named)
    return f"workers on {'; '.join(named)}{f' and {more} more node(s)' if more else ''}"


class _Backend(TorchBackend):
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, NodeAddress)
        sees_gpus = False
        if worker_group.get_resources_per_worker().get("GPU", 0) > 0:
            given = worker_group.execute(_given)
            sees_gpus = all(seen for _, _, seen in given)  # if not, `worker_device` ends the run with a reason
            if backend_config.mailbox is not None:
                text = devices_line((host, device) for host, device, _ in given)
                backend_config.mailbox.put.remote(Event(text=text))
        host, port = worker_group.execute_single(0, _serve)
        worker_group.execute(set_distributed_environment)
        backend, limit, size = (
            backend_for(gpus=sees_gpus),
            timedelta(seconds=backend_config.timeout_s),
            len(worker_group),
        )
        arguments = [(backend, host, port, rank, size, limit) for rank in range(size)]
        ray.get([worker_group.execute_single_async(rank, _join, *each) for rank, each in enumerate(arguments)])


@dataclass
class NodeAddress(TorchConfig):
    """Ray Train's process group at the node's address: gloo, and also NCCL if workers have GPUs."""

    mailbox: ActorHandle[Any] | None = field(default=None, repr=False)
    """Queue of messages to the driver; it receives a line with the GPU of each worker."""

    @property
    def backend_cls(self) -> type[TorchBackend]:
        """Class that sets up the group."""
        return _Backend
