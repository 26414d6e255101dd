"""Quality of the mixing of batches, against a perfect shuffle and other loaders: `python -m benchmarks.shuffle`.

Orders are simulated; no image is read. The source has a folder per class, like ImageNet. Our order is computed by the
plan itself (`plan_items`, `item_order`) over shards as `prepare` writes them. For comparison it is also computed over
shards in the source's order, which `prepare` never writes. Each order is cut into batches. Every figure is divided by
that of a perfect shuffle, so that 1 is perfect:

classes     distinct classes in a batch.
chi2        distance of the class counts in a batch from the data set's (chi-square).
source      pairs of neighbours in the source that are in the same batch.
again       pairs in a batch that also were in one batch in the previous epoch; also printed in %.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.synthetic import manifest_of
from pipelines.data.order.ledger import Ledger
from pipelines.data.order.plan import Plan, item_order, plan_items, rows_within
from pipelines.data.order.rng import Purpose, permutation, stream

Ints = npt.NDArray[np.int64]
Order = Callable[[int], Ints]
"""Function from an epoch to source indices in the order of training."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Properties of a data set that its order depends on."""

    name: str
    images: int
    classes: int
    image_bytes: int  # stored
    group_rows: int  # rows of a row group, as prepare writes them
    item_rows: int  # rows of an item with `data.task_mb` = 32
    block_rows: int
    batch: int
    wds_shard: int  # samples of a WebDataset shard

    @property
    def labels(self) -> Ints:
        """Return the label of each source index: folder after folder."""
        return np.arange(self.images) * self.classes // self.images


SCALES = (
    Scale(
        name="ImageNet: 1,281,167 images, 1,000 classes, 224 pixels",
        images=1_281_167,
        classes=1000,
        image_bytes=110_000,
        group_rows=58,
        item_rows=rows_within(32 * 2**20, 224, least=64, most=8192),
        block_rows=27,
        batch=256,
        wds_shard=1_000,
    ),
    Scale(
        name="CIFAR-10: 50,000 images, 10 classes, 32 pixels",
        images=50_000,
        classes=10,
        image_bytes=3_072,
        group_rows=195,
        item_rows=8192,
        block_rows=1024,
        batch=128,
        wds_shard=1_000,
    ),
)


def perfect(scale: Scale) -> Order:
    return lambda epoch: np.random.default_rng([1, epoch]).permutation(scale.images)


def random_sampler(scale: Scale) -> Order:
    import torch
    from torch.utils.data import RandomSampler

    generator = torch.Generator().manual_seed(0)
    sampler = RandomSampler(range(scale.images), generator=generator)
    return lambda _: np.fromiter(sampler, dtype=np.int64, count=scale.images)


def unshuffled(scale: Scale) -> Order:
    return lambda _: np.arange(scale.images)


