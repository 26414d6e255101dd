"""Bad data in whole runs: named, counted, bounded; nobody hangs, nothing else is lost, a resume knows it all."""

from __future__ import annotations

import dataclasses
import io
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from infra.errors import UserError
from infra.storage import LocalStore
from pipelines.checkpoint import RunFolder
from pipelines.config.recipe import Recipe, build_recipe
from pipelines.data.order.ledger import Ledger
from pipelines.data.shards.bad_records import QUARANTINE, Fault, Quarantine
from pipelines.training.bad_samples import BadSamples
from pipelines.training.driver import train
from tests.pipelines.conftest import Coloured
from tests.pipelines.data.hostile import forged, rewritten

pytestmark = pytest.mark.faults

ROWS = 30


@pytest.fixture
def spoilt(colours: Coloured, tmp_path: Path) -> Coloured:
    """30 training samples in 2 shards of 15: two of the first shard are bad; 3 epochs of 3 steps."""
    shutil.copytree(colours.store.uri, tmp_path / "data")
    store = LocalStore(uri=str(tmp_path / "data"))
    manifest = rewritten(store, colours.manifest, {3: {"image": forged(12000, 12000)}, 8: {"label": 1000}})
    return dataclasses.replace(colours, store=store, manifest=manifest)


def recipe_of(spoilt: Coloured, **settings: object) -> Recipe:
    values = {
        "optim.global_batch_size": 10,
        "schedule.length": 3,
        "schedule.warmup": 0,
        "run.num_workers": 0,
        "run.name": "spoilt",
        "run.log_every_steps": 1,
        "run.checkpoint_every_steps": 1,
    }
    given = {key.replace("__", "."): value for key, value in settings.items()}
    return build_recipe({}, {**spoilt.recipe, **values, **given})


@pytest.fixture(autouse=True)
def own_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def folder_of(recipe: Recipe) -> RunFolder:
    return RunFolder(LocalStore(uri=recipe.run.home).sub(recipe.run_name))


def report(folder: RunFolder) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(folder.store.read(QUARANTINE))).to_pylist()
    return rows


def told() -> Console:
    return Console(file=io.StringIO(), width=1000)


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return [line for line in console.file.getvalue().splitlines() if "quarantined" in line]


def check_ledger(folder: RunFolder, epochs: int) -> None:
    checkpoint = folder.newest(pytest.fail)
    assert checkpoint is not None
    counts = Ledger.from_arrays(checkpoint.ledger).report()
    assert {epoch: (count.once, count.never) for epoch, count in counts.items()} == {
        epoch: (ROWS, 0) for epoch in range(epochs)
    }


FIRST = "sample 3 ({}) of shard train-00000.parquet, oversized: 12000x12000 is more than 100,000,000 pixels"
SECOND = "sample 8 ({}) of shard train-00000.parquet, mislabelled: label 1000 is outside 0..2"


