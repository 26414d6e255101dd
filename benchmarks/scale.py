"""Cost of the plan, the ledger and the manifest at 10^6 to 10^9 images: `python -m benchmarks.scale`.

No image is read. Every size runs in a new process and measures:

- a manifest of 110 kB JPEGs: 58 in a row group, shards of 128 MiB (1 GiB from 10^8 images on);
- the plan of one epoch at 224 pixels;
- a ledger half-way through an epoch, with a random half of the row groups complete and 64 items in part;
- the ledger's checkpoint, and marking the samples of a step.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.synthetic import manifest_of
from pipelines.data.order.ledger import Ledger
from pipelines.data.order.plan import Plan, plan_items, rows_within
from pipelines.data.shards.manifest import Manifest

GROUP_ROWS = 58
ITEM_ROWS = rows_within(32 * 2**20, 224, least=64, most=8192)
BATCHES = (256, 1024, 4096)
PARSED = 10**8  # images; the bytes of a larger manifest are estimated, without writing or parsing it


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result


def peak_mb() -> float:
    """Return the peak memory of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def half_done(plan: Plan) -> Ledger:
    """Return the ledger of a run in the middle of its first epoch: complete row groups, and some partial ones."""
    groups = plan.manifest.columns.groups_of("train")[2].astype(np.int64)
    first = np.cumsum(groups) - groups
    rng = np.random.default_rng(0)
    order = rng.permutation(len(groups))
    ledger = Ledger(int(groups.sum()))
    done = np.sort(order[: len(groups) // 2])
    for some in np.array_split(done, max(1, len(done) // 20_000)):
        rows = groups[some]
        ledger.mark(0, np.repeat(first[some] - (np.cumsum(rows) - rows), rows) + np.arange(int(rows.sum())))
    for group in order[len(done) : len(done) + 64 * 4]:
        rows = rng.permutation(int(groups[group]))[: int(groups[group]) // 2]
        ledger.mark(0, first[group] + rows)
    return ledger


def measure(images: int) -> dict[str, float]:
    """Measure one size and return its column of the table."""
    shard_mb = 128 if images < 10**8 else 1024
    build_s, manifest = timed(
        lambda: manifest_of(images, image_bytes=110_000, group_rows=GROUP_ROWS, shard_mb=shard_mb)
    )
    found: dict[str, float] = {"images": images, "shards": len(manifest.shards), "build_s": build_s}
    found["manifest_mb"] = manifest.columns.nbytes / 1e6
    found["manifest_peak_mb"] = peak_mb()
    plan = Plan(
        manifest=manifest, split="train", seed=0, total_samples=90 * images, item_rows=ITEM_ROWS, sizes=((0, 224),)
    )  # fmt: skip
    found |= plan_times(plan, Ledger(images))
    found["plan_peak_mb"] = peak_mb()
    ledger = half_done(plan)
    found["ledger_mb"] = ledger.nbytes / 1e6
    found["store_s"], arrays = timed(ledger.to_arrays)
    found["checkpoint_kb"] = sum(array.nbytes for array in arrays.values()) / 1e3
    found["restore_s"], again = timed(lambda: Ledger.from_arrays(arrays))
    assert again.count(0) == ledger.count(0)
    found["resume_s"] = timed(lambda: next(plan_items(plan, again)))[0]
    for batch in BATCHES:
        found[f"mark_{batch}_us"] = mark_us(ledger, batch)
    found["peak_mb"] = peak_mb()
    if images <= PARSED:
        found |= manifest_text(manifest)
    else:
        found["json_mb"] = json_mb(manifest)
    return found


def plan_times(plan: Plan, ledger: Ledger) -> dict[str, float]:
    """Return the seconds to the first item and to the last item of the first epoch, and the number of items."""
    began = time.perf_counter()
    items = plan_items(plan, ledger)
    next(items)
    first_s = time.perf_counter() - began
    count = 1
    for item in items:
        if item.epoch:
            break
        count += 1
    return {"first_item_s": first_s, "epoch_s": time.perf_counter() - began, "items": count}


def mark_us(ledger: Ledger, batch: int) -> float:
    """Return the median microseconds to mark a step's samples, which come from a few row groups."""
    rng = np.random.default_rng(batch)
    took = []
    for _ in range(50):
        begins = rng.integers(0, ledger.rows - 200, -(-batch // 100))
        ordinals = np.unique((begins[:, None] + np.arange(200)).ravel())
        fresh = rng.permutation(ordinals[~ledger.marked(0, ordinals)])[:batch]
        if len(fresh) > batch // 4:
            took.append(timed(lambda fresh=fresh: ledger.mark(0, fresh))[0] * batch / len(fresh))
    return median(took) * 1e6


def json_mb(manifest: Manifest) -> float:
    """Estimate the size of manifest.json, MB, from some of its shards."""
    sizes = [len(json.dumps(manifest.shards[index].to_record(), separators=(",", ":"))) for index in range(100)]
    return float(np.mean(sizes)) * len(manifest.shards) / 1e6


def manifest_text(manifest: Manifest) -> dict[str, float]:
    """Return the size of manifest.json, MB, and the seconds to parse it."""
    text = manifest.to_json().encode()
    parse_s, again = timed(lambda: Manifest.from_json(text))
    assert again.columns == manifest.columns
    return {"json_mb": len(text) / 1e6, "parse_s": parse_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=float, nargs="+", default=[1e6, 1.281167e6, 1e8, 1e9])
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--one", action="store_true", help="measure one size in this process and print JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(int(args.images[0]))))
        return
    command = [sys.executable, "-m", "benchmarks.scale", "--one", "--images"]
    results = []
    for images in args.images:
        done = subprocess.run([*command, str(images)], check=True, capture_output=True, text=True)
        results.append(json.loads(done.stdout))
        print(f"{int(images):,} images: " + ", ".join(f"{key} {value:,.4g}" for key, value in results[-1].items()))
    keys = dict.fromkeys(key for result in results for key in result)
    print("\n| | " + " | ".join(f"{result['images']:,}" for result in results) + " |")
    print("| --- |" + " --- |" * len(results))
    for key in keys:
        print(f"| {key} | " + " | ".join(f"{result[key]:,.4g}" if key in result else "" for result in results) + " |")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
