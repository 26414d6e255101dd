"""Where torch's ranks meet, on which devices: the store's address, the backends, and the GPU of each worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from ray.air._internal.device_manager.nvidia_gpu import CUDATorchDeviceManager
from ray.train.v2._internal.callbacks.accelerators import AcceleratorSetupCallback
from ray.train.v2._internal.execution.worker_group.worker import ActorMetadata
from ray.train.v2.api.config import ScalingConfig
from torch.distributed import TCPStore
from torch.distributed.distributed_c10d import BackendConfig

from infra.errors import UserError
from infra.interface import interface_of
from pipelines.training import process_group as rendezvous
from pipelines.training.process_group import NodeAddress, devices_line, serve_store, worker_device

ROOT = Path(__file__).parents[3]
TWO_GPUS = Path(__file__).parents[1] / "two_gpus.py"


def listening() -> set[tuple[str, int]]:
    connections = psutil.Process().net_connections("inet")
    return {(each.laddr.ip, each.laddr.port) for each in connections if each.status == psutil.CONN_LISTEN}


def test_the_store_listens_on_its_address_only() -> None:
    before = listening()
    port = serve_store("127.0.0.1")
    assert listening() - before == {("127.0.0.1", port)}
    one, other = (TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False) for _ in range(2))
    one.set("here", "first")
    assert other.get("here") == b"first"


class Workers:
    """A worker group that is asked to join, and does not."""

    def __init__(self, gpus: int, *, seen: bool) -> None:
        self.gpus, self.seen = gpus, seen
        self.backends: list[str | None] = []

    def __len__(self) -> int:
        return 2

    def get_resources_per_worker(self) -> dict[str, float]:
        return {"CPU": 1, "GPU": self.gpus} if self.gpus else {"CPU": 1}

    def execute(self, call: Any) -> list[Any]:
        return [("10.0.0.1", f"cuda:{rank}", self.seen) for rank in range(2)]

    def execute_single(self, rank: int, call: Any) -> tuple[str, int]:
        return "10.0.0.1", 1

    def execute_single_async(self, rank: int, call: Any, backend: str | None, *_: Any) -> None:
        self.backends.append(backend)


@pytest.mark.parametrize("visible", [True, False], ids=["a machine with a GPU", "a machine without"])
@pytest.mark.parametrize(
    ("gpus", "expected"),
    [(0, {"cpu": "gloo"}), (1, {"cpu": "gloo", "cuda": "nccl"})],
    ids=["CPU workers", "GPU workers"],
)
def test_cpu_tensors_have_a_backend_whatever_a_machine_has(
    monkeypatch: pytest.MonkeyPatch, visible: bool, gpus: int, expected: dict[str, str]
) -> None:
    present = torch.device("cuda") if visible else None
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: present)
    monkeypatch.setattr(rendezvous.ray, "get", lambda references: None)
    workers: Any = Workers(gpus, seen=True)
    config = NodeAddress()
    config.backend_cls().on_start(workers, config)
    assert len(workers.backends) == 2
    for backend in workers.backends:
        chosen = BackendConfig(backend or "undefined").device_backend_map  # as torch takes None
        assert {device: chosen.get(device) for device in expected} == expected


def test_workers_whose_gpus_torch_does_not_see_still_meet_to_tell_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous.ray, "get", lambda references: None)
    workers: Any = Workers(1, seen=False)
    config = NodeAddress()
    config.backend_cls().on_start(workers, config)
    assert workers.backends == ["gloo", "gloo"]  # NCCL would fail here, where Train ends a run without our reason


class Worker:
    """A worker as Train's callback sees it: its node, the GPUs that Ray gave it, and an environment of its own."""

    def __init__(self, node: str, gpu: str) -> None:
        self.environment: dict[str, str] = {}
        self.gpu = gpu
        self.metadata = ActorMetadata(
            hostname=node, node_id=node, node_ip=node, pid=1, accelerator_ids={"GPU": [gpu], "TPU": []}
        )

    def execute_async(self, call: Any, **arguments: Any) -> None:
        with pytest.MonkeyPatch.context() as environment:
            environment.setattr(os, "environ", self.environment)
            call(**arguments)


