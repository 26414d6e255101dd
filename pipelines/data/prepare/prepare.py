"""prepare: write a source as shards and, last, a manifest. One Ray Data task writes one shard.

An interrupted run leaves `_progress/`: the source and settings (`job.json`), the index of archives, and a sidecar for
each finished shard. The next run with the same source and settings resumes there. Any other run is refused.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.errors import UserError
from infra.interruption import explained
from pipelines.config.prepare import MAX_MEGAPIXELS, PrepareConfig
from pipelines.data.images.stored import Stored
from pipelines.data.prepare.label_sets import LabelSets, class_counts
from pipelines.data.prepare.report import read_report, write_report
from pipelines.data.prepare.shard_plan import ShardJob, plan_shards, stored_form
from pipelines.data.prepare.shard_writer import BadImage, BadImages, Written, write_shard
from pipelines.data.prepare.source import TRAIN, Samples, Source
from pipelines.data.prepare.sources.index import PROGRESS
from pipelines.data.prepare.sources.parquet import Copy, ParquetRows
from pipelines.data.shards.manifest import MANIFEST, Manifest, check_shards, load_manifest
from pipelines.data.tasks.ray_tasks import run_tasks

if TYPE_CHECKING:
    from infra.storage import Store

__all__ = ["PrepareConfig", "Progress", "clear_progress", "find_prepared", "prepare"]

_JOB = f"{PROGRESS}/job.json"
_REJECTED = f"{PROGRESS}/rejected.json"
_COPIES = f"{PROGRESS}/copies"
_MOST_NAMED = 5
_REPAIR = "Repair or replace them: a data set needs images of every split and class"

_DEFAULTS = {"validation": 0.0, "max_megapixels": MAX_MEGAPIXELS, "pixels": "stored"}
"""Settings that a manifest may lack: an earlier version wrote it, or the setting has its default."""

Progress = Callable[[int, int, int, float], None]
"""Callback with (rows written, total rows, bytes written, seconds since this run read its first row, or 0)."""

Bad = dict[str, list[BadImage]]
"""Unusable images, by split."""


def find_prepared(source: Source, store: Store, config: PrepareConfig) -> Manifest | None:
    """Return the finished data set at `store` if it was made from this source with these settings.

    Return None if there is no finished data set.

    Raises:
        UserError: the data set there has another source or other settings, or its shards are incomplete.
    """
    if not store.exists(MANIFEST):
        return None
    manifest = load_manifest(store)
    config = _with_pixels_there(store, config)
    changed = _changed(_settings(manifest.stored, manifest.prepare), _settings(stored_form(source, config), config))
    # Some fingerprints depend on the held-out images. Archives are not listed only to say what differs.
    comparable = not (changed and source.listing) and not {"holdout", "seed"} & set(changed)
    other = comparable and not _same_source(source, store, manifest)
    if changed or other:
        raise UserError(
            f"{store.description} already holds data set {manifest.name} ({manifest.source}), made "
            f"{_difference(changed, other)}: choose another destination{'' if other else ' or the same settings'}"
        )
    check_shards(store, manifest)
    return manifest


def _with_pixels_there(store: Store, config: PrepareConfig) -> PrepareConfig:
    """Replace prepare.pixels = "auto" by what the data set at the destination was begun with, if there is one.

    Data sets of earlier versions have stored pixels. The same command must still find or finish them.
    """
    if config.pixels != "auto":
        return config
    if store.exists(MANIFEST):
        pixels = load_manifest(store).stored.pixels
    elif store.exists(_JOB):
        pixels = json.loads(store.read(_JOB)).get("settings", {}).get("pixels")
    else:
        return config
    return dataclasses.replace(config, pixels=pixels or "stored")


def _same_source(source: Source, store: Store, manifest: Manifest) -> bool:
    report = read_report(store) if source.listing else None
    untouched = report is not None and report.listing == source.listing  # known without listing archives again
    return untouched or manifest.fingerprint == source.fingerprint


def prepare(source: Source, store: Store, config: PrepareConfig, progress: Progress = lambda *_: None) -> Manifest:
    """Write the data set, or resume an interrupted run. The caller initialises Ray.

    A finished data set of the same source and settings is left unchanged.

    Raises:
        UserError: the destination cannot be written or holds another data set, or more than `config.max_bad_images`
            images do not decode.
    """
    store.check_access(write=True)
    manifest = find_prepared(source, store, config)
    if manifest is None:
        config = _with_pixels_there(store, config)
        stored = stored_form(source, config)
        _claim(source, store, stored, config)
        writing = _Writing(source, store, config, progress)
        with explained(writing.kept):
            written = writing.run()
        manifest = Manifest(
            class_names=source.class_names,
            stored=stored,
            source=source.description,
            fingerprint=source.fingerprint,
            prepare=_layout(config),
            splits=_rows(written),
            shards=tuple(each.shard for each in written),
            multi_label=source.label_sets is not None,
        )
        _commit(store, manifest)
    clear_progress(store)
    return manifest


def clear_progress(store: Store) -> None:
    """Remove the files that only an unfinished data set needs."""
    for path, _ in store.list(PROGRESS):
        store.delete(path)


def _layout(config: PrepareConfig) -> dict[str, float]:
    """Return the settings that, with the stored form, decide the content."""
    names = ("shard_mb", "min_shards", "holdout", "validation", "seed")
    settings = {name: getattr(config, name) for name in names}
    if config.max_megapixels != MAX_MEGAPIXELS:  # a data set has the key only if it was set
        settings["max_megapixels"] = config.max_megapixels
    return settings


def _settings(stored: Stored, layout: PrepareConfig | Mapping[str, float]) -> dict[str, object]:
    """Return all settings that decide the content, by name. `layout` is a manifest's `prepare` or a configuration."""
    form = {name: value for name, value in stored.fields.items() if name in ("form", "size", "quality", "pixels")}
    return {**_DEFAULTS, **form, **(_layout(layout) if isinstance(layout, PrepareConfig) else layout)}


