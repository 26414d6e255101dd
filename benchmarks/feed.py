"""Host time to prepare the batch of a step, against an older revision: `python -m benchmarks.feed --against 6b67546`.

Blocks come from memory, so this measures only `RankBatches`: how it cuts and joins blocks to a batch and, on a GPU,
copies the batch. A process with the code of the older revision and one with the current code take turns, round by
round. The ratio is taken within a round; its median and range are printed.
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
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    sys.path[0] = os.environ.get("RESNET_RAY_TREE") or str(ROOT)
    import benchmarks

    benchmarks.__path__.append(str(ROOT / "benchmarks"))  # an older tree does not have all benchmarks

BATCH, SIZE, BLOCK_ROWS = 256, 224, 106
STEPS, WARMUP = 10, 3  # per case and round
CASES = {"host crops": 1, "host crops, 2 each": 2, "JPEGs on the device": 0}
"""Contents of the blocks: the number of crops of each sample that data tasks made; 0 = stored JPEGs."""
JPEG_BATCH, JPEG_STEPS = 32, 2  # fewer, because a CPU is slow with them


def blocks_of(crops: int) -> list[dict[str, Any]]:
    """Return a few blocks, with too many bytes for the processor's caches."""
    from benchmarks.blocks import detailed, host_block, jpeg_block

    if not crops:
        return [jpeg_block(range(64), SIZE, [0] * 64, detailed)]
    rows = BLOCK_ROWS // crops
    return [host_block(range(first, first + rows), SIZE, [0] * rows, crops) for first in range(0, 6 * rows, rows)]


def prepared_steps(blocks: list[dict[str, Any]], crops: int, device_name: str) -> list[float]:
    """Return the CPU milliseconds of the training thread for each step's batch, when all blocks are ready.

    Wall time would also count other work of the machine.
    """
    import torch

    from benchmarks.blocks import renumbered

    try:
        from pipelines.training.batches import RankBatches, Steps
    except ModuleNotFoundError:  # a revision before the folders of pipelines
        former: Any = import_module("pipelines.feed")
        RankBatches, Steps = former.Feed, former.Steps
    device = torch.device(device_name)
    steps, batch = (STEPS, BATCH) if crops or device.type == "cuda" else (JPEG_STEPS, JPEG_BATCH)
    repeats = max(1, crops)
    rows = (steps + WARMUP) * batch // repeats
    cut = Steps(
        total_samples=rows,
        total_steps=steps + WARMUP,
        global_batch_size=batch,
        world_size=1,
        microbatch_size=0,
        repeats=repeats,
    )
    stream = RankBatches(renumbered(blocks, rows), cut, device)
    batches = getattr(stream, "from_step", None) or stream.shares  # as above
    batches = batches(stream.base())
    taken = []
    while True:
        time.sleep(0.02)  # until the reading thread has its blocks
        began = time.thread_time()
        made = next(batches, None)
        if made is None:
            return taken[WARMUP:]
        taken.append(1000 * (time.thread_time() - began))


def answer(device_name: str) -> None:
    """Read cases from stdin; prepare the steps of each and print their median time."""
    import torch

    from resnet_core.compute import configure
    from resnet_core.config import ComputeConfig

    configure(ComputeConfig(precision="fp32", compile=False), torch.device(device_name))
    blocks = {crops: blocks_of(crops) for crops in CASES.values()}
    print("ready", flush=True)
    for line in sys.stdin:
        print(median(prepared_steps(blocks[int(line)], int(line), device_name)), flush=True)


def child(arguments: list[str], tree: Path) -> subprocess.Popen[str]:
    """Start a process with the code in `tree`."""
    environment = {**os.environ, "RESNET_RAY_TREE": str(tree)}
    command = [sys.executable, str(ROOT / "benchmarks" / "feed.py"), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, cwd=tree, stdin=pipe, stdout=pipe, text=True)


def asked(process: subprocess.Popen[str], question: str = "") -> str:
    """Send a case if there is one, and return the process's next line."""
    assert process.stdin and process.stdout
    if question:
        process.stdin.write(question + "\n")
        process.stdin.flush()
    return process.stdout.readline().strip()


def unpacked(revision: str, folder: Path) -> Path:
    """Unpack the tree of a revision of this repository into `folder`."""
    packed = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def told(name: str, values: list[float]) -> str:
    return f"{name} {median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def against(revision: str, rounds: int, device: str) -> None:
    """Print the milliseconds per step of both revisions, and their ratios."""
    print(f"{BATCH} images of {SIZE} a step, blocks of {BLOCK_ROWS} images, {device}, {rounds} rounds", flush=True)
    with tempfile.TemporaryDirectory(prefix="resnet-ray-feed-") as folder:
        sides = {"before": child(["--child", device], unpacked(revision, Path(folder)))}
        sides["now"] = child(["--child", device], ROOT)
        assert [asked(side) for side in sides.values()] == ["ready", "ready"]
        for case, crops in CASES.items():
            found: dict[str, list[float]] = {name: [] for name in sides}
            for number in range(rounds):
                for name in [*sides][:: 1 if number % 2 else -1]:
                    found[name].append(float(asked(sides[name], str(crops))))
            ratios = [now / before for before, now in zip(found["before"], found["now"], strict=True)]
            times = "; ".join(told(name, values) for name, values in found.items())
            print(f"{case:20} CPU ms a step: {times}; {told('now/before', ratios)}", flush=True)
        for side in sides.values():
            side.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the host time to prepare the batch of a step.")
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
