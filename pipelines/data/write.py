"""prepare: a source becomes shards and, last, a manifest. One Ray Data task writes one shard.

An interrupted run leaves `_progress/`: what is being made (`job.json`) and a record for each finished shard. The next
run of the same source and settings goes on from there; any other is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from infra.errors import UserError
from pipelines.data.layout import PROGRESS, BadImages, PrepareConfig, ShardJob, plan_shards, stored_form, write_shard
from pipelines.data.manifest import MANIFEST, Manifest, Shard, Stored, check_shards, load_manifest
from pipelines.data.quiet import quiet
from pipelines.data.samples import Source

if TYPE_CHECKING:
    from infra.storage import Store

__all__ = ["PrepareConfig", "Progress", "find_prepared", "prepare"]

_JOB = f"{PROGRESS}/job.json"
_REASONS_TOLD = 5

Progress = Callable[[int, int, int], None]
"""Called with (rows written, rows in all, bytes written)."""


def find_prepared(source: Source, store: Store, config: PrepareConfig) -> Manifest | None:
    """The finished data set at `store`, if there is one, made from this source with these settings.

    Raises:
        UserError: there is a data set of another source or other settings, or one whose shards are not whole.
    """
    if not store.exists(MANIFEST):
        return None
    manifest = load_manifest(store)
    made = (manifest.fingerprint, manifest.stored, dict(manifest.prepare))
    if made != (source.fingerprint, stored_form(source, config), _layout(config)):
        raise UserError(
            f"{store.description} already holds data set {manifest.name} ({manifest.source}), made from another source "
            "or with other settings: choose another destination"
        )
    check_shards(store, manifest)
    return manifest


def prepare(source: Source, store: Store, config: PrepareConfig, progress: Progress = lambda *_: None) -> Manifest:
    """Write the data set, or what an interrupted run left of it. Ray is initialised by the caller.

    A finished data set of the same source and settings is left as it is.

    Raises:
        UserError: the destination cannot be written or holds something else, or images do not decode.
    """
    store.check_access(write=True)
    manifest = find_prepared(source, store, config)
    if manifest is None:
        stored = stored_form(source, config)
        _claim(source, store, stored, config)
        jobs = plan_shards(source, stored, config)
        shards = _write_shards(store, jobs, source.total_rows, progress)
        manifest = Manifest(
            class_names=source.class_names,
            stored=stored,
            source=source.description,
            fingerprint=source.fingerprint,
            prepare=_layout(config),
            splits=dict(source.rows),
            shards=tuple(shards[job.path] for job in jobs),
        )
        _commit(store, manifest)
    for path, _ in store.list(PROGRESS):
        store.delete(path)
    return manifest


def _layout(config: PrepareConfig) -> dict[str, float]:
    """The settings that, with the stored form, decide the content."""
    return {name: getattr(config, name) for name in ("shard_mb", "min_shards", "holdout", "seed")}


def _claim(source: Source, store: Store, stored: Stored, config: PrepareConfig) -> None:
    """Reserve the destination for this data set, or find that it is reserved for it already."""
    job = {"fingerprint": source.fingerprint, "stored": repr(stored), "prepare": _layout(config)}
    try:
        store.write(_JOB, json.dumps({"source": source.description, **job}).encode(), if_absent=True)
    except FileExistsError:
        present = json.loads(store.read(_JOB))
        if {key: present[key] for key in job} != job:
            raise UserError(
                f"{store.description} holds an unfinished data set of another source or other settings "
                f"({present['source']}): finish it, remove it, or choose another destination"
            ) from None


def _commit(store: Store, manifest: Manifest) -> None:
    try:
        store.write(MANIFEST, manifest.to_json().encode(), if_absent=True)
    except FileExistsError:
        if load_manifest(store).digest != manifest.digest:
            raise UserError(
                f"another prepare has written {store.description} meanwhile: choose another destination"
            ) from None


def _write_shards(store: Store, jobs: list[ShardJob], total_rows: int, progress: Progress) -> dict[str, Shard]:
    """Shards by path: those that an earlier run finished, then the others as they get done."""
    shards = _finished(store, jobs)
    bad: list[str] = []

    def tell() -> None:
        progress(
            sum(shard.rows for shard in shards.values()), total_rows, sum(shard.bytes for shard in shards.values())
        )

    tell()
    for result in _run(store, [job for job in jobs if job.path not in shards]):
        if "error" in result:
            raise UserError(result["error"])
        if "bad" in result:
            bad += result["bad"]
        else:
            shards[result["path"]] = Shard.from_record(result)
            tell()
    if bad:
        more = f" and {len(bad) - _REASONS_TOLD:,} more" if len(bad) > _REASONS_TOLD else ""
        raise UserError(
            f"{len(bad):,} of {total_rows:,} images cannot be used: {'; '.join(sorted(bad)[:_REASONS_TOLD])}{more}. "
            f"Repair or remove them, empty {store.description}, and run again"
        )
    return shards


def _finished(store: Store, jobs: list[ShardJob]) -> dict[str, Shard]:
    """Shards that have their record and the size that it says."""
    found = dict(store.list())
    shards = {}
    for job in jobs:
        if job.path in found and job.sidecar in found:
            shard = Shard.from_record(json.loads(store.read(job.sidecar)))
            if shard.bytes == found[job.path]:
                shards[job.path] = shard
    return shards


def _run(store: Store, jobs: list[ShardJob]) -> Iterator[dict[str, Any]]:
    """Write shards as Ray Data tasks, one each; yields records of shards, {"bad": reasons} and {"error": message}."""
    if not jobs:
        return
    import ray.data

    references = [ray.put(job) for job in jobs]

    def write(row: dict[str, Any]) -> dict[str, str]:
        job: ShardJob = ray.get(references[row["job"]])
        try:
            return {"result": json.dumps(write_shard(store, job).to_record())}
        except BadImages as error:
            return {"result": json.dumps({"bad": error.reasons})}
        except UserError as error:  # told as it is, not as the traceback of a task
            return {"result": json.dumps({"error": str(error)})}

    rows = ray.data.from_items([{"job": index} for index in range(len(jobs))], override_num_blocks=len(jobs))
    for row in quiet(rows.map(write)).iter_rows():
        yield json.loads(row["result"])