@pytest.mark.parametrize("per_node", [1, 2, 8])
def test_every_worker_of_a_node_computes_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch, per_node: int) -> None:
    """What Train's own callback sets up, on two nodes, and what a worker makes of it."""
    workers: Any = [Worker(node, str(gpu)) for node in ("one", "two") for gpu in range(per_node)]
    monkeypatch.setattr("ray.train.v2._internal.callbacks.accelerators.ray.get", lambda references: None)
    scaling = ScalingConfig(num_workers=2 * per_node, use_gpu=True)
    AcceleratorSetupCallback(NodeAddress(), scaling).before_init_train_context(workers)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(rendezvous, "_probe", lambda device, remedy: None)
    chosen = []
    for worker in workers:
        visible = worker.environment["CUDA_VISIBLE_DEVICES"]
        assert visible == ",".join(map(str, range(per_node)))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: per_node)
        monkeypatch.setattr("ray.get_gpu_ids", lambda worker=worker: [int(worker.gpu)])
        monkeypatch.setattr(rendezvous, "get_device", lambda: CUDATorchDeviceManager().get_devices()[0])
        chosen.append((worker.metadata.node_id, worker_device(gpu=True)))
    assert chosen == [(node, torch.device("cuda", gpu)) for node in ("one", "two") for gpu in range(per_node)]


def test_a_gpu_that_torch_does_not_see_is_a_line_with_the_key_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous.ray.util, "get_node_ip_address", lambda: "10.0.0.7")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(rendezvous, "get_device", lambda: torch.device("cuda", 1))
    with pytest.raises(
        UserError, match=r"given cuda:1, but torch sees 1 GPU\(s\) on 10\.0\.0\.7: .*run\.use_gpu=false"
    ):
        worker_device(gpu=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"given cuda:1, but torch sees no GPU"):
        worker_device(gpu=True)
    monkeypatch.setattr(rendezvous, "get_device", lambda: torch.device("cpu"))  # of local mode
    with pytest.raises(UserError, match=r"run\.use_gpu is on, but torch sees no GPU"):
        worker_device(gpu=True)
    assert worker_device(gpu=False) == torch.device("cpu")


def test_a_gpu_without_kernels_is_a_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def old(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with …")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla K80")
    monkeypatch.setattr(rendezvous, "get_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(torch, "zeros", old)
    with pytest.raises(
        UserError, match=r"cannot compute on cuda:0 \(Tesla K80\): CUDA error: no kernel image is avail"
    ):
        worker_device(gpu=True)


def test_the_line_names_the_gpus_of_each_host() -> None:
    assert (
        devices_line([("a", "cuda:0"), ("b", "cuda:0"), ("a", "cuda:1")]) == "workers on a: cuda:0, cuda:1; b: cuda:0"
    )
    many = [(f"n{host}", f"cuda:{gpu}") for host in range(6) for gpu in range(2)]
    assert devices_line(many).endswith("; n3: cuda:0, cuda:1 and 2 more node(s)")


@pytest.mark.faults
def test_two_logical_gpus_of_a_ray_go_to_different_ranks() -> None:
    """Real workers of Train on a Ray that counts two GPUs, in a process of its own; torch is made to see them."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "0,1", "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    ended = subprocess.run(
        [sys.executable, str(TWO_GPUS)], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=250
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    told = SimpleNamespace(**json.loads(ended.stdout.splitlines()[-1]))
    address = told.line.removeprefix("workers on ").partition(":")[0]
    assert told.line == f"workers on {address}: cuda:0, cuda:1"
    own = interface_of(address)
    assert own
    assert told.ranks == [["0,1", "cuda:0", 1, own], ["0,1", "cuda:1", 1, own]]
