"""Bad records and bad shards: refused or named, never used, and nothing else lost. Scenarios 10, 15 and 16."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infra.storage import LocalStore
from pipelines.config.crop import CropConfig
from pipelines.data.images.pillow import eval_crop, open_rgb
from pipelines.data.prepare.sources import open_source
from pipelines.data.shards import reader as read
from pipelines.data.shards.bad_records import BadRecord, Quarantine, locate
from pipelines.data.shards.manifest import Manifest
from pipelines.data.shards.reader import IntegrityError, OversizedError
from pipelines.data.shards.stored_images import BadSample
from pipelines.data.shards.work_item import WorkItem
from pipelines.data.tasks.crops import TaskConfig, load_item
from tests.pipelines.conftest import written
from tests.pipelines.data.conftest import encoded, picture
from tests.pipelines.data.hostile import forged, rewritten, text_bomb

DataSet = tuple[LocalStore, Manifest]
SIDE = 16
CROP = CropConfig(image_size=SIDE, eval_resize=SIDE)


@pytest.fixture(autouse=True)
def no_footers_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test reads like a process that has just started."""
    monkeypatch.setattr(read, "_footers", read._Footers())


@pytest.fixture
def files(folder: Path, tmp_path: Path) -> DataSet:
    """90 JPEGs of 3 classes as they are: 72 for training in 4 shards, ids 0 to 71."""
    store = LocalStore(uri=str(tmp_path / "files"))
    return store, written(open_source(str(folder), holdout=0.2), store)


def everything(manifest: Manifest) -> WorkItem:
    """All of the training split."""
    groups = [(shard, group) for shard in range(4) for group in range(len(manifest.shards[shard].groups))]
    return WorkItem(epoch=0, pieces=tuple(groups), rows=manifest.splits["train"], image_size=SIDE)


def load(data: DataSet, *, tolerant: bool, train: bool = True) -> dict[str, Any]:
    config = TaskConfig(crop=CROP, train=train, seed=0, rows_per_block=7, tolerant=tolerant)
    blocks = list(load_item(*data, everything(data[1]), config))
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def named(rows: dict[str, Any], manifest: Manifest) -> list[BadRecord]:
    noted = zip(rows["id"].tolist(), rows["epoch"].tolist(), rows["bad"].tolist(), strict=True)
    return sorted((BadRecord.of_row(manifest, *row) for row in noted if row[2]), key=lambda record: record.id)


def damage(store: LocalStore, path: str, offset: int) -> None:
    file = Path(store.uri, path)
    data = bytearray(file.read_bytes())
    data[offset] ^= 1
    file.write_bytes(data)


HOSTILE: dict[int, tuple[dict[str, Any], str, str]] = {
    3: ({"image": forged(12000, 12000)}, "oversized", "12000x12000 is more than 100,000,000 pixels"),
    9: ({"image": forged(65000, 65000)}, "oversized", "65000x65000 is more than 100,000,000 pixels"),
    20: ({"image": forged(12000, 12000, "PNG")}, "oversized", "12000x12000 is more than"),
    24: ({"image": text_bomb(300_000_000)}, "undecodable", "Decompressed data too large"),
    31: ({"image": b""}, "undecodable", "not an image (0 bytes)"),
    40: ({"image": b"<?xml version='1.0'?><Error/>"}, "undecodable", "not an image (29 bytes)"),
    44: ({"image": encoded(picture(60, 40))[:200]}, "undecodable", ""),
    50: ({"label": -1}, "mislabelled", "label -1 is outside 0..2"),
    66: ({"label": 1000}, "mislabelled", "label 1000 is outside 0..2"),
}


def test_hostile_records_are_named_and_the_others_are_what_they_were(files: DataSet) -> None:
    store, manifest = files
    before = load(files, tolerant=True)
    edited = rewritten(store, manifest, {sample: change for sample, (change, _, _) in HOSTILE.items()})
    after = load((store, edited), tolerant=True)
    found = named(after, edited)
    assert [(record.id, record.reason) for record in found] == [(i, reason) for i, (_, reason, _) in HOSTILE.items()]
    for record in found:
        assert HOSTILE[record.id][2] in record.detail
        assert (record.shard, record.row_group) == locate(manifest, record.id)
        assert record.key.endswith(".jpg") and record.epoch == 0
    assert after["id"].tolist() == before["id"].tolist() and sorted(after["id"]) == list(range(72))
    bad = np.isin(after["id"], list(HOSTILE))
    assert not after["image"][bad].any()
    assert np.array_equal(after["image"][~bad], before["image"][~bad])
    assert np.array_equal(after["label"][~bad], before["label"][~bad])