def web_dataset(scale: Scale, *, buffer: int = 10_000, by_class: bool = False) -> Order:
    """Return WebDataset's order: shuffled shards each epoch, then a buffer from which samples are drawn at random."""
    written = np.arange(scale.images) if by_class else np.random.default_rng(2).permutation(scale.images)
    shards = np.array_split(written, -(-scale.images // scale.wds_shard))

    def order(epoch: int) -> Ints:
        rng = np.random.default_rng([3, epoch])
        return drawn(np.concatenate([shards[index] for index in rng.permutation(len(shards))]), buffer, rng)

    return order


def drawn(samples: Ints, buffer: int, rng: np.random.Generator) -> Ints:
    """Pass a stream through a shuffle buffer: the next sample of the stream replaces a drawn one."""
    held = samples[:buffer].copy()
    out = np.empty_like(samples)
    places = rng.integers(0, len(held), len(samples) - len(held))
    for index, place in enumerate(places.tolist()):
        out[index] = held[place]
        held[place] = samples[buffer + index]
    out[len(places) :] = rng.permutation(held)
    return out


def ours(scale: Scale, *, tasks: int = 1, item_rows: int = 0, by_class: bool = False) -> Order:
    """Return the plan's order, with blocks of `tasks` tasks at once; `by_class`: as if prepare did not shuffle."""
    shuffled = permutation(stream(0, Purpose.SHARDS, 0), scale.images)
    source = np.arange(scale.images) if by_class else shuffled
    manifest = manifest_of(
        scale.images, image_bytes=scale.image_bytes, group_rows=scale.group_rows, shard_mb=128
    )  # fmt: skip
    groups_before = np.concatenate([[0], np.cumsum([len(shard.groups) for shard in manifest.shards])])
    plan = Plan(
        manifest=manifest,
        split="train",
        seed=0,
        total_samples=1000 * scale.images,
        item_rows=item_rows or scale.item_rows,
        sizes=((0, 224),),
    )

    def order(epoch: int) -> Ints:
        ledger = Ledger(scale.images)
        ledger.complete = epoch
        items = []
        for item in plan_items(plan, ledger):
            if item.epoch > epoch:
                break
            firsts = [(groups_before[shard] + group) * scale.group_rows for shard, group in item.pieces]
            ids = np.concatenate([np.arange(at, min(at + scale.group_rows, scale.images)) for at in firsts])
            items.append(ids[item_order(plan.seed, epoch, ids)])
        return source[np.concatenate([*interleaved(items, tasks, scale.block_rows, np.random.default_rng([4, epoch]))])]

    return order


def interleaved(items: list[Ints], tasks: int, block_rows: int, rng: np.random.Generator) -> Iterator[Ints]:
    """Yield blocks of items; `tasks` items are in progress at a time, all at about the same speed."""
    waiting = iter(items)
    running = [blocks(item, block_rows) for _, item in zip(range(tasks), waiting, strict=False)]
    while running:
        place = int(rng.integers(len(running)))
        block = next(running[place], None)
        if block is not None:
            yield block
            continue
        following = next(waiting, None)
        if following is None:
            running.pop(place)
        else:
            running[place] = blocks(following, block_rows)


def blocks(rows: Ints, size: int) -> Iterator[Ints]:
    return iter([rows[begin : begin + size] for begin in range(0, len(rows), size)])


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Figures of one order, over some epochs; 1 = the expectation for a perfect shuffle."""

    classes: float
    chi2: float
    source: float
    again: float
    again_percent: float


def mixing(scale: Scale, order: Order, epochs: int) -> Mixing:
    """Measure the mixing of an order, in whole batches."""
    count = scale.images // scale.batch * scale.batch
    labels, found = scale.labels, []
    before: Ints | None = None
    pairs = (scale.batch - 1) / (scale.images - 1)  # probability that two samples are in one batch
    for epoch in range(epochs):
        taken = order(epoch)
        assert len(np.unique(taken)) == scale.images
        batch_of = np.empty(scale.images, dtype=np.int64)
        batch_of[taken] = np.arange(scale.images) // scale.batch
        inside = batch_of[:-1] == batch_of[1:]
        again = _repeated(batch_of, before, taken[:count].reshape(-1, scale.batch)) if before is not None else np.nan
        before = batch_of
        rows = labels[taken[:count]].reshape(-1, scale.batch)
        found.append((*_classes(rows, labels), float(inside.mean()) / pairs, again / pairs, again * 100))
    classes, chi2, source, again, percent = np.nanmean(np.array(found), axis=0)
    return Mixing(classes=classes, chi2=chi2, source=source, again=again, again_percent=percent)


def _classes(rows: Ints, labels: Ints) -> tuple[float, float]:
    """Return (distinct classes, chi-square) of batches, both divided by their expectation without replacement."""
    batches, size = rows.shape
    sizes = np.bincount(labels)
    total, classes = int(sizes.sum()), len(sizes)
    keys, counts = np.unique(rows + np.arange(batches)[:, None] * classes, return_counts=True)
    absent = np.exp(_log_choose(total - sizes, size) - _log_choose(np.array([total]), size))
    expected_of = size * sizes / total
    # sum (n - e)^2 / e = sum n^2 / e - size
    chi2 = (counts**2 / expected_of[keys % classes]).sum() / batches - size
    expected_chi2 = (classes - 1) * (total - size) / (total - 1)
    return len(keys) / batches / float((1 - absent).sum()), float(chi2 / expected_chi2)


def _log_choose(n: Ints, k: int) -> npt.NDArray[np.float64]:
    """Return log(n choose k), except for a term that depends on k only."""
    steps = np.arange(k)
    return np.log(np.maximum(n[:, None] - steps, 1e-9)).sum(axis=1)


def _repeated(batch_of: Ints, before: Ints, batches: Ints) -> float:
    """Return the fraction of the pairs in a batch that were in one batch in the previous epoch."""
    count, size = batches.shape
    span = int(before.max()) + 1
    _, together = np.unique(before[batches] + np.arange(count)[:, None] * span, return_counts=True)
    return float((together * (together - 1)).sum() / (count * size * (size - 1)))


def orders(scale: Scale) -> dict[str, Order]:
    """Return the orders to measure, by their names in the table."""
    return {
        "perfect": perfect(scale),
        "torch RandomSampler": random_sampler(scale),
        "ours, 16 tasks at once": ours(scale, tasks=16),
        "ours, 2 tasks at once": ours(scale, tasks=2),
        "ours, in order": ours(scale),
        "ours, in order, task_mb = 128": ours(scale, item_rows=min(4 * scale.item_rows, 8192)),
        "WebDataset, shuffled shards, buffer 10k": web_dataset(scale),
        "WebDataset, shards by class, buffer 10k": web_dataset(scale, by_class=True),
        "ours, 16 tasks, if prepare did not shuffle": ours(scale, tasks=16, by_class=True),
        "no shuffle": unshuffled(scale),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    written: dict[str, dict[str, dict[str, float]]] = {}
    for scale in SCALES:
        print(f"\n{scale.name}; batches of {scale.batch}; {args.epochs} epochs")
        print(f"{'':44}{'classes':>9}{'chi2':>8}{'source':>9}{'again':>10}{'':>9}")
        for name, order in orders(scale).items():
            found = mixing(scale, order, args.epochs)
            print(
                f"{name:44}{found.classes:9.3f}{found.chi2:8.2f}{found.source:9.2f}{found.again:10.1f}"
                f"{found.again_percent:8.3f}%",
                flush=True,
            )
            written.setdefault(scale.name, {})[name] = vars(found)
    if args.json:
        args.json.write_text(json.dumps(written, indent=1))


if __name__ == "__main__":
    main()
