"""prepare: a source becomes shards and, last, a manifest. One Ray Data task writes one shard.

An interrupted run leaves `_progress/`: what is being made (`job.json`), the index of archives, and a record for each
finished shard. The next run of the same source and settings goes on from there; any other is refused.
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
from pipelines.data.layout import ShardJob, plan_shards, stored_form
from pipelines.data.manifest import MANIFEST, Manifest, Stored, check_shards, load_manifest
from pipelines.data.prepare_config import MAX_MEGAPIXELS, PrepareConfig
from pipelines.data.report import read_report, write_report
from pipelines.data.samples import TRAIN, Samples, Source
from pipelines.data.shard_file import BadImage, BadImages, Written, write_shard
from pipelines.data.sources.index import PROGRESS
from pipelines.data.sources.parquet import Copy, ParquetRows
from pipelines.data.spread import spread

if TYPE_CHECKING:
    from infra.storage import Store

__all__ = ["PrepareConfig", "Progress", "clear_progress", "find_prepared", "prepare"]

_JOB = f"{PROGRESS}/job.json"
_REJECTED = f"{PROGRESS}/rejected.json"
_COPIES = f"{PROGRESS}/copies"
_REASONS_TOLD = 5
_REPAIR = "Repair or replace them: a data set needs images of every split and class"

_UNSAID = {"validation": 0.0, "max_megapixels": MAX_MEGAPIXELS}
"""What settings are where a manifest does not say them: an earlier version made it, or they have their default."""

Progress = Callable[[int, int, int, float], None]
"""Called with (rows written, rows in all, bytes written, seconds since the first row of this run was read or 0)."""

Bad = dict[str, list[BadImage]]
"""Images that cannot be used, by split."""


def find_prepared(source: Source, store: Store, config: PrepareConfig) -> Manifest | None:
    """The finished data set at `store`, if there is one, made from this source with these settings.

    Raises:
        UserError: there is a data set of another source or other settings, or one whose shards are not whole.
    """
    if not store.exists(MANIFEST):
        return None
    manifest = load_manifest(store)
    changed = _changed(_settings(manifest.stored, manifest.prepare), _settings(stored_form(source, config), config))
    # What is held out is part of some fingerprints, and archives are not listed only to say what differs.
    comparable = not (changed and source.listing) and not {"holdout", "seed"} & set(changed)
    other = comparable and not _same_source(source, store, manifest)
    if changed or other:
        raise UserError(
            f"{store.description} already holds data set {manifest.name} ({manifest.source}), made "
            f"{_how(changed, other)}: choose another destination{'' if other else ' or the same settings'}"
        )
    check_shards(store, manifest)
    return manifest


def _same_source(source: Source, store: Store, manifest: Manifest) -> bool:
    report = read_report(store) if source.listing else None
    untouched = report is not None and report.listing == source.listing  # found without looking into archives again
    return untouched or manifest.fingerprint == source.fingerprint


def prepare(source: Source, store: Store, config: PrepareConfig, progress: Progress = lambda *_: None) -> Manifest:
    """Write the data set, or what an interrupted run left of it. Ray is initialised by the caller.

    A finished data set of the same source and settings is left as it is.

    Raises:
        UserError: the destination cannot be written or holds something else, or more images do not decode than
            `config.max_bad_images`.
    """
    store.check_access(write=True)
    manifest = find_prepared(source, store, config)
    if manifest is None:
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
        )
        _commit(store, manifest)
    clear_progress(store)
    return manifest


def clear_progress(store: Store) -> None:
    """Remove what only an unfinished data set needs."""
    for path, _ in store.list(PROGRESS):
        store.delete(path)


def _layout(config: PrepareConfig) -> dict[str, float]:
    """The settings that, with the stored form, decide the content."""
    names = ("shard_mb", "min_shards", "holdout", "validation", "seed")
    settings = {name: getattr(config, name) for name in names}
    if config.max_megapixels != MAX_MEGAPIXELS:  # data sets have the key only where it was set
        settings["max_megapixels"] = config.max_megapixels
    return settings


def _settings(stored: Stored, layout: PrepareConfig | Mapping[str, float]) -> dict[str, object]:
    """The settings that decide the content, by name; `layout` is what a manifest says or a configuration."""
    form = {"form": stored.form, "size": stored.size, "quality": stored.quality}
    return {**form, **_UNSAID, **(_layout(layout) if isinstance(layout, PrepareConfig) else layout)}


def _changed(before: Mapping[str, object], now: Mapping[str, object]) -> dict[str, str]:
    """The settings that differ, each with both values."""
    return {
        name: f"prepare.{name} = {before.get(name)} there, {value} now"
        for name, value in now.items()
        if before.get(name) != value
    }


def _how(changed: Mapping[str, str], other: bool) -> str:
    return "from another source" if other else f"with other settings ({'; '.join(changed.values())})"


def _rows(written: Sequence[Written]) -> dict[str, int]:
    rows: Counter[str] = Counter()
    for each in written:
        rows[each.shard.split] += each.shard.rows
    return dict(rows)


def _claim(source: Source, store: Store, stored: Stored, config: PrepareConfig) -> None:
    """Reserve the destination for this data set, or find that it is reserved for it already."""
    settings = _settings(stored, config)
    job = {"source": source.description, "fingerprint": source.fingerprint, "settings": settings}
    try:
        store.write(_JOB, json.dumps(job).encode(), if_absent=True)
    except FileExistsError:
        present = json.loads(store.read(_JOB))
        changed = _changed(present.get("settings", {}), settings)
        other = present["fingerprint"] != source.fingerprint and not {"holdout", "seed"} & set(changed)
        if changed or other:
            raise UserError(
                f"{store.description} holds an unfinished data set ({present['source']}), made {_how(changed, other)}: "
                "finish it, remove it, or choose another destination"
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
    """The shards of one data set."""

    def __init__(self, source: Source, store: Store, config: PrepareConfig, progress: Progress) -> None:
        self.source, self.store, self.config, self.progress = source, store, config, progress
        self.splits = _readable(source, store)
        self.began: float | None = None  # monotonic seconds: when the first task of this run began to read
        self.rows = 0  # written, as far as is known here

    def run(self) -> list[Written]:
        """All shards in id order, and the report beside them.

        Where images are bad, all of them are found first; then the shards that they were in are written without them.
        """
        bad = self._rejected()
        while True:
            jobs = self._plan(bad)
            written, found = self._write(jobs)
            if not found:
                break
            bad = {split: sorted([*bad.get(split, ()), *found.get(split, ())], key=_place) for split in self.splits}
            self._allow(bad)
            record = {split: [dataclasses.asdict(image) for image in images] for split, images in bad.items()}
            self.store.write(_REJECTED, json.dumps(record).encode())
        self._drop_others(jobs)
        write_report(self.store, self.source, bad, jobs, written, self._lost_classes(bad))
        return written

    def kept(self) -> str:
        """The line after a Ctrl-C."""
        return f"interrupted: {self.rows:,} of {self.source.total_rows:,} images are kept: the same command resumes"

    def _plan(self, bad: Bad) -> list[ShardJob]:
        rejected = {split: [image.position for image in images] for split, images in bad.items()}
        return plan_shards(self.source, stored_form(self.source, self.config), self.config, rejected)

    def _rejected(self) -> Bad:
        """What an interrupted run has found to be bad."""
        if not self.store.exists(_REJECTED):
            return {}
        record = json.loads(self.store.read(_REJECTED))
        bad = {split: [BadImage(**image) for image in images] for split, images in record.items()}
        self._allow(bad)
        return bad

    def _write(self, jobs: list[ShardJob]) -> tuple[list[Written], Bad]:
        """Shards in the order of `jobs`: those that an earlier run finished, the others as they get done."""
        done = _finished(self.store, jobs)
        bad: Bad = {}
        total = sum(len(job.positions) for job in jobs)
        self._tell(done, total)
        for result in _write_each(self.store, self.splits, [job for job in jobs if job.path not in done]):
            began = time.monotonic() - result["took"]
            self.began = began if self.began is None else min(began, self.began)
            if "bad" in result:
                bad.setdefault(result["split"], []).extend(BadImage(**image) for image in result["bad"])
            else:
                written = Written.from_json(result["written"])
                done[written.shard.path] = written
                self._tell(done, total)
        return [done[job.path] for job in jobs if job.path in done], bad

    def _tell(self, done: Mapping[str, Written], total: int) -> None:
        shards = [written.shard for written in done.values()]
        self.rows = sum(shard.rows for shard in shards)
        seconds = time.monotonic() - self.began if self.began is not None else 0.0
        self.progress(self.rows, total, sum(shard.bytes for shard in shards), seconds)

    def _allow(self, bad: Bad) -> None:
        """Raise UserError where more images are bad than may be left out, or a split or a class would be empty."""
        for split, found in bad.items():
            rows = len(self.source.splits[split])
            if len(found) == rows:
                raise UserError(f"all {rows:,} images of split {split} cannot be used: {_told(found)}. {_REPAIR}")
        for name, members in self._emptied(bad, TRAIN).items():
            raise UserError(
                f"all {len(members):,} training images of class {name} cannot be used: {_told(members)}. {_REPAIR}"
            )
        images = sorted((image for each in bad.values() for image in each), key=lambda image: image.key)
        if len(images) <= self.config.max_bad_images:
            return
        raise UserError(
            f"{len(images):,} of {self.source.total_rows:,} images cannot be used: {_told(images)}. Repair or remove "
            f"them, empty {self.store.description}, and run again; or leave them out with --set "
            f"prepare.max_bad_images={len(images)}"
        )

    def _emptied(self, bad: Bad, split: str) -> dict[str, list[BadImage]]:
        """The classes of a split of which no image can be used, with their images."""
        labels = self.source.splits[split].labels
        found = bad.get(split, [])
        of_bad = labels[[image.position for image in found]] if found else labels[:0]
        counts, lost = (np.bincount(each, minlength=len(self.source.class_names)) for each in (labels, of_bad))
        return {
            self.source.class_names[label]: [image for image, its in zip(found, of_bad, strict=True) if its == label]
            for label in np.flatnonzero((lost == counts) & (lost > 0)).tolist()
        }

    def _lost_classes(self, bad: Bad) -> list[str]:
        """Notes on held-out splits that have no image left of a class."""
        notes = []
        for split in self.source.splits:
            if names := list(self._emptied(bad, split)):
                told = ", ".join(names[:_REASONS_TOLD]) + (", …" if len(names) > _REASONS_TOLD else "")
                notes.append(f"left out: every {split} image of {len(names):,} of the classes ({told})")
        return notes

    def _drop_others(self, jobs: Sequence[ShardJob]) -> None:
        """Remove shards that were written before so many images were left out that there are fewer."""
        planned = {job.path for job in jobs}
        for job in self._plan({}):
            if job.path not in planned:
                self.store.delete(job.path)


def _told(images: Sequence[BadImage]) -> str:
    """The first of them with their reasons."""
    told = "; ".join(f"{image.key} ({image.reason})" for image in images[:_REASONS_TOLD])
    return f"{told} and {len(images) - _REASONS_TOLD:,} more" if len(images) > _REASONS_TOLD else told


def _place(image: BadImage) -> int:
    return image.position


def _readable(source: Source, store: Store) -> dict[str, Samples]:
    """The splits, such that single samples can be read: images in Parquet are copied out first."""
    target = store.sub(_COPIES)
    copies = {
        copy.path: copy for rows in source.splits.values() if isinstance(rows, ParquetRows) for copy in rows.copies()
    }

    def make(copy: Copy) -> str:
        copy.make(target)
        return copy.path

    for _ in spread(make, list(copies.values())):
        pass
    return {
        split: samples.copied(target) if isinstance(samples, ParquetRows) else samples
        for split, samples in source.splits.items()
    }


def _finished(store: Store, jobs: Sequence[ShardJob]) -> dict[str, Written]:
    """Shards that have their record, hold what is planned, and have the size that the record says."""
    found = dict(store.list())
    finished = {}
    for job in jobs:
        if {job.path, job.sidecar, job.hashes} <= set(found):
            written = Written.from_json(store.read(job.sidecar))
            if written.job == job.digest and written.shard.bytes == found[job.path]:
                finished[job.path] = written
    return finished


def _write_each(store: Store, splits: Mapping[str, Samples], jobs: list[ShardJob]) -> Iterator[dict[str, Any]]:
    """Write shards as tasks; yields {"written": record} of a shard or {"bad": its bad images}, each with "took": s."""
    if not jobs:
        return iter(())
    import ray

    samples = {split: ray.put(samples) for split, samples in splits.items()}  # once, for all tasks of a node

    def write(job: ShardJob) -> dict[str, Any]:
        began = time.monotonic()
        result: dict[str, Any]
        try:
            written = write_shard(store, job, ray.get(samples[job.split]))
            result = {"written": written.to_json().decode()}
        except BadImages as error:
            result = {"split": job.split, "bad": [dataclasses.asdict(image) for image in error.images]}
        return {**result, "took": time.monotonic() - began}

    return spread(write, jobs)
