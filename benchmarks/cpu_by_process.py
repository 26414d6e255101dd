"""What each process of a run computes, and the run's images/s: `python -m benchmarks.cpu_by_process IMAGES`.

IMAGES is a folder of class folders, as `pipelines/prepare.py` takes it. The run is README's own for photographs
(ResNet-18, 2 workers) as a user starts it, limited by its training step, and stopped long before its end. For each size
the table says how much of a core each kind of process takes once the run is under way, and the rate of training
meanwhile. `--no-pause` leaves Ray Data's loop as Ray has it (docs/decisions/0029-a-pause-in-ray-datas-loop.md).
Compare on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import events
from benchmarks.processes import command_line

PAUSE_SWITCH = "RESNET_RAY_DATA_PAUSE"  # as in pipelines/ray_internals.py, which imports Ray
STEPS = 400  # of a run that is stopped long before: Ray Data deals out the whole plan at the beginning, 1 ms a task
TRACED = "share"  # the event of a step that a worker begins
PATIENCE_S = 240.0  # until the first steps
KINDS = {  # by the title that Ray gives its processes
    "SplitCoordinator": r"ray::SplitCoordinator",
    "train worker": r"ray::\S*TrainWorker",
    "data task": r"ray::.*(MapBatches|Map\(|load|Repartition)",
    "Train controller": r"ray::\S*TrainController",
    "other of Ray": r"ray::|raylet|gcs_server|ray/",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A run at one size of images."""

    size: int
    images_per_second: float
    cores: dict[str, float]  # by kind of process, all processes of the kind together


def kind_of(command: str) -> str:
    """What a process of the run is, by its command."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, command)), "driver and others")


def cpu_seconds(root: psutil.Process) -> dict[tuple[int, str], float]:
    """What each process below `root` has computed, by (its id, its kind)."""
    used: dict[tuple[int, str], float] = {}
    for process in (root, *root.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        used[process.pid, kind_of(command_line(process))] = times.user + times.system
    return used


def spent(before: dict[tuple[int, str], float], after: dict[tuple[int, str], float]) -> Counter[str]:
    """CPU seconds between two looks, by kind; a process that began meanwhile counts whole.

    A data task's process is renamed between tasks: what it computed counts to its kind at the second look.
    """
    pids = {pid: seconds for (pid, _), seconds in before.items()}
    total: Counter[str] = Counter()
    for (pid, kind), seconds in after.items():
        total[kind] += seconds - pids.get(pid, 0.0)  # type: ignore[assignment]  # a counter of seconds
    return total


def settings_of(arguments: argparse.Namespace, size: int, home: Path) -> dict[str, object]:
    """README's recipe for photographs at a size, longer than anybody waits for it."""
    return {
        "model.name": "resnet18",
        "data.uri": str(home / "data"),
        "data.image_size": size,
        "data.train_crop": "random_resized",
        "data.eval_resize": round(size * 8 / 7),
        "augment.flip": True,
        "optim.global_batch_size": arguments.batch,
        "schedule.unit": "steps",
        "schedule.length": STEPS,
        "run.num_workers": arguments.workers,
        "run.home": str(home / f"runs-{size}"),
        "run.name": "run",
        "run.eval_at": [STEPS - 1],
    }


def measure(arguments: argparse.Namespace, size: int, home: Path) -> Measured:
    """Start a run, wait until it trains, look at its processes twice, and stop it."""
    trace, log = home / f"trace-{size}", home / f"log-{size}.txt"
    recipe = home / "photos.toml"
    recipe.touch()
    process = events.start(str(recipe), settings_of(arguments, size, home), log=log, trace=trace)
    try:
        _wait_for_steps(process, trace, log, arguments.skip)
        root, began = psutil.Process(process.pid), time.time()
        before = cpu_seconds(root)
        time.sleep(arguments.seconds)
        after = cpu_seconds(root)
        took = time.time() - began
        steps = _steps(trace)[arguments.skip - 1 :]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
    cores = {kind: round(seconds / took, 3) for kind, seconds in spent(before, after).most_common()}
    rate = (len(steps) - 1) * arguments.batch / (steps[-1] - steps[0]) if len(steps) > 1 else 0.0
    return Measured(size=size, images_per_second=round(rate, 1), cores=cores)


def _steps(trace: Path) -> list[float]:
    """When rank 0 drew each of its steps, Unix seconds."""
    return [event["t"] for event in events.read(trace) if event["event"] == TRACED and event["rank"] == 0]


def _wait_for_steps(process: subprocess.Popen[bytes], trace: Path, log: Path, steps: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while len(_steps(trace)) < steps:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the run did not get to its first steps:\n{log.read_text()}")
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU by process of a run that its training step limits.")
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of class folders of images")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 128, 224], help="side of the images, pixels")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=256, help="images of a step over all workers")
    parser.add_argument("--seconds", type=float, default=25.0, help="between the two looks")
    parser.add_argument("--skip", type=int, default=2, help="steps before the first look, at least 1")
    parser.add_argument("--no-pause", action="store_true", help="leave Ray Data's loop as it is")
    parser.add_argument("--json", metavar="FILE", help="where to write the measurements")
    arguments = parser.parse_args()
    os.environ[PAUSE_SWITCH] = "0" if arguments.no_pause else "1"
    print(f"load average before {os.getloadavg()[0]:.1f}: what others compute makes every number noisy")
    measured = []
    with tempfile.TemporaryDirectory(prefix="resnet-ray-cpu-") as temporary:
        prepare = [sys.executable, "pipelines/prepare.py", str(arguments.images.resolve()), f"{temporary}/data"]
        subprocess.run(prepare, cwd=events.ROOT, check=True, stdout=subprocess.DEVNULL)
        for size in arguments.sizes:
            found = measure(arguments, size, Path(temporary))
            measured.append(found)
            cores = ", ".join(f"{kind} {share:.1%}" for kind, share in found.cores.items() if share >= 0.005)
            print(f"{size:4} pixels  {found.images_per_second:8,.1f} images/s  of a core: {cores}", flush=True)
    if arguments.json:
        content = {**vars(arguments), "images": str(arguments.images), "runs": [asdict(each) for each in measured]}
        Path(arguments.json).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
