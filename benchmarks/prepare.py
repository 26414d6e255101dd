"""Test prepare.py on archives like ImageNet's, with kills: `python -m benchmarks.prepare PHOTOGRAPHS WORK`.

First it makes ImageNet's three archives in WORK from real photographs (`python -m benchmarks.photographs PHOTOGRAPHS`).
Each photograph is used several times, with another JPEG comment, so that no two files are equal. Then it prepares the
archives once without interruption, and once with `kill -9` at random moments and the same command after each kill. It
compares the manifests of both. Ten times a second it reads the memory of the command and of Ray's tasks. It prints a
table and can write JSON.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import psutil
import scipy.io

ROOT = Path(__file__).resolve().parents[1]
_RATE = re.compile(r"wrote at ([\d,]+) images/s, ([\d.]+) MB/s")
_SHARD = re.compile(r"^([\d,]+) of ([\d,]+) images")


@dataclass(kw_only=True)
class Run:
    """One run of the command, until its end or a kill."""

    seconds: float = 0.0
    killed: bool = False
    images_s: float = 0.0  # printed by the command, counted from the start of the first task
    driver_mb: list[float] = field(default_factory=list)  # resident memory over time
    task_mb: list[float] = field(default_factory=list)  # private memory of the largest task over time


def make_archives(photographs: Path, out: Path, count: int) -> None:
    """Write ILSVRC2012's archives of the tiles in `photographs`/{train,test}/CLASS.

    They have `count` images for training and a tenth as many for testing.
    """
    out.mkdir(parents=True, exist_ok=True)
    classes = sorted(path.name for path in (photographs / "train").iterdir())
    wnids = [f"n{1000 + index:08d}" for index in range(len(classes))]
    with tarfile.open(out / "ILSVRC2012_img_train.tar", "w") as train:
        for wnid, name in zip(wnids, classes, strict=True):
            images = _images(photographs / "train" / name, count // len(classes))
            _add(train, f"{wnid}.tar", _tar((f"{wnid}_{number}.JPEG", data) for number, data in enumerate(images)))
    tests = [
        (label, data)
        for label, name in enumerate(classes)
        for data in _images(photographs / "test" / name, count // len(classes) // 10)
    ]
    random.Random(0).shuffle(tests)
    with tarfile.open(out / "ILSVRC2012_img_val.tar", "w") as val:
        for number, (_, data) in enumerate(tests, 1):
            _add(val, f"ILSVRC2012_val_{number:08d}.JPEG", data)
    (out / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(_devkit(wnids, classes, [label for label, _ in tests]))


def _images(folder: Path, count: int) -> Iterator[bytes]:
    """Yield `count` files, no two of them equal."""
    files = [file.read_bytes() for file in sorted(folder.iterdir())]
    for number in range(count):
        data, comment = files[number % len(files)], str(number).encode()
        # a COM segment after the marker at the start of a JPEG
        yield data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:]


def _devkit(wnids: Sequence[str], names: Sequence[str], labels: Sequence[int]) -> bytes:
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(number, wnid, name, 0) for number, (wnid, name) in enumerate(zip(wnids, names, strict=True), 1)]
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": np.array(rows, dtype=fields)})
    truth = "".join(f"{label + 1}\n" for label in labels).encode()
    root = "ILSVRC2012_devkit_t12/data"
    files = [(f"{root}/meta.mat", meta.getvalue()), (f"{root}/ILSVRC2012_validation_ground_truth.txt", truth)]
    return gzip.compress(_tar(files))


def _tar(members: Iterable[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            _add(tar, name, data)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def run_prepare(source: Path, dest: Path, shard_mb: int, kill_at: float) -> Run:
    """Run the command; kill it when the fraction `kill_at` of the images is written (above 1 = never)."""
    command = [sys.executable, str(ROOT / "pipelines/prepare.py"), str(source), str(dest)]
    command += ["--set", f"prepare.shard_mb={shard_mb}"]
    began, run = time.monotonic(), Run()
    log = dest.parent / "prepare.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        while process.poll() is None:
            _measure(psutil.Process(process.pid), run)
            if _written(log) >= kill_at:
                os.killpg(process.pid, signal.SIGKILL)
                run.killed = True
                break
            time.sleep(0.1)
        process.wait()
    run.seconds = time.monotonic() - began
    if not run.killed and process.returncode:
        sys.exit(f"error: {' '.join(command)}: {log.read_text()[-500:]}")
    if match := _RATE.search(log.read_text()):
        run.images_s = float(match[1].replace(",", ""))
    return run


def _measure(driver: psutil.Process, run: Run) -> None:
    try:
        run.driver_mb.append(driver.memory_info().rss / 1e6)
        tasks = [child for child in driver.children(recursive=True) if child.name().startswith("ray::")]
        run.task_mb.append(max((task.memory_full_info().uss / 1e6 for task in tasks), default=0.0))
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        pass


def _written(log: Path) -> float:
    counts = [match for line in log.read_text().splitlines() if (match := _SHARD.match(line))]
    return int(counts[-1][1].replace(",", "")) / int(counts[-1][2].replace(",", "")) if counts else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure prepare.py on archives like ImageNet's: rate, memory, kills.")
    parser.add_argument("photographs", metavar="PHOTOGRAPHS", type=Path, help="folder that benchmarks.photographs made")
    parser.add_argument("work", metavar="WORK", type=Path, help="folder for archives and data sets")
    parser.add_argument("--count", type=int, default=5000, help="training images; a tenth as many test images")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--shard-mb", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0, help="chooses the moments of the kills")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    work: Path = arguments.work
    make_archives(arguments.photographs, work / "archives", arguments.count)
    for name in ("uninterrupted", "killed"):
        shutil.rmtree(work / name, ignore_errors=True)
    rng = random.Random(arguments.seed)
    moments = [(number + rng.uniform(0.2, 0.8)) / (arguments.kills + 1) for number in range(arguments.kills)]
    source = work / "archives"
    runs = [run_prepare(source, work / "uninterrupted", arguments.shard_mb, 2.0)]
    runs += [run_prepare(source, work / "killed", arguments.shard_mb, moment) for moment in [*moments, 2.0]]
    manifests = [(work / name / "manifest.json").read_bytes() for name in ("uninterrupted", "killed")]
    names = ["uninterrupted", *(f"killed at {moment:.0%}" for moment in moments), "to the end"]
    print("run             seconds  images/s  driver MB (quarters, peak)      largest task MB (quarters, peak)")
    for name, run in zip(names, runs, strict=True):
        rate = f"{run.images_s:9.0f}" if run.images_s else "        -"
        print(f"{name:<14} {run.seconds:8.1f} {rate}  {_quarters(run.driver_mb)}  {_quarters(run.task_mb)}")
    print(f"manifests equal: {manifests[0] == manifests[1]}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(run) for run in runs]))


def _quarters(values: Sequence[float]) -> str:
    """Return the highest value of each quarter of the time, and of all, as text."""
    quarters = [part.max() if len(part) else 0.0 for part in np.array_split(np.array(values), 4)]
    return " ".join(f"{value:5.0f}" for value in [*quarters, max(values, default=0.0)])


if __name__ == "__main__":
    main()
