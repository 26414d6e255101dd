"""A program that tests start: inference on a Ray with two GPUs that only Ray believes in.

    python -m tests.pipelines.logical_gpus FOLDER VERB ARGUMENT…

Without PRETEND, torch finds no GPU where Ray has assigned one, as on a machine without a driver. With PRETEND=FOLDER,
every process that asks for its GPU gets the CPU, and leaves what Ray has assigned to it in the folder.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path

PRETEND = "TEST_PRETEND_GPU"


def pretend() -> None:
    """What each Ray process does when it starts."""
    from pipelines.evaluation import placement as inference

    def assigned(setting: str) -> str:
        import ray

        told = {"gpus": list(map(str, ray.get_gpu_ids())), "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}
        Path(os.environ[PRETEND], f"{os.getpid()}.json").write_text(json.dumps(told))
        return "cpu"

    inference.gpu_device = assigned


def main() -> None:
    import ray

    from pipelines import cli

    verb, *arguments = sys.argv[1:]
    hook = {"worker_process_setup_hook": "tests.pipelines.logical_gpus.pretend"} if os.environ.get(PRETEND) else None
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=int(os.environ.get("TEST_GPUS", "2")),
        include_dashboard=False,
        log_to_driver=False,
        runtime_env=hook,
    )
    sys.argv = [f"{verb}.py", *arguments]
    cli.run(import_module(f"pipelines.{verb}").main)


if __name__ == "__main__":
    main()
