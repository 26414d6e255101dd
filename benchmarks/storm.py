"""Kill runs twenty times at random steps, with data and checkpoints in S3: `python benchmarks/storm.py`.

A Ray cluster has three nodes; `weed mini` is the S3 server. Two runs have two workers each: one on raw pixels, one on
JPEGs. While they train, a Ray Train worker, a whole node or the driver is killed with SIGKILL, as the seed decides. A
killed node is replaced after 5 s; after a kill of the driver the same command is started again.

At the end two sources show how often each epoch saw each image: the journal of the rows that every worker drew
(`benchmarks/trace`), and the ledger of the last checkpoint.

This prints lost ids, doubled ids, recoveries and their times. The exit status is 1 if an id was lost or doubled.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

import psutil

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import events
from benchmarks.processes import is_train_worker
from infra.s3_server import serve_s3
from infra.storage import open_store
from pipelines.checkpoint import FINISHED, RunFolder
from pipelines.data.order.ledger import Ledger
from pipelines.data.shards.manifest import MANIFEST

SAMPLES, BATCH, CHECKPOINT_EVERY = 4000, 64, 10
VICTIMS = ("worker", "node", "driver")
FORMS = {"raw": {}, "jpeg": {"prepare.form": "jpeg", "prepare.size": 28}}
TIMEOUT_S = 240.0  # until the next step after a kill
_NODE_BACK_S = 5.0
_LOOK_EVERY_S = 0.2
_WORKER_BEGINS = "train_worker:begin"


@dataclass(kw_only=True)
class Storm:
    """One run and its kills."""

    form: str
    home: Path
    epochs: int
    cluster: Any
    rng: random.Random
    kills: list[tuple[float, str]] = field(default_factory=list)
    """List of (Unix time, victim)."""
    commands: int = 0

    @property
    def total_steps(self) -> int:
        return self.epochs * SAMPLES // BATCH

    @property
    def folder(self) -> RunFolder:
        return RunFolder(open_store("s3://resnet-ray/runs").sub(self.form))

    def start(self) -> Popen[bytes]:
        self.commands += 1
        settings: dict[str, object] = {
            **FORMS[self.form],
            "prepare.validation": 0,  # all SAMPLES images are for training
            "data.uri": f"s3://resnet-ray/{self.form}",
            "schedule.length": self.epochs,
            "compute.threads_per_worker": 1,
            "run.name": self.form,
            "run.home": "s3://resnet-ray/runs",
            "run.num_workers": 2,
            "run.max_failures": 100,
            "run.checkpoint_every_steps": CHECKPOINT_EVERY,
            "run.register_as": "",
        }
        log, tracking = self.home / "output.txt", f"sqlite:///{self.home}/mlflow.db"
        return events.start("mnist5k", settings, log=log, trace=self.home / "trace", tracking=tracking)

    def run(self, count: int) -> float:
        """Train to the end with `count` kills; return the seconds."""
        began = time.time()
        steps = sorted(self.rng.sample(range(5, self.total_steps - 5), count))
        kinds = [VICTIMS[index % len(VICTIMS)] for index in range(count)]
        self.rng.shuffle(kinds)
        process = self.start()
        for step, kind in zip(steps, kinds, strict=True):
            process = self.await_step(process, step)
            while not self.strike(kind, process):
                time.sleep(_LOOK_EVERY_S)
            print(f"  {time.time() - began:5.0f} s  step {step:4}  killed the {kind}", flush=True)
        while not (process.poll() == 0 and self.folder.read_json(FINISHED)):
            process = self.await_step(process, self.total_steps + 1)
        return time.time() - began

    def await_step(self, process: Popen[bytes], step: int) -> Popen[bytes]:
        """Wait until a batch of `step` or later was drawn after the last kill; start the command again if it ended."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            drawn = [e for e in self.events("batch") if not self.kills or e["t"] > self.kills[-1][0]]
            if drawn and max(event["step"] for event in drawn) >= step:
                return process
            if process.poll() is not None:
                if self.folder.read_json(FINISHED):
                    return process
                process, deadline = self.start(), time.monotonic() + TIMEOUT_S
            if time.monotonic() > deadline + len(drawn):  # a run that makes progress gets more time
                raise SystemExit(f"error: no step for {TIMEOUT_S:.0f} s: see {self.home}/output.txt")
            time.sleep(_LOOK_EVERY_S)

    def strike(self, kind: str, process: Popen[bytes]) -> bool:
        """Kill one process or node of a kind; return False if there is none now."""
        if kind == "driver":
            process.kill()
            process.wait()
        elif kind == "worker":
            found = [each for each in psutil.Process().children(recursive=True) if is_train_worker(each)]
            if not found:
                return False
            self.rng.choice(found).kill()
        else:
            self.cluster.remove_node(self.rng.choice(self.cluster.list_all_nodes()[1:]), allow_graceful=False)
        self.kills.append((time.time(), kind))
        if kind == "node":
            time.sleep(_NODE_BACK_S)
            add_node(self.cluster)
        return True

    def events(self, name: str) -> list[events.Event]:
        return [event for event in events.read(self.home / "trace") if event["event"] == name]

    def recoveries(self) -> list[float]:
        """Return the seconds from each kill that restarted the workers to the next drawn step."""
        seconds = []
        ends = [moment for moment, _ in self.kills[1:]] + [float("inf")]
        for (moment, _), end in zip(self.kills, ends, strict=True):
            begun = [event["t"] for event in self.events(_WORKER_BEGINS) if moment < event["t"] < end]
            drawn = [event["t"] for event in self.events("batch") if begun and min(begun) < event["t"] < end]
            seconds += [min(drawn) - moment] if drawn else []
        return seconds

    def counts(self) -> tuple[int, int]:
        """Return (lost ids, doubled ids) of all epochs by the journal; print if the ledger misses another number."""
        last = {(event["rank"], event["step"]): event["ids"] for event in self.events("batch")}
        seen = Counter((epoch, sample) for pairs in last.values() for epoch, sample in pairs)
        lost = self.epochs * SAMPLES - len(seen)
        doubled = sum(times > 1 for times in seen.values())
        newest = self.folder.newest(print)
        report = Ledger.from_arrays(newest.ledger).report() if newest else {}
        by_ledger = sum(count.never for count in report.values()) + SAMPLES * (self.epochs - len(report))
        if by_ledger != lost:
            print(f"  the ledger misses {by_ledger} samples, the journal {lost}")
        return max(lost, by_ledger), doubled