def _changed(before: Mapping[str, object], now: Mapping[str, object]) -> dict[str, str]:
    """Return the settings that differ, each with a text that has both values."""
    return {
        name: f"prepare.{name} = {before.get(name)} there, {value} now"
        for name, value in now.items()
        if before.get(name) != value
    }


def _difference(changed: Mapping[str, str], other: bool) -> str:
    return "from another source" if other else f"with other settings ({'; '.join(changed.values())})"


def _rows(written: Sequence[Written]) -> dict[str, int]:
    rows: Counter[str] = Counter()
    for each in written:
        rows[each.shard.split] += each.shard.rows
    return dict(rows)


def _claim(source: Source, store: Store, stored: Stored, config: PrepareConfig) -> None:
    """Reserve the destination for this data set. Raise UserError if it is reserved for another."""
    settings = _settings(stored, config)
    job = {"source": source.description, "fingerprint": source.fingerprint, "settings": settings}
    try:
        store.write(_JOB, json.dumps(job).encode(), if_absent=True)
    except FileExistsError:
        present = json.loads(store.read(_JOB))
        changed = _changed({**_DEFAULTS, **present.get("settings", {})}, settings)
        other = present["fingerprint"] != source.fingerprint and not {"holdout", "seed"} & set(changed)
        if changed or other:
            raise UserError(
                f"{store.description} holds an unfinished data set ({present['source']}), made "
                f"{_difference(changed, other)}: finish it, remove it, or choose another destination"
            ) from None


def _commit(store: Store, manifest: Manifest) -> None:
    try:
        store.write(MANIFEST, manifest.to_json().encode(), if_absent=True)
    except FileExistsError:
        if load_manifest(store).digest != manifest.digest:
            raise UserError(
                f"another prepare has written {store.description} meanwhile: choose another destination"
            ) from None


