"""Checkpoints: whole or not at all, verified when read, the best and the newest kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import save as save_arrays
from safetensors.torch import save as save_tensors

from infra.errors import UserError
from infra.storage import open_store
from infra.tracking.metric_point import MetricPoint
from pipelines.checkpoint import LEDGER, RECORDS, Checkpoint, RunFolder
from pipelines.data.order.ledger import Ledger


def make(step: int, accuracy: float | None = None) -> Checkpoint:
    ledger = Ledger(10)
    ledger.mark(0, np.arange(4))
    metrics = {} if accuracy is None else {"test/accuracy": accuracy, "test/loss": 1.0}
    files = {
        "model.safetensors": save_tensors({"weight": torch.full((3,), float(step))}),
        "optimizer.safetensors": save_tensors({"momentum_buffer.weight": torch.ones(3)}),
        LEDGER: save_arrays(ledger.to_arrays()),
        RECORDS: (MetricPoint(step=step, time_ms=5, metrics={"train/loss": 0.5}).to_json() + "\n").encode(),
    }
    return Checkpoint(step=step, metrics=metrics, recipe={"run.seed": 0}, data_digest="d" * 64, files=files)


@pytest.fixture
def folder(tmp_path):
    return RunFolder(open_store(str(tmp_path / "run")))


def fail(text: str) -> None:
    raise AssertionError(text)


def test_what_is_written_comes_back(folder):
    folder.write(make(20, 0.5), keep_best=1)
    back = folder.newest(fail)
    assert back.step == 20 and back.metrics["test/accuracy"] == 0.5 and back.data_digest == "d" * 64
    assert back.tensors.keys() == {"model", "optimizer"}
    assert back.weights["weight"].tolist() == [20.0] * 3
    assert Ledger.from_arrays(back.ledger).consumed(0).tolist() == [True] * 4 + [False] * 6
    assert [record.step for record in back.records] == [20]
    assert back.sha256 == make(20, 0.5).sha256


def test_newest_two_and_the_best_are_kept(folder):
    for step, accuracy in ((10, 0.9), (20, 0.5), (30, None), (40, 0.8), (50, 0.7)):
        folder.write(make(step, accuracy), keep_best=1)
    assert folder.steps() == [10, 40, 50]
    assert folder.best(fail).step == 10
    assert not any("step-00000020" in path for path, _ in folder.store.list())


def test_of_equals_the_later_is_the_best(folder):
    for step in (10, 20):
        folder.write(make(step, 0.9), keep_best=1)
    assert folder.best(fail).step == 20


def test_a_flipped_bit_is_found_and_the_one_before_is_used(folder):
    folder.write(make(10), keep_best=1)
    folder.write(make(20), keep_best=1)
    path = "checkpoints/step-00000020/model.safetensors"
    data = bytearray(folder.store.read(path))
    data[-1] ^= 1
    folder.store.write(path, bytes(data))
    warnings: list[str] = []
    assert folder.newest(warnings.append).step == 10
    assert "step-00000020/model.safetensors" in warnings[0] and "sha256" in warnings[0]
    with pytest.raises(UserError, match=r"model\.safetensors"):
        folder.load(20)


def test_only_what_is_asked_for_is_read(folder):
    folder.write(make(10), keep_best=1)
    folder.write(make(20), keep_best=1)
    folder.store.write("checkpoints/step-00000020/model.safetensors", b"damaged")
    newest = folder.newest(fail, only=("records.jsonl",))
    assert (newest.step, set(newest.files)) == (20, {"records.jsonl"})
    warnings: list[str] = []
    assert folder.newest(warnings.append).step == 10
    assert len(warnings) == 1


def test_without_its_commit_a_checkpoint_is_not_there(folder):
    folder.write(make(10), keep_best=1)
    for name, data in make(20).files.items():
        folder.store.write(f"checkpoints/step-00000020/{name}", data)
    assert folder.steps() == [10]
    assert folder.newest(fail).step == 10


def test_a_missing_file_is_told(folder):
    folder.write(make(10), keep_best=1)
    folder.store.delete("checkpoints/step-00000010/model.safetensors")
    with pytest.raises(UserError, match="step 10 is missing or incomplete"):
        folder.load(10)


def test_no_bit_of_the_commit_can_be_flipped_unnoticed(folder):
    folder.write(make(10), keep_best=1)
    folder.write(make(20, 0.5), keep_best=1)
    path = "checkpoints/step-00000020/checkpoint.json"
    whole = folder.store.read(path)
    for offset in range(0, len(whole), 7):
        data = bytearray(whole)
        data[offset] ^= 1
        folder.store.write(path, bytes(data))
        assert folder.newest(lambda _: None).step == 10, offset


def test_a_fault_of_one_transfer_does_not_cost_a_checkpoint(folder):
    folder.write(make(10), keep_best=1)
    folder.write(make(20), keep_best=1)
    reads = []

    class Flaky:
        description = "flaky"

        def __getattr__(self, name):
            return getattr(folder.store, name)

        def read(self, path, **span):
            reads.append(path)
            data = folder.store.read(path, **span)
            first = reads.count(path) == 1 and path.endswith("step-00000020/model.safetensors")
            return data[:-1] + bytes([data[-1] ^ 1]) if first else data

    newest = RunFolder(Flaky()).newest(fail)
    assert newest is not None
    assert newest.weights["weight"].tolist() == [20.0] * 3
    assert reads.count("checkpoints/step-00000020/model.safetensors") == 2