@pytest.mark.parametrize(
    ("sample", "line"),
    [
        (9, r"sample 9 \(.*\.jpg\) of shard train-00000\.parquet does not decode: 65000x65000 is more"),
        (31, r"sample 31 \(.*\.jpg\) of shard train-00001\.parquet does not decode: not an image \(0 bytes\)"),
        (66, r"sample 66 \(.*\.jpg\) of shard train-00003\.parquet has no class: label 1000 is outside 0\.\.2"),
    ],
)
@pytest.mark.parametrize("train", [True, False], ids=["training", "evaluation"])
def test_without_a_budget_the_first_one_is_an_error(files: DataSet, sample: int, line: str, train: bool) -> None:
    store, manifest = files
    edited = rewritten(store, manifest, {sample: HOSTILE[sample][0]})
    with pytest.raises(BadSample, match=line):
        load((store, edited), tolerant=False, train=train)


@pytest.mark.parametrize("what", ["a flipped bit", "one byte less", "another shard's content"])
def test_a_damaged_shard_is_never_used(files: DataSet, what: str) -> None:
    """Fetched once more, then its row group's ids are quarantined; the rest of the item is unharmed."""
    store, manifest = files
    before = load(files, tolerant=True)
    shard = manifest.shards[1]
    first = Path(store.uri, shard.path)
    if what == "a flipped bit":
        damage(store, shard.path, shard.groups[0].start + shard.groups[0].length // 2)
    elif what == "one byte less":
        first.write_bytes(first.read_bytes()[:-1])
    else:
        other = Path(store.uri, manifest.shards[2].path)
        content = first.read_bytes(), other.read_bytes()
        other.write_bytes(content[0])
        first.write_bytes(content[1])
    read._footers = read._Footers()
    lost = {*range(18, 36), *(range(36, 54) if what == "another shard's content" else ())}
    after = load(files, tolerant=True)
    found = named(after, manifest)
    assert {record.id for record in found} == lost
    assert {(record.reason, record.key) for record in found} == {("unreadable", "")}
    assert "the manifest says" in found[0].detail and found[0].shard == "train-00001.parquet"
    assert sorted(after["id"]) == list(range(72))
    good = ~np.isin(after["id"], list(lost))
    places = np.argsort(before["id"])[after["id"][good]]
    assert np.array_equal(after["image"][good], before["image"][places])
    with pytest.raises(IntegrityError, match=r"shard train-0000[12]\.parquet in .* the manifest says"):
        load(files, tolerant=False)


def test_odd_images_are_what_pillow_makes_of_them(tmp_path: Path) -> None:
    photo = picture(60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32))
    odd = {
        "cmyk": encoded(photo.convert("CMYK")),
        "png_named_jpg": encoded(photo, "PNG"),
        "grey": encoded(photo.convert("L")),
        "palette": encoded(photo.convert("P"), "PNG", transparency=bytes(range(256))),
        "alpha": encoded(photo.convert("RGBA"), "PNG"),
        "gif": encoded(photo.convert("P"), "GIF"),
        "webp": encoded(photo, "WEBP"),
        "deep": encoded(deep, "PNG"),
        "exif": encoded(photo, exif=exif),
        "progressive": encoded(photo, progressive=True),
        "dot": encoded(picture(1, 1)),
        "wire": encoded(picture(1, 5000)),
    }
    for name, data in odd.items():
        (tmp_path / "images" / "train" / name).mkdir(parents=True)
        (tmp_path / "images" / "train" / name / f"{name}.jpg").write_bytes(data)
    store = LocalStore(uri=str(tmp_path / "data"))
    manifest = written(open_source(str(tmp_path / "images"), holdout=0.0), store)
    config = TaskConfig(crop=CROP, train=False, seed=0, rows_per_block=100)
    pieces = tuple((shard, 0) for shard in range(len(manifest.shards)))
    (block,) = load_item(store, manifest, WorkItem(epoch=0, pieces=pieces, rows=12, image_size=SIDE), config)
    seen = {manifest.class_names[label]: image for label, image in zip(block["label"], block["image"], strict=True)}
    assert seen.keys() == odd.keys()
    for name, image in seen.items():
        reference = eval_crop(open_rgb(odd[name], displayed=True), CROP)
        assert np.abs(image.astype(int) - reference.astype(int)).max() <= 2, name


