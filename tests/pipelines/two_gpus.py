"""Run two workers of Ray Train on a Ray that counts two GPUs, and print, as JSON, what each of them chose.

A command of `test_rendezvous.py`: Ray counts GPUs when it starts, so it needs a Ray of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any
from unittest import mock

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer

from pipelines.config.sections import RunConfig
from pipelines.training.messages import MessageQueue
from pipelines.training.placement import place
from pipelines.training.process_group import NodeAddress


def worker(config: dict[str, Any]) -> list[Any]:
    """Return the GPUs that each rank sees, the one that it takes, the result of a vote, and the interface of gloo."""
    import os

    import torch.distributed as dist

    from pipelines.training import process_group as rendezvous
    from resnet_core.distributed import max_of_hosts

    with (
        mock.patch.object(torch.cuda, "is_available", lambda: True),
        mock.patch.object(torch.cuda, "device_count", lambda: 2),
        mock.patch.object(rendezvous, "_probe", lambda device, remedy: None),
    ):
        device = rendezvous.worker_device(gpu=True)
    vote = max_of_hosts(ray.train.get_context().get_world_rank())
    mine = [os.environ["CUDA_VISIBLE_DEVICES"], str(device), vote, os.environ["GLOO_SOCKET_IFNAME"]]
    everyone: list[Any] = [None, None]
    dist.all_gather_object(everyone, mine)
    return everyone


def main() -> None:
    """Train nothing on two workers."""
    ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
    placement = place(RunConfig(num_workers=2, cpus_per_worker=1))
    mailbox = MessageQueue.remote()  # type: ignore[attr-defined]  # Ray adds it
    with tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            worker,  # type: ignore[arg-type]  # what rank 0 returns is the run's result
            torch_config=NodeAddress(mailbox=mailbox),
            scaling_config=ray.train.ScalingConfig(
                num_workers=placement.workers[1], use_gpu=placement.gpu, resources_per_worker=placement.per_worker
            ),
            run_config=ray.train.RunConfig(storage_path=folder),
        )
        ranks = trainer.fit().return_value  # type: ignore[attr-defined]  # annotated as Train V1's
    (event,) = ray.get(mailbox.take.remote())
    sys.stdout.write(f"\n{json.dumps({'ranks': ranks, 'line': event.text})}\n")


if __name__ == "__main__":
    main()
