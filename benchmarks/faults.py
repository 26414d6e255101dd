"""Kill a training at three random steps and check what the pipeline promises: `python benchmarks/faults.py`.

One small run is trained without interruption. The same run is then killed with SIGKILL: first its driver, then one of
its Ray Train workers, then the whole Ray cluster and the driver. After each kill the same command runs again, until it
finishes.

The benchmark counts how often each epoch saw each image, from three sources:

- the journal of the rows that every worker drew (`benchmarks/trace`);
- the ledger of the last checkpoint;
- the number of samples in the ledger of the newest checkpoint when each command ended.

A step that was repeated after a kill counts once, as it was the last time. Then every point of MLflow's curves is
checked, and the final weights are compared with those of the uninterrupted run.

The exit status is 1 if a promise is broken. Equal weights are promised with data.ordered = true, if the number of
workers does not change.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

import psutil

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import events
from benchmarks.processes import command_line, is_train_worker
from infra.storage import open_store
from infra.tracking.client import connect, resolve_tracking
from pipelines.checkpoint import FINISHED, Checkpoint, RunFolder
from pipelines.data.order.ledger import Ledger
from resnet_core.schedule import epoch_end_step

SAMPLES, BATCH, LOG_EVERY, CHECKPOINT_EVERY = 4000, 64, 10, 20
NAME, EXPERIMENT = "faults", "faults"
VICTIMS = ("driver", "worker", "cluster")
MAX_COMMANDS = 8


@dataclass(kw_only=True)
class Run:
    """One training that is traced."""

    home: Path
    settings: dict[str, object]
    timeout_s: float
    """Time limit of each command."""
    commands: int = 0
    ledgers: list[tuple[int, int]] = field(default_factory=list)
    """List of (step, samples in the ledger) of the newest checkpoint when each command ended."""

    @property
    def trace(self) -> Path:
        return self.home / "trace"

    @property
    def folder(self) -> RunFolder:
        return RunFolder(open_store(str(self.home)).sub(NAME))

    def start(self) -> Popen[bytes]:
        self.home.mkdir(parents=True, exist_ok=True)
        self.commands += 1
        log = self.home / "output.txt"
        return events.start("mnist5k", {**self.settings, "run.home": str(self.home)}, log=log, trace=self.trace)

    def step(self) -> int:
        """Return the last step for which a worker has drawn data."""
        return max((event["step"] for event in events.read(self.trace) if event["event"] == "batch"), default=0)

    def await_or_kill(self, process: Popen[bytes], until: Callable[[], bool]) -> bool:
        """Return whether `until` became true before the command ended; after the time limit, kill the command."""
        deadline = time.monotonic() + self.timeout_s
        while process.poll() is None:
            if until():
                return True
            if time.monotonic() > deadline:
                kill(family(process.pid))
                raise SystemExit(f"error: a command took more than {self.timeout_s:.0f} s: see {self.home}/output.txt")
            time.sleep(0.2)
        return False

    def note_ledger(self) -> None:
        newest = self.folder.newest(print)
        if newest:
            self.ledgers.append((newest.step, Ledger.from_arrays(newest.ledger).total))


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all its descendants."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def victims(kind: str, pid: int, rng: random.Random) -> list[psutil.Process]:
    """Return the processes of a command to kill."""
    driver, *children = family(pid)
    if kind == "driver":
        return [driver]
    if kind == "worker":
        workers = [process for process in children if is_train_worker(process)]
        return [rng.choice(workers)] if workers else []
    named = [(process, command_line(process)) for process in children]
    return [driver, *(process for process, name in named if "raylet/raylet" in name or "gcs_server" in name)]


def train(run: Run, kills: dict[str, int], rng: random.Random) -> None:
    """Run the same command until it finishes, and kill each victim when its step is reached."""
    left, started = dict(kills), list[psutil.Process]()
    while run.commands < MAX_COMMANDS:
        process = run.start()
        while left:
            kind, step = next(iter(left.items()))
            if not run.await_or_kill(process, lambda step=step: run.step() >= step):  # type: ignore[misc]
                break
            started += family(process.pid)
            chosen = victims(kind, process.pid, rng)
            if not chosen:
                break
            kill(chosen)
            del left[kind]
            print(f"  step {run.step():4}  killed the {kind}: {len(chosen)} process(es)")
            if kind != "worker":
                break
        run.await_or_kill(process, lambda: False)
        run.note_ledger()
        if process.returncode == 0 and run.folder.read_json(FINISHED):
            break
    _, alive = psutil.wait_procs(started, timeout=10)
    over = [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    print(f"  finished by command {run.commands}; processes that outlived kills: {[p.name() for p in over] or 'none'}")
    kill(over)
    if left or run.folder.read_json(FINISHED) is None:
        raise SystemExit(f"error: the run did not finish: see {run.home}/output.txt")


def seen(run: Run) -> tuple[dict[int, Counter[int]], dict[int, frozenset[tuple[int, int]]]]:
    """Return from the journal how often each epoch saw each id, and the final (epoch, id) set of each step."""
    last = {(e["rank"], e["step"]): e["ids"] for e in events.read(run.trace) if e["event"] == "batch"}
    epochs: dict[int, Counter[int]] = {}
    steps: dict[int, set[tuple[int, int]]] = {}
    for (_, step), pairs in last.items():
        for epoch, sample in pairs:
            epochs.setdefault(epoch, Counter())[sample] += 1
            steps.setdefault(step, set()).add((epoch, sample))
    return epochs, {step: frozenset(pairs) for step, pairs in steps.items()}


def check_samples(run: Run, last: Checkpoint, epochs: int, total_steps: int) -> bool:
    """Print how often the images of each epoch were seen, by journal and by ledger; return whether that is right."""
    counted, ledger = seen(run)[0], Ledger.from_arrays(last.ledger).report()
    good = set(counted) == set(ledger) == set(range(epochs))
    print("\nepoch      once  twice+   never   | ledger:  once   never")
    for epoch in range(epochs):
        counts = counted.get(epoch, Counter())
        once, more = (sum(pick(n) for n in counts.values()) for pick in (lambda n: n == 1, lambda n: n > 1))
        never = SAMPLES - len(counts.keys() & set(range(SAMPLES)))
        report = ledger[epoch]
        print(f"{epoch:5}  {once:8,}  {more:6,}  {never:6,}   | {report.once:13,}  {report.never:6,}")
        good &= (once, more, never, report.once, report.never) == (SAMPLES, 0, 0, SAMPLES, 0)
    expected = [SAMPLES * epochs if step == total_steps else step * BATCH for step, _ in run.ledgers]
    exact = expected == [total for _, total in run.ledgers]
    print(f"newest checkpoint when each command ended, (step, samples in its ledger): {run.ledgers}: {_verdict(exact)}")
    return good and exact


def check_mlflow(run: Run, epochs: int, total_steps: int) -> bool:
    """Return whether MLflow's curves have every expected step exactly once."""
    client = connect(resolve_tracking(run.home))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    scored = {epoch_end_step(epoch, SAMPLES, BATCH, total_steps) for epoch in range(1, epochs + 1)}
    steps = range(1, total_steps + 1)
    logged = {s for s in steps if s % LOG_EVERY == 0 or s % CHECKPOINT_EVERY == 0 or s in scored or s == total_steps}
    good = len(runs) == 1
    print(f"\nMLflow runs: {len(runs)}: {_verdict(good)}")
    for key, expected in (("train/loss", logged), ("lr", logged), ("test/accuracy", scored)):
        points = Counter(point.step for point in client.get_metric_history(runs[0].info.run_id, key))
        doubled = [step for step, times in points.items() if times > 1]
        gaps, strange = sorted(expected - points.keys()), sorted(points.keys() - expected)
        fine = not (doubled or gaps or strange)
        faults = f"doubled {doubled}, missing {gaps}, unexpected {strange}"
        print(f"  {key:14} {len(points)} points, {faults}: {_verdict(fine)}")
        good &= fine
    return good


