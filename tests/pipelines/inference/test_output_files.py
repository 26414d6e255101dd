"""Files of predictions: each whole or not there, every image in exactly one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.errors import UserError
from infra.storage import LocalStore
from pipelines.inference.output_files import Collector, Layout, PredictionJob, write_summary
from pipelines.inference.sources.images import even_parts

NAMES = ("azure", "lime", "scarlet")
LAYOUT = Layout.of(even_parts(25, 4), file_rows=10)
JOB = PredictionJob(
    model="models:/m/1",
    model_sha256="a" * 64,
    images="25 image files",
    images_fingerprint="f",
    top=2,
    all_probabilities=True,
    file_rows=10,
)


def block(ids: list[int], file: int) -> dict[str, np.ndarray]:
    """Image i has class i modulo 3; every seventh is bad."""
    probabilities = np.full((len(ids), 3), 0.125, dtype=np.float32)
    probabilities[np.arange(len(ids)), np.array(ids) % 3] = 0.75
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :2].astype(np.int32)
    return {
        "file": np.full(len(ids), file, dtype=np.int32),
        "id": np.array(ids),
        "path": np.array([f"{i}.png" for i in ids], dtype=object),
        "reason": np.array(["" if i % 7 else "not an image" for i in ids], dtype=object),
        "top_class": order,
        "top_probability": np.take_along_axis(probabilities, order, axis=1),
        "probabilities": probabilities,
    }


def test_files_hold_whole_parts() -> None:
    assert [[part.first for part in file] for file in LAYOUT.files] == [[0, 4, 8], [12, 16, 20], [24]]
    assert [LAYOUT.rows(file) for file in range(3)] == [12, 12, 1]
    assert LAYOUT.total == 25


def test_a_file_appears_when_all_of_it_is_there_in_whatever_order(tmp_path: Path) -> None:
    store = LocalStore(uri=str(tmp_path))
    collector = Collector(store=store, layout=LAYOUT, class_names=NAMES)
    mixed = [block([11, 9, 7, 5, 3, 1], 0), block([13, 12], 1)]
    collector.add({name: np.concatenate([each[name] for each in mixed]) for name in mixed[0]})
    assert LAYOUT.missing(store) == [0, 1, 2]
    collector.add(block([0, 2, 4, 6, 8, 10], 0))
    assert LAYOUT.missing(store) == [1, 2]
    collector.add(block([24], 2))
    collector.add(block(list(range(14, 24)), 1))
    assert LAYOUT.missing(store) == []
    assert write_summary(store, LAYOUT) == (25, 4)

    table = pq.read_table(tmp_path)  # a reader of Parquet takes the folder as it is
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == list(range(25))
    assert rows[4] == {
        "id": 4,
        "path": "4.png",
        "class": 1,
        "name": "lime",
        "probability": 0.75,
        "top": [
            {"class": 1, "name": "lime", "probability": 0.75},
            {"class": 0, "name": "azure", "probability": 0.125},
        ],
        "reason": None,
        "probabilities": [0.125, 0.75, 0.125],
    }
    bad = dict.fromkeys(("class", "name", "probability", "top", "probabilities"))
    assert rows[7] == {"id": 7, "path": "7.png", "reason": "not an image", **bad}


def test_another_job_is_refused(tmp_path: Path) -> None:
    store = LocalStore(uri=str(tmp_path))
    JOB.claim(store)
    JOB.claim(store)
    assert json.loads((tmp_path / "_predictions.json").read_text())["top"] == 2
    for change, told in (
        ({"model": "models:/m/2"}, r"model is models:/m/1 there, models:/m/2 here"),
        ({"top": 3}, r"top is 2 there, 3 here"),
        ({"images_fingerprint": "g"}, r"images_fingerprint is f there, g here"),
    ):
        with pytest.raises(UserError, match=told):
            dataclasses.replace(JOB, **change).claim(store)