def add_node(cluster: Any) -> None:
    cluster.add_node(num_cpus=2, object_store_memory=200 * 2**20)


@contextmanager
def ray_cluster(trace: Path) -> Iterator[Any]:
    """Start a head and two nodes, whose processes write their journal to `trace`."""
    from ray.cluster_utils import Cluster

    os.environ |= {"RESNET_RAY_TRACE": str(trace), "RAY_AUTH_MODE": "disabled"}
    trace.mkdir(parents=True)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 200 * 2**20})
    try:
        for _ in range(2):
            add_node(cluster)
        os.environ["RAY_ADDRESS"] = cluster.address
        yield cluster
    finally:
        cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill workers, nodes and drivers at random steps; count lost samples.")
    parser.add_argument("--kills", type=int, default=20, help="number of kills over both runs")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="chooses the steps and the victims")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    print(
        f"{arguments.kills} kills, two runs of {arguments.epochs} epochs of {SAMPLES:,} images, seed {arguments.seed}"
    )
    lost = doubled = 0
    recoveries: list[float] = []
    seconds = 0.0
    with tempfile.TemporaryDirectory(prefix="resnet-ray-storm-") as temporary, serve_s3(f"{temporary}/s3") as server:
        os.environ |= server.environment
        for place, form in enumerate(FORMS):
            home = Path(temporary, form)
            with ray_cluster(home / "trace") as cluster:
                storm = Storm(form=form, home=home, epochs=arguments.epochs, cluster=cluster, rng=rng)
                print(f"{form}:", flush=True)
                seconds += storm.run((arguments.kills + place) // len(FORMS))
            assert open_store(f"s3://resnet-ray/{form}").exists(MANIFEST)
            missing, twice = storm.counts()
            print(f"  finished by command {storm.commands}; ids lost {missing}, ids doubled {twice}")
            lost, doubled, recoveries = lost + missing, doubled + twice, recoveries + storm.recoveries()
    print(f"ids lost {lost}, ids doubled {doubled}, of {2 * arguments.epochs * SAMPLES:,}")
    if recoveries:
        middle, longest = statistics.median(recoveries), max(recoveries)
        print(f"{len(recoveries)} kills restarted the workers; next step after {middle:.0f} s, at most {longest:.0f} s")
    print(f"{seconds:.0f} s in total")
    sys.exit(bool(lost or doubled))


if __name__ == "__main__":
    main()
