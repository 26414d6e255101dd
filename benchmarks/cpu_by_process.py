"""CPU use of each kind of process of a run, and the run's images/s: `python -m benchmarks.cpu_by_process IMAGES`.

IMAGES is a folder of class folders, as for `pipelines/prepare.py`. The run trains ResNet-18 on photographs with 2
workers, as a user starts it. The training step limits its speed, and the benchmark stops it long before its end.

For each image size the table shows the cores that each kind of process uses after the start, and the images/s
meanwhile. `--no-pause` keeps Ray Data's loop unchanged (docs/decisions/0029-a-pause-in-ray-datas-loop.md). Compare on
an idle machine.
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

PAUSE_SWITCH = "RESNET_RAY_DATA_PAUSE"  # as in pipelines/ray_internals, which imports Ray
STEPS = 400  # not more, although the run is stopped earlier: Ray Data plans all tasks at the start, 1 ms each
TRACED = "batch"  # the event of a step that a worker begins
TIMEOUT_S = 240.0  # until the first steps
KINDS = {  # by the titles that Ray gives its processes
    "SplitCoordinator": r"ray::SplitCoordinator",
    "train worker": r"ray::\S*TrainWorker",
    "data task": r"ray::.*(MapBatches|Map\(|load|Repartition)",
    "Train controller": r"ray::\S*TrainController",
    "other of Ray": r"ray::|raylet|gcs_server|ray/",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Measurements of a run at one image size."""

    size: int
    images_per_second: float
    cores: dict[str, float]  # used by all processes of a kind together


def kind_of(command: str) -> str:
    """Return the kind of a process of the run, by its command."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, command)), "driver and others")


def cpu_seconds(root: psutil.Process) -> dict[tuple[int, str], float]:
    """Return the CPU seconds so far of `root` and its descendants, by (process id, kind)."""
    used: dict[tuple[int, str], float] = {}
    for process in (root, *root.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        used[process.pid, kind_of(command_line(process))] = times.user + times.system
    return used


def spent(before: dict[tuple[int, str], float], after: dict[tuple[int, str], float]) -> Counter[str]:
    """Return the CPU seconds between two measurements, by kind; a process that started in between counts whole.

    A data task's process is renamed between tasks: its seconds count for its kind at the second measurement.
    """
    pids = {pid: seconds for (pid, _), seconds in before.items()}
    total: Counter[str] = Counter()
    for (pid, kind), seconds in after.items():
        total[kind] += seconds - pids.get(pid, 0.0)  # type: ignore[assignment]  # a counter of seconds
    return total


def settings_of(arguments: argparse.Namespace, size: int, home: Path) -> dict[str, object]:
    """Return the settings of a long run on photographs at an image size."""
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
    """Start a run, wait until it trains, measure its processes twice, and stop it."""
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
    """Return the times at which rank 0 drew its steps, Unix seconds."""
    return [event["t"] for event in events.read(trace) if event["event"] == TRACED and event["rank"] == 0]


def _wait_for_steps(process: subprocess.Popen[bytes], trace: Path, log: Path, steps: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while len(_steps(trace)) < steps:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"error: the run did not reach step {steps}:\n{log.read_text()}")
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the CPU use of a run's processes.")
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of class folders of images")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 128, 224], help="side of the images, pixels")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=256, help="images per step over all workers")
    parser.add_argument("--seconds", type=float, default=25.0, help="time between the two measurements")
    parser.add_argument("--skip", type=int, default=2, help="steps before the first measurement, at least 1")
    parser.add_argument("--no-pause", action="store_true", help="keep Ray Data's loop unchanged")
    parser.add_argument("--json", metavar="FILE", help="file for the measurements")
    arguments = parser.parse_args()
    os.environ[PAUSE_SWITCH] = "0" if arguments.no_pause else "1"
    print(f"load average before {os.getloadavg()[0]:.1f}: other load makes every number noisy")
    measured = []
    with tempfile.TemporaryDirectory(prefix="resnet-ray-cpu-") as temporary:
        prepare = [sys.executable, "pipelines/prepare.py", str(arguments.images.resolve()), f"{temporary}/data"]
        subprocess.run(prepare, cwd=events.ROOT, check=True, stdout=subprocess.DEVNULL)
        for size in arguments.sizes:
            found = measure(arguments, size, Path(temporary))
            measured.append(found)
            cores = ", ".join(f"{kind} {used:.1%}" for kind, used in found.cores.items() if used >= 0.005)
            print(f"{size:4} pixels  {found.images_per_second:8,.1f} images/s  of a core: {cores}", flush=True)
    if arguments.json:
        content = {**vars(arguments), "images": str(arguments.images), "runs": [asdict(each) for each in measured]}
        Path(arguments.json).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
