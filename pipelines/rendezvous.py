"""Where torch's ranks meet: a store that listens on the address of its node, not on every network of it.

Ray Train's own backend lets rank 0 open torch's `TCPStore` by address and port, which then listens at `*`. Ours hands
the store a socket that is bound already (`master_listen_fd` of `torch.distributed.TCPStore`): on loopback where Ray is
on loopback.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not re-exported in so many words

_stores: list[TCPStore] = []  # rank 0 serves for as long as its process lives


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
    store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit)
    dist.init_process_group(backend, store=store, rank=place, world_size=size, timeout=limit)


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, TorchConfig)
        host, port = worker_group.execute_single(0, _serve)
        worker_group.execute(_set_torch_distributed_env_vars)
        backend, limit, size = backend_config.backend, timedelta(seconds=backend_config.timeout_s), len(worker_group)
        arguments = [(backend, host, port, rank, size, limit) for rank in range(size)]
        ray.get([worker_group.execute_single_async(rank, _join, *each) for rank, each in enumerate(arguments)])


@dataclass
class NodeAddress(TorchConfig):
    """Ray Train's process group, met at the node's address: gloo, or NCCL where workers have GPUs."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What sets the group up."""
        return _Backend
