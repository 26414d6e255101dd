"""Predictions as Parquet files that are written one by one, each whole, so that a killed command can resume.

A file holds the predictions of consecutive images of the source. The source alone decides which ones, so the files that
exist are the journal. `_predictions.json` describes the job, so that a command with another job is refused. Readers of
Parquet skip names that start with `_`.

Shapes: n rows, K classes, T most probable classes.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from infra.errors import UserError
from pipelines.data.tasks.crops import Block
from pipelines.inference.sources.images import SourcePart

if TYPE_CHECKING:
    import pyarrow as pa

    from infra.storage import Store

JOB, SUMMARY = "_predictions.json", "_summary.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionJob:
    """Identity of a prediction job. A folder holds the predictions of one job only."""

    model: str  # models:/NAME/VERSION
    model_sha256: str  # of the checkpoint that the model was exported from
    images: str  # description for people
    images_fingerprint: str
    top: int
    all_probabilities: bool
    file_rows: int  # approximate

    def claim(self, store: Store) -> None:
        """Start this job in a folder, or resume it if the folder holds the same job.

        Raises:
            UserError: the folder holds the predictions of another job.
        """
        text = json.dumps(dataclasses.asdict(self), indent=1) + "\n"
        try:
            store.write(JOB, text.encode(), if_absent=True)
        except FileExistsError:
            present = json.loads(store.read(JOB))
            asked = dataclasses.asdict(self)
            other = next((name for name in asked if present.get(name) != asked[name]), None)
            if other:
                raise UserError(
                    f"{store.description} holds predictions of another job ({other} is {present.get(other)} there, "
                    f"{asked[other]} here): repeat the other job's command, or give another --out"
                ) from None


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The parts of a source that each file holds."""

    files: tuple[tuple[SourcePart, ...], ...]

    @classmethod
    def of(cls, parts: Sequence[SourcePart], file_rows: int) -> Layout:
        """Group consecutive parts into files of about `file_rows` images."""
        files: list[list[SourcePart]] = []
        for part in parts:
            if not files or sum(each.rows for each in files[-1]) >= file_rows:
                files.append([])
            files[-1].append(part)
        return cls(files=tuple(map(tuple, files)))

    @staticmethod
    def path(file: int) -> str:
        """Return the name of a file."""
        return f"predictions-{file:06d}.parquet"

    def missing(self, store: Store) -> list[int]:
        """Return the files that are still to be written."""
        present = {path for path, _ in store.list()}
        return [file for file in range(len(self.files)) if self.path(file) not in present]

    def rows(self, file: int) -> int:
        """Return the number of images in a file."""
        return sum(part.rows for part in self.files[file])

    def written(self, store: Store) -> int:
        """Return the number of images in the files that exist."""
        return self.total - sum(map(self.rows, self.missing(store)))

    @property
    def total(self) -> int:
        """Number of images in all files."""
        return sum(map(self.rows, range(len(self.files))))


@dataclass(kw_only=True)
class Collector:
    """Collector of predictions in any order. It writes each file as soon as the file is complete."""

    store: Store
    layout: Layout
    class_names: Sequence[str]
    _waiting: dict[int, list[Block]] = field(default_factory=lambda: defaultdict(list))

    def add(self, block: Block) -> None:
        """Add predictions, and write each file that they complete.

        Args:
            block: columns file int32 [n], id int64 [n], path object [n], reason object [n], top_class int32 [n,T],
                top_probability float32 [n,T], and probabilities float32 [n,K] if the job has them; reached bool
                [n,K] of a multi-label model.
        """
        for file in np.unique(block["file"]).tolist():
            chosen = block["file"] == file
            self._waiting[file].append({name: values[chosen] for name, values in block.items()})
            rows = sum(len(part["id"]) for part in self._waiting[file])
            if rows == self.layout.rows(file):
                self.store.write(self.layout.path(file), self._parquet(self._waiting.pop(file)))

    def _parquet(self, blocks: list[Block]) -> bytes:
        import pyarrow.parquet as pq

        whole = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        order = np.argsort(whole["id"], kind="stable")
        buffer = io.BytesIO()
        pq.write_table(_table({name: values[order] for name, values in whole.items()}, self.class_names), buffer)
        return buffer.getvalue()


def write_summary(store: Store, layout: Layout) -> tuple[int, int]:
    """Count the images of all files, write `_summary.json`, and return (images, images not classified)."""
    import pyarrow.parquet as pq

    images = bad = 0
    for file in range(len(layout.files)):
        reasons = pq.read_table(io.BytesIO(store.read(layout.path(file))), columns=["reason"])["reason"]
        images += len(reasons)
        bad += len(reasons) - reasons.null_count
    store.write(SUMMARY, (json.dumps({"images": images, "not_classified": bad}) + "\n").encode())
    return images, bad


def _table(rows: Block, class_names: Sequence[str]) -> pa.Table:
    """Return the columns of a file. A row with a reason has no prediction."""
    import pyarrow as pa

    names = np.array(class_names, dtype=object)
    bad = rows["reason"] != ""
    best, probability = rows["top_class"][:, 0], rows["top_probability"][:, 0]
    columns = {
        "id": pa.array(rows["id"]),
        "path": pa.array(rows["path"], pa.string()),
        "class": pa.array(best, pa.int32(), mask=bad),
        "name": pa.array(names[best], pa.string(), mask=bad),
        "probability": pa.array(probability, pa.float32(), mask=bad),
        "top": _lists(_structs(rows, names), bad),
        "reason": pa.array(rows["reason"], pa.string(), mask=~bad),
    }
    if "reached" in rows:
        reached = [None if left else names[row].tolist() for row, left in zip(rows["reached"], bad, strict=True)]
        columns["classes"] = pa.array(reached, pa.list_(pa.string()))
    if "probabilities" in rows:
        flat = pa.array(rows["probabilities"].ravel(), pa.float32())
        columns["probabilities"] = _lists(flat, bad)
    return pa.table(columns)


def _structs(rows: Block, names: npt.NDArray[np.object_]) -> pa.Array:
    """Return the most probable classes of all rows, one row after another."""
    import pyarrow as pa

    classes, probabilities = rows["top_class"].ravel(), rows["top_probability"].ravel()
    arrays = [
        pa.array(classes, pa.int32()),
        pa.array(names[classes], pa.string()),
        pa.array(probabilities, pa.float32()),
    ]
    return pa.StructArray.from_arrays(arrays, ["class", "name", "probability"])


def _lists(flat: pa.Array, missing: npt.NDArray[np.bool_]) -> pa.Array:
    """Return rows of equally many values; rows in `missing` are null."""
    import pyarrow as pa

    width = len(flat) // len(missing)
    offsets = np.arange(len(missing) + 1, dtype=np.int32) * width
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=pa.array(missing))