PEAK = """
import json, resource, sys
from infra.storage import LocalStore
from pipelines.data.images.pillow import CropConfig
from pipelines.data.shards.manifest import load_manifest
from pipelines.data.order.plan import WorkItem
from pipelines.data.tasks.crops import TaskConfig, load_item
def load(folder):
    store = LocalStore(uri=folder)
    manifest = load_manifest(store)
    pieces = tuple((s, g) for s in range(4) for g in range(len(manifest.shards[s].groups)))
    item = WorkItem(epoch=0, pieces=pieces, rows=72, image_size=16)
    crop = CropConfig(image_size=16, eval_resize=16)
    config = TaskConfig(crop=crop, train=True, seed=0, rows_per_block=7, tolerant=True)
    notes = [json.loads(note)[0] for block in load_item(store, manifest, item, config) for note in block["bad"] if note]
    return notes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
good, before = load(sys.argv[1])
bad, after = load(sys.argv[2])
print(json.dumps([good, bad, after - before]))
"""


def test_hostile_records_take_no_memory(files: DataSet, folder: Path, tmp_path: Path) -> None:
    store, manifest = files
    store.write("manifest.json", manifest.to_json().encode())
    worse = LocalStore(uri=str(tmp_path / "worse"))
    changes = {sample: change for sample, (change, _, _) in HOSTILE.items()}
    rewritten(
        worse, written(open_source(str(folder), holdout=0.2), worse), {**changes, 70: {"image": bytes(200_000_000)}}
    )
    command = [sys.executable, "-c", PEAK, store.uri, worse.uri]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[4])
    good, bad, risen_mib = json.loads(ran.stdout)
    assert good == []
    assert risen_mib < 200
    # the group of the 200 MB record is not even fetched: all of its 18 rows are quarantined
    assert sorted(bad) == sorted(
        [*(reason for sample, (_, reason, _) in HOSTILE.items() if sample < 54), *["oversized"] * 18]
    )


def test_a_row_group_that_is_too_large_is_not_fetched(files: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_GROUP_BYTES", 100)
    with pytest.raises(
        OversizedError, match=r"shard train-00000\.parquet in .*: row group 0 has [\d,]+ bytes, more than 100:"
    ):
        load(files, tolerant=False)


def test_the_report_comes_back_and_counts_each_sample_once(files: DataSet) -> None:
    _, manifest = files
    note = json.dumps(["undecodable", "not an image (0 bytes)", "a/000.jpg"])
    quarantine = Quarantine([BadRecord.of_row(manifest, 20, 0, note)])
    assert quarantine.add([BadRecord.of_row(manifest, 20, 1, note)]) == []
    (new,) = quarantine.add([BadRecord.of_row(manifest, 5, 1, note)])
    told = "sample 5 (a/000.jpg) of shard train-00000.parquet, undecodable: not an image (0 bytes)"
    assert str(new) == told
    back = Quarantine.from_parquet(quarantine.to_parquet())
    assert back.records == quarantine.records
    assert [(record.id, record.epoch, record.shard) for record in back.records] == [
        (5, 1, "train-00000.parquet"),
        (20, 0, "train-00001.parquet"),
    ]
    back.check(2, "runs/x/quarantine.parquet")
    with pytest.raises(
        Exception, match=r"2 bad samples, data\.max_bad_samples allows 1: 5, 20; runs/x/quarantine\.parquet"
    ):
        back.check(1, "runs/x/quarantine.parquet")