class _Writing:
    """The writing of one data set's shards."""

    def __init__(self, source: Source, store: Store, config: PrepareConfig, progress: Progress) -> None:
        self.source, self.store, self.config, self.progress = source, store, config, progress
        self.splits = _readable(source, store)
        self.began: float | None = None  # monotonic seconds at which the first task of this run began to read
        self.rows = 0  # rows of the shards known to be finished

    def run(self) -> list[Written]:
        """Write all shards and the report, and return the shards in id order.

        If there are bad images, all of them are found first. Their shards are then written again without them.
        """
        bad = self._rejected()
        while True:
            jobs = self._plan(bad)
            written, found = self._write(jobs)
            if not found:
                break
            bad = {split: sorted([*bad.get(split, ()), *found.get(split, ())], key=_position) for split in self.splits}
            self._allow(bad)
            rejected = {split: [dataclasses.asdict(image) for image in images] for split, images in bad.items()}
            self.store.write(_REJECTED, json.dumps(rejected).encode())
        self._drop_others(jobs)
        write_report(self.store, self.source, bad, jobs, written, self._lost_classes(bad))
        return written

    def kept(self) -> str:
        """Return the line that is printed after Ctrl-C."""
        return f"interrupted: {self.rows:,} of {self.source.total_rows:,} images are kept: the same command resumes"

    def _plan(self, bad: Bad) -> list[ShardJob]:
        rejected = {split: [image.position for image in images] for split, images in bad.items()}
        return plan_shards(self.source, stored_form(self.source, self.config), self.config, rejected)

    def _rejected(self) -> Bad:
        """Return the bad images that an interrupted run found."""
        if not self.store.exists(_REJECTED):
            return {}
        rejected = json.loads(self.store.read(_REJECTED))
        bad = {split: [BadImage(**image) for image in images] for split, images in rejected.items()}
        self._allow(bad)
        return bad

    def _write(self, jobs: list[ShardJob]) -> tuple[list[Written], Bad]:
        """Write the shards that no earlier run finished. Return all shards in the order of `jobs`, and bad images."""
        done = _finished(self.store, jobs)
        bad: Bad = {}
        total = sum(len(job.positions) for job in jobs)
        self._report_progress(done, total)
        for result in _write_each(
            self.store, self.splits, self.source.label_sets, [job for job in jobs if job.path not in done]
        ):
            began = time.monotonic() - result["took"]
            self.began = began if self.began is None else min(began, self.began)
            if "bad" in result:
                bad.setdefault(result["split"], []).extend(BadImage(**image) for image in result["bad"])
            else:
                written = Written.from_json(result["written"])
                done[written.shard.path] = written
                self._report_progress(done, total)
        return [done[job.path] for job in jobs if job.path in done], bad

    def _report_progress(self, done: Mapping[str, Written], total: int) -> None:
        shards = [written.shard for written in done.values()]
        self.rows = sum(shard.rows for shard in shards)
        seconds = time.monotonic() - self.began if self.began is not None else 0.0
        self.progress(self.rows, total, sum(shard.bytes for shard in shards), seconds)

    def _allow(self, bad: Bad) -> None:
        """Raise UserError if more images are bad than allowed, or if a split or a training class would be empty."""
        for split, found in bad.items():
            rows = len(self.source.splits[split])
            if len(found) == rows:
                raise UserError(f"all {rows:,} images of split {split} cannot be used: {_named(found)}. {_REPAIR}")
        for name, members in self._emptied(bad, TRAIN).items():
            raise UserError(
                f"all {len(members):,} training images of class {name} cannot be used: {_named(members)}. {_REPAIR}"
            )
        images = sorted((image for each in bad.values() for image in each), key=lambda image: image.key)
        unusable = len(self.source.contents.unusable)  # rows of a table
        if len(images) + unusable <= self.config.max_bad_images:
            return
        raise UserError(
            f"{len(images):,} of {self.source.total_rows:,} images cannot be used: {_named(images)}. Repair or remove "
            f"them, empty {self.store.description}, and run again; or leave them out with --set "
            f"prepare.max_bad_images={len(images) + unusable}"
        )

    def _emptied(self, bad: Bad, split: str) -> dict[str, list[BadImage]]:
        """Return the classes of a split that have only bad images, with these images."""
        labels, sets = self.source.splits[split].labels, self.source.label_sets
        found = bad.get(split, [])
        of_bad = labels[[image.position for image in found]] if found else labels[:0]
        classes = len(self.source.class_names)
        counts, lost = (class_counts(each, classes, sets) for each in (labels, of_bad))
        classes_of = [[label] if sets is None else sets[label] for label in of_bad.tolist()]
        return {
            self.source.class_names[gone]: [image for image, its in zip(found, classes_of, strict=True) if gone in its]
            for gone in np.flatnonzero((lost == counts) & (lost > 0)).tolist()
        }

    def _lost_classes(self, bad: Bad) -> list[str]:
        """Return notes on classes without any usable image, per split."""
        notes = []
        for split in self.source.splits:
            if names := list(self._emptied(bad, split)):
                shown = ", ".join(names[:_MOST_NAMED]) + (", …" if len(names) > _MOST_NAMED else "")
                notes.append(f"left out: every {split} image of {len(names):,} of the classes ({shown})")
        return notes

    def _drop_others(self, jobs: Sequence[ShardJob]) -> None:
        """Remove shards of the first plan that `jobs`, a plan without the bad images, no longer has."""
        planned = {job.path for job in jobs}
        for job in self._plan({}):
            if job.path not in planned:
                self.store.delete(job.path)