def compare(killed: Run, uninterrupted: Run, total_steps: int) -> bool:
    """Return whether the final weights and momenta are equal bit for bit; print the differences."""
    ours, theirs = (run.folder.load(total_steps).tensors for run in (killed, uninterrupted))
    gaps = [
        ((tensor.double() - theirs[group][name].double()).abs().max().item(), f"{group} {name}")
        for group, tensors in ours.items()
        for name, tensor in tensors.items()
    ]
    weight_gap = max(gap for gap, name in gaps if name.endswith((".weight", ".bias")))
    equal = all(a.equal(theirs[group][name]) for group, tensors in ours.items() for name, a in tensors.items())
    mine, other = seen(killed)[1], seen(uninterrupted)[1]
    changed = sum(mine[step] != other[step] for step in mine)
    accuracies = [run.folder.load(total_steps).metrics["test/accuracy"] for run in (killed, uninterrupted)]
    differences = (
        f"largest difference {weight_gap:.3g}; with BatchNorm's running statistics {max(gaps)[0]:.3g} ({max(gaps)[1]})"
    )
    print(f"\nfinal weights: {'equal bit for bit' if equal else differences}")
    print(f"steps with other images than in the uninterrupted run: {changed} of {len(mine)}")
    print(f"test accuracy: killed {accuracies[0]:.2%}, uninterrupted {accuracies[1]:.2%}")
    return equal


def _verdict(good: bool) -> str:
    return "kept" if good else "BROKEN"


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description="Kill a training at three random steps and check its promises.")
    parser.add_argument("--workers", type=int, default=1, choices=(1, 2))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="chooses the steps and the worker")
    parser.add_argument("--timeout", type=float, default=300, help="seconds that one command may take")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    total_steps = arguments.epochs * SAMPLES // BATCH
    rng = random.Random(arguments.seed)
    # one in each third, away from its ends, so that two kills are not close together
    points = [round(total_steps * (third + rng.uniform(0.2, 0.8)) / 3) for third in range(3)]
    with tempfile.TemporaryDirectory(prefix="resnet-ray-faults-") as temporary:
        settings: dict[str, object] = {
            "data.uri": f"{temporary}/data",
            "prepare.validation": 0,  # all SAMPLES images are for training
            "data.ordered": True,
            "schedule.length": arguments.epochs,
            "compute.threads_per_worker": 1,
            "run.name": NAME,
            "run.experiment": EXPERIMENT,
            "run.num_workers": arguments.workers,
            "run.log_every_steps": LOG_EVERY,
            "run.checkpoint_every_steps": CHECKPOINT_EVERY,
            "run.register_as": "",
        }
        uninterrupted, killed = (
            Run(home=Path(temporary, name), settings=settings, timeout_s=arguments.timeout)
            for name in ("uninterrupted", "killed")
        )
        print(f"{arguments.workers} worker(s), {arguments.epochs} epochs, {total_steps} steps, seed {arguments.seed}")
        print("uninterrupted:")
        train(uninterrupted, {}, rng)
        print("killed:")
        train(killed, dict(zip(VICTIMS, points, strict=True)), rng)
        last = killed.folder.load(total_steps)
        kept = [
            check_samples(killed, last, arguments.epochs, total_steps),
            check_mlflow(killed, arguments.epochs, total_steps),
            compare(killed, uninterrupted, total_steps),
        ]
    print(f"\npromises: {_verdict(all(kept))}")
    sys.exit(not all(kept))


if __name__ == "__main__":
    main()