def test_within_the_budget_a_run_and_its_resume_name_them_once(
    spoilt: Coloured, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(spoilt, data__max_bad_samples=2)
    folder = folder_of(recipe)
    written = RunFolder.write

    def die_after(self: RunFolder, checkpoint: Any, *, keep_best: int) -> None:
        written(self, checkpoint, keep_best=keep_best)
        if checkpoint.step == 5:
            raise OSError("power cut")

    first = told()
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write", die_after)
        with pytest.raises(Exception, match="power cut"):
            train(recipe, first)
    checkpoint = folder.load(5)
    assert QUARANTINE in checkpoint.files
    named = report(folder)
    keys = {row["id"]: row["key"] for row in named}
    assert sorted(
        line.removesuffix(" (1 of at most 2)").removesuffix(" (2 of at most 2)") for line in lines(first)
    ) == [
        f"quarantined {FIRST.format(keys[3])}",
        f"quarantined {SECOND.format(keys[8])}",
    ]
    second = told()
    outcome = train(recipe, second)
    assert (outcome.step, outcome.bad_samples) == (9, 2)
    assert lines(second) == []  # known from the checkpoint
    assert report(folder) == named
    assert [(row["id"], row["shard"], row["row_group"], row["reason"]) for row in named] == [
        (3, "train-00000.parquet", 0, "oversized"),
        (8, "train-00000.parquet", 0, "mislabelled"),
    ]
    assert {row["epoch"] for row in named} <= {0, 1}  # of five steps; tasks of both may run at once
    check_ledger(folder, epochs=3)


def test_one_more_than_the_budget_stops_the_run(spoilt: Coloured, ray_local: None) -> None:
    recipe = recipe_of(spoilt, data__max_bad_samples=1)
    folder = folder_of(recipe)
    where = f"{folder.store.description}/{QUARANTINE}"
    with pytest.raises(UserError, match=rf"^2 bad samples, data\.max_bad_samples allows 1: 3, 8; {where} names them"):
        train(recipe, told())
    assert [row["id"] for row in report(folder)] == [3, 8]
    again = recipe_of(spoilt, data__max_bad_samples=2)  # the same run: a budget changes nothing in what is trained
    assert train(again, told()).bad_samples == 2
    check_ledger(folder, epochs=3)


def test_without_a_budget_the_first_bad_sample_stops_it(spoilt: Coloured, ray_local: None) -> None:
    with pytest.raises(UserError, match=r"^sample [38] \(.*\.png\) of shard train-00000\.parquet (does not|has no)"):
        train(recipe_of(spoilt), told())


def test_two_workers_count_together(spoilt: Coloured, ray_local: None) -> None:
    """A whole row group is unreadable, besides: 15 samples."""
    shard = spoilt.manifest.shards[1]
    file = Path(spoilt.store.uri, shard.path)
    data = bytearray(file.read_bytes())
    data[shard.groups[0].start + 100] ^= 1
    file.write_bytes(data)
    console = told()
    recipe = recipe_of(spoilt, run__num_workers=2, data__max_bad_samples=17, run__max_failures=0)
    outcome = train(recipe, console)
    assert (outcome.step, outcome.bad_samples) == (9, 17)
    told_of = lines(console)
    group = "quarantined row group 0 of shard train-00001.parquet, unreadable: row group 0 has sha256 "
    assert sum(line.startswith(group) for line in told_of) in (1, 2)  # of each worker that met it
    assert sum(line.startswith("quarantined sample ") for line in told_of) == 2
    rows = report(folder_of(recipe))
    assert [row["id"] for row in rows] == [3, 8, *range(15, 30)]
    assert {(row["reason"], row["key"]) for row in rows[2:]} == {("unreadable", "")}
    check_ledger(folder_of(recipe), epochs=3)


def note(sample: int) -> tuple[int, int, str]:
    return sample, 0, Fault("undecodable", "not an image (0 bytes)").note(f"{sample}.jpg")


def test_no_worker_has_too_many_and_all_together_do(
    spoilt: Coloured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both learn of it at the same exchange, so that neither waits for the other."""
    folder, told_of = RunFolder(LocalStore(uri=str(tmp_path / "run"))), list[str]()
    ranks = [BadSamples(spoilt.manifest, folder, 3, told_of.append, None) for _ in range(2)]
    ranks[0].take([note(3), note(8)])
    ranks[1].take([note(17), note(3)])
    assert [line.split()[2] for line in told_of] == ["3", "8", "17", "3"]
    sent: list[torch.Tensor] = []

    def alone(rows: torch.Tensor) -> torch.Tensor:
        sent.append(rows)
        return rows

    monkeypatch.setattr("pipelines.training.bad_samples.gather_rows", alone)
    for rank in ranks:
        rank.exchange()
    together = torch.cat(sent)
    monkeypatch.setattr("pipelines.training.bad_samples.gather_rows", lambda _: together)
    for rank in ranks:
        saved = rank.exchange()
        assert saved is not None
        assert [record.id for record in Quarantine.from_parquet(saved).records] == [3, 8, 17]
    ranks[0].take([note(3)])  # of the next epoch: it is known
    with pytest.raises(UserError, match=r"^4 bad samples, data\.max_bad_samples allows 3: 3, 8, 17, 20; "):
        ranks[1].take([note(20)])
    lower = BadSamples(spoilt.manifest, folder, 2, told_of.append, None)
    with pytest.raises(UserError, match=r"^3 bad samples, data\.max_bad_samples allows 2: 3, 8, 17; "):
        lower.exchange()
