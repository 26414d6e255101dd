"""The host's time for a step's data, before it can train: `python -m benchmarks.feed --against 6b67546`.

Blocks come from memory, so that nothing is measured but the feed: cutting and joining blocks to a batch, and, on a GPU,
the copy. A process with the code of that revision and one with the present code take turns, round by round; the ratio
is taken within a round, and its median and range are printed.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    sys.path[0] = os.environ.get("RESNET_RAY_TREE") or str(ROOT)
    import benchmarks

    benchmarks.__path__.append(str(ROOT / "benchmarks"))  # an older tree does not have all of them

BATCH, SIZE, BLOCK_ROWS = 256, 224, 106
STEPS, WARMUP = 10, 3  # of each case in a round
CASES = {"host crops": 1, "host crops, 2 views": 2, "JPEGs on the device": 0}
"""What blocks hold: so many views of each sample, made by data tasks; 0 = stored JPEGs."""
JPEG_BATCH, JPEG_STEPS = 32, 2  # a CPU takes its time for them


def blocks_of(views: int) -> list[dict[str, Any]]:
    """A few blocks, enough for their bytes to leave the processor's caches."""
    from benchmarks.blocks import detailed, host_block, jpeg_block

    if not views:
        return [jpeg_block(range(64), SIZE, [0] * 64, detailed)]
    rows = BLOCK_ROWS // views
    return [host_block(range(first, first + rows), SIZE, [0] * rows, views) for first in range(0, 6 * rows, rows)]


def prepared_steps(blocks: list[dict[str, Any]], views: int, device_name: str) -> list[float]:
    """Milliseconds that the training thread computes for each step's data, where it finds all blocks there.

    Its CPU time: by the clock on the wall, other work of the machine would count too.
    """
    import torch

    from benchmarks.blocks import renumbered
    from pipelines.feed import Feed, Steps

    device = torch.device(device_name)
    steps, batch = (STEPS, BATCH) if views or device.type == "cuda" else (JPEG_STEPS, JPEG_BATCH)
    repeats = max(1, views)
    rows = (steps + WARMUP) * batch // repeats
    cut = Steps(
        total_samples=rows,
        total_steps=steps + WARMUP,
        global_batch_size=batch,
        world_size=1,
        microbatch_size=0,
        repeats=repeats,
    )
    feed = Feed(renumbered(blocks, rows), cut, device)
    shares = feed.shares(feed.base())
    taken = []
    while True:
        time.sleep(0.02)  # the thread that reads has its blocks
        began = time.thread_time()
        share = next(shares, None)
        if share is None:
            return taken[WARMUP:]
        taken.append(1000 * (time.thread_time() - began))


def answer(device_name: str) -> None:
    """Prepare steps of each case that is asked for on stdin, and tell their median."""
    import torch

    from resnet_core.compute import configure
    from resnet_core.config import ComputeConfig

    configure(ComputeConfig(precision="fp32", compile=False), torch.device(device_name))
    blocks = {views: blocks_of(views) for views in CASES.values()}
    print("ready", flush=True)
    for line in sys.stdin:
        print(median(prepared_steps(blocks[int(line)], int(line), device_name)), flush=True)


def child(arguments: list[str], tree: Path) -> subprocess.Popen[str]:
    """A process of its own with the code in `tree`."""
    environment = {**os.environ, "RESNET_RAY_TREE": str(tree)}
    command = [sys.executable, str(ROOT / "benchmarks" / "feed.py"), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, cwd=tree, stdin=pipe, stdout=pipe, text=True)


def asked(process: subprocess.Popen[str], question: str = "") -> str:
    """The next line of its answer."""
    assert process.stdin and process.stdout
    if question:
        process.stdin.write(question + "\n")
        process.stdin.flush()
    return process.stdout.readline().strip()


def unpacked(revision: str, folder: Path) -> Path:
    """The tree of a revision of this repository."""
    packed = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def told(name: str, values: list[float]) -> str:
    return f"{name} {median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def against(revision: str, rounds: int, device: str) -> None:
    """Print the milliseconds a step of both, and their ratios."""
    print(f"{BATCH} images of {SIZE} a step, blocks of {BLOCK_ROWS} images, {device}, {rounds} rounds", flush=True)
    with tempfile.TemporaryDirectory(prefix="resnet-ray-feed-") as folder:
        sides = {"before": child(["--child", device], unpacked(revision, Path(folder)))}
        sides["now"] = child(["--child", device], ROOT)
        assert [asked(side) for side in sides.values()] == ["ready", "ready"]
        for case, views in CASES.items():
            found: dict[str, list[float]] = {name: [] for name in sides}
            for number in range(rounds):
                for name in [*sides][:: 1 if number % 2 else -1]:
                    found[name].append(float(asked(sides[name], str(views))))
            ratios = [now / before for before, now in zip(found["before"], found["now"], strict=True)]
            times = "; ".join(told(name, values) for name, values in found.items())
            print(f"{case:20} CPU ms a step: {times}; {told('now/before', ratios)}", flush=True)
        for side in sides.values():
            side.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description="The host's time for a step's data.")
    parser.add_argument("--against", metavar="REVISION", default="6b67546")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        answer(arguments.child)
    else:
        against(arguments.against, arguments.rounds, arguments.device)


if __name__ == "__main__":
    main()
