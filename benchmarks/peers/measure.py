"""Measurement of every loader: the images that it yields, and the CPU time of its process tree for them.

This imports the standard library only, because it runs in every loader's environment.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

CROP, SCALE, RATIO = 224, (0.08, 1.0), (3 / 4, 4 / 3)
EPOCHS = 10
"""Passes over the photographs in one epoch of a loader, so that few epochs begin during a measurement."""
_WARMUP_S = 2.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Settings of one measurement of a loader."""

    photographs: Path  # CLASS/NNNN.jpg
    scratch: Path  # this loader's folder; later measurements use its files again
    workers: int  # processes or threads that load; 1 = in this process, if the loader can
    batch: int  # images
    seconds: float  # length of the measurement, after a warm-up of 2 s and at least one epoch
    variant: str

    def files(self) -> list[tuple[Path, int]]:
        """Return (file, label) pairs, sorted by class."""
        classes = sorted(path.name for path in self.photographs.iterdir())
        return [(file, classes.index(file.parent.name)) for file in sorted(self.photographs.glob("*/*.jpg"))]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Result of one measurement."""

    images: int
    wall_s: float
    cpu_s: float  # user and system time of the process and all its descendants
    longest_gap_s: float  # between two batches, also where an epoch begins

    @property
    def per_cpu_s(self) -> float:
        return self.images / self.cpu_s

    @property
    def per_s(self) -> float:
        return self.images / self.wall_s


Batches = Callable[[Job], Iterator[int]]
"""Function that yields the number of images of each batch, without end."""


def measure(
    batches: Iterator[int], *, epoch: int, seconds: float, before: Callable[[], object] | None = None
) -> Measured:
    """Measure a loader for `seconds` at steady state; call `before` when the warm-up is over."""
    warm, began = 0, time.perf_counter()
    while warm < epoch or time.perf_counter() - began < _WARMUP_S:
        warm += next(batches)
    if before:
        before()
    images, gap, cpu = 0, 0.0, tree_cpu_s(os.getpid())
    began = last = time.perf_counter()
    while (now := time.perf_counter()) - began < seconds:
        images += next(batches)
        gap, last = max(gap, time.perf_counter() - now), time.perf_counter()
    return Measured(images=images, wall_s=last - began, cpu_s=tree_cpu_s(os.getpid()) - cpu, longest_gap_s=gap)


def tree_cpu_s(root: int) -> float:
    """Return the user and system seconds so far of a process and its descendants.

    A descendant that has ended is included if its parent has waited for it.
    """
    ticks, parents = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            parents[int(entry.name)] = int(fields[1])
            ticks[int(entry.name)] = sum(map(int, fields[11:15]))
    tree, grown = {root}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in tree} - tree
        tree |= more
        grown = bool(more)
    return sum(ticks.get(pid, 0) for pid in tree) / _TICKS


def arguments() -> tuple[Job, str]:
    """Return the job of the command line, and the file for the measurement."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--variant", default="")
    parser.add_argument("--out", required=True)
    given = vars(parser.parse_args())
    out = given.pop("out")
    given["scratch"].mkdir(parents=True, exist_ok=True)
    return Job(**given), out


def run(batches: Batches) -> None:
    """Run a loader's main function: measure by the command line, and write the measurement."""
    job, out = arguments()
    write(measure(batches(job), epoch=len(job.files()), seconds=job.seconds), out)


def write(measured: Measured, out: str) -> None:
    Path(out).write_text(json.dumps(asdict(measured)))


def forever(epoch: Callable[[], Iterator[int]]) -> Iterator[int]:
    """Yield the batches of one epoch after the other."""
    while True:
        yield from epoch()
