"""Runs that lose a node and get one back, against runs of a fixed size: `python -m benchmarks.elastic`.

`ray.cluster_utils.Cluster` has two nodes with resources for one worker each. A run with `run.num_workers = [1, 2]`
starts on both. After a sixth of the run one node is killed, and a new one is added as soon as the run has resumed
without it; Ray Train looks for resources once a minute. The same recipe is trained on two workers throughout. Both
runs are repeated for each seed.

This prints the loss of each part of a run and the final accuracy. It also prints the number of samples that the ledger
misses, and the number of workers of each step. Finished runs in the folder `--keep` are not trained again.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import events
from infra.storage import open_store
from infra.tracking.metric_point import MetricPoint
from pipelines.checkpoint import FINISHED, RunFolder
from pipelines.data.order.ledger import Ledger
from pipelines.data.shards.manifest import load_manifest
from resnet_core.plateau import held_out

EPOCHS, PARTS = 24, 6  # parts of four epochs
LOSS = "train/loss"
_STORE_BYTES = 200 * 2**20
_TIMEOUT_S = 300.0


def settings(home: Path, name: str, seed: int, workers: object) -> dict[str, object]:
    return {
        "data.uri": f"{home}/data",
        "schedule.length": EPOCHS,
        "compute.threads_per_worker": 1,
        "run.home": f"{home}/runs",
        "run.name": name,
        "run.seed": seed,
        "run.num_workers": workers,
        "run.cpus_per_worker": 2,  # a node has 3
        "run.checkpoint_every_steps": 25,
        "run.log_every_steps": 5,
        "run.max_failures": 5,
        "run.register_as": "",
    }


def folder(home: Path, name: str) -> RunFolder:
    return RunFolder(open_store(f"{home}/runs/{name}"))


def finished(home: Path, name: str) -> bool:
    return folder(home, name).store.exists(FINISHED)


def step_of(home: Path, name: str) -> int:
    return max(folder(home, name).steps(), default=0)


def wait_for_step(home: Path, name: str, step: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while step_of(home, name) < step:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"error: {name} did not reach step {step}: see {home}/{name}.log")
        time.sleep(0.5)


def add_node(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=3, object_store_memory=_STORE_BYTES)


def elastic(home: Path, seed: int, cluster: Any, node: Any, steps: int) -> Any:
    """Train on two workers, one, and two again; `node` is killed, and its replacement is returned."""
    name = f"elastic{seed}"
    if finished(home, name):
        return node
    process = events.start("mnist5k", settings(home, name, seed, [1, 2]), log=home / f"{name}.log")
    wait_for_step(home, name, steps // PARTS, process)
    cluster.remove_node(node, allow_graceful=False)
    wait_for_step(home, name, step_of(home, name) + 1, process)
    added = add_node(cluster)
    if process.wait() != 0:
        raise SystemExit(f"error: an elastic run failed: see {home}/{name}.log")
    return added


def fixed(home: Path, seed: int) -> None:
    name = f"fixed{seed}"
    if finished(home, name):
        return
    if events.start("mnist5k", settings(home, name, seed, 2), log=home / f"{name}.log").wait() != 0:
        raise SystemExit(f"error: a run failed: see {home}/{name}.log")


def losses(records: list[MetricPoint], steps: int) -> list[float]:
    """Return the mean training loss of each part of the run."""
    recorded = {record.step: record.metrics[LOSS] for record in records if LOSS in record.metrics}
    parts: list[list[float]] = [[] for _ in range(PARTS)]
    for step, loss in recorded.items():
        parts[min(PARTS - 1, (step - 1) * PARTS // steps)].append(loss)
    return [statistics.fmean(part) for part in parts]


def report(home: Path, name: str, steps: int) -> tuple[list[float], float, int]:
    """Return (losses, accuracy in percent, samples that the ledger misses) of a finished run."""
    newest = folder(home, name).newest(print)
    assert newest is not None and folder(home, name).read_json(FINISHED)
    counts = Ledger.from_arrays(newest.ledger).report().values()
    evaluated = [held_out(record.metrics, "accuracy") for record in newest.records]
    accuracy = [each for each in evaluated if each is not None][-1]
    return losses(newest.records, steps), 100 * accuracy, sum(count.never for count in counts)


def tell(home: Path, seeds: int, steps: int) -> None:
    """Print the table."""
    found = {}
    for kind in ("elastic", "fixed"):
        for name in (f"{kind}{seed}" for seed in range(seeds)):
            found[name] = report(home, name, steps)
            phases = re.findall(r"training on (\d) worker\(s\).* from step (\d+)", (home / f"{name}.log").read_text())
            print(f"{name}: " + ", ".join(f"{workers} worker(s) from step {step}" for workers, step in phases))
    print(f"{'run':10}" + "".join(f"{f'part {n + 1}':>9}" for n in range(PARTS)) + f"{'accuracy':>10}{'missing':>9}")
    for name, (curve, accuracy, missing) in found.items():
        print(f"{name:10}" + "".join(f"{loss:9.4f}" for loss in curve) + f"{accuracy:9.2f}%{missing:9}")
    ours, others = (
        list(zip(*(curve for name, (curve, _, _) in found.items() if name.startswith(kind)), strict=True))
        for kind in ("elastic", "fixed")
    )
    apart = [max(part) - min(part) for part in others]
    away = [statistics.fmean(one) - statistics.fmean(other) for one, other in zip(ours, others, strict=True)]
    print(f"{'spread':10}" + "".join(f"{part:9.4f}" for part in apart) + "  highest minus lowest of the fixed runs")
    print(f"{'difference':10}" + "".join(f"{part:+9.4f}" for part in away) + "  mean of the elastic runs minus theirs")
    print(f"{sum(abs(near) <= far for near, far in zip(away, apart, strict=True))} of {PARTS} parts within the spread")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare elastic runs and runs of a fixed size.")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--keep", type=Path, help="folder for data and runs; default: a temporary one")
    arguments = parser.parse_args()
    from ray.cluster_utils import Cluster

    os.environ["RAY_AUTH_MODE"] = "disabled"
    with tempfile.TemporaryDirectory(prefix="resnet-ray-elastic-") as temporary:
        home = arguments.keep or Path(temporary)
        prepare = [sys.executable, "pipelines/prepare.py", "mnist5k", f"{home}/data", "--set", "prepare.validation=0"]
        subprocess.run(prepare, cwd=events.ROOT, check=True, stdout=subprocess.DEVNULL)
        steps = load_manifest(open_store(f"{home}/data")).splits["train"] * EPOCHS // 64
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": _STORE_BYTES})
        try:
            node = [add_node(cluster) for _ in range(2)][-1]
            os.environ["RAY_ADDRESS"] = cluster.address
            for seed in range(arguments.seeds):
                node = elastic(home, seed, cluster, node, steps)
                fixed(home, seed)
        finally:
            cluster.shutdown()
        tell(home, arguments.seeds, steps)


if __name__ == "__main__":
    main()