def _named(images: Sequence[BadImage]) -> str:
    """List the first images with their reasons."""
    named = "; ".join(f"{image.key} ({image.reason})" for image in images[:_MOST_NAMED])
    return f"{named} and {len(images) - _MOST_NAMED:,} more" if len(images) > _MOST_NAMED else named


def _position(image: BadImage) -> int:
    return image.position


def _readable(source: Source, store: Store) -> dict[str, Samples]:
    """Return the splits in a form that allows reading single samples: images in Parquet are copied out first."""
    target = store.sub(_COPIES)
    copies = {
        copy.path: copy for rows in source.splits.values() if isinstance(rows, ParquetRows) for copy in rows.copies()
    }

    def make(copy: Copy) -> str:
        copy.make(target)
        return copy.path

    for _ in run_tasks(make, list(copies.values())):
        pass
    return {
        split: samples.copied(target) if isinstance(samples, ParquetRows) else samples
        for split, samples in source.splits.items()
    }


def _finished(store: Store, jobs: Sequence[ShardJob]) -> dict[str, Written]:
    """Return the finished shards: those whose sidecar matches the plan and the size of the file."""
    found = dict(store.list())
    finished = {}
    for job in jobs:
        if {job.path, job.sidecar, job.hashes} <= set(found):
            written = Written.from_json(store.read(job.sidecar))
            if written.job == job.digest and written.shard.bytes == found[job.path]:
                finished[job.path] = written
    return finished


def _write_each(
    store: Store, splits: Mapping[str, Samples], sets: LabelSets | None, jobs: list[ShardJob]
) -> Iterator[dict[str, Any]]:
    """Write shards as tasks. Yield {"written": sidecar} or {"split": …, "bad": images} for each, plus "took": seconds.

    The result of a shard with bad images has "split" and "bad"; that of any other shard has "written".
    """
    if not jobs:
        return iter(())
    import ray

    shared = {split: ray.put((samples, sets)) for split, samples in splits.items()}  # once, for all tasks of a node

    def write(job: ShardJob) -> dict[str, Any]:
        began = time.monotonic()
        result: dict[str, Any]
        try:
            written = write_shard(store, job, *ray.get(shared[job.split]))
            result = {"written": written.to_json().decode()}
        except BadImages as error:
            result = {"split": job.split, "bad": [dataclasses.asdict(image) for image in error.images]}
        return {**result, "took": time.monotonic() - began}

    return run_tasks(write, jobs)
