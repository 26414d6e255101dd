"""What prepare tells of the images besides the shards: bad ones, odd ones, duplicates."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from infra.errors import UserError
from infra.storage import LocalStore
from pipelines.config.prepare import PrepareConfig
from pipelines.data.images.kinds import kinds_of
from pipelines.data.prepare.prepare import find_prepared, prepare
from pipelines.data.prepare.report import find_duplicates, read_report, report_lines
from pipelines.data.prepare.shard_plan import plan_shards, stored_form
from pipelines.data.prepare.sources import open_source
from pipelines.data.shards.reader import read_rows
from tests.pipelines.data import built
from tests.pipelines.data.built import jpeg, put
from tests.pipelines.data.conftest import encoded, picture

CONFIG = PrepareConfig(min_shards=3)


def store_at(path: Path) -> LocalStore:
    return LocalStore(uri=str(path))


def table(store: LocalStore, name: str) -> list[dict[str, object]]:
    return pq.read_table(Path(store.uri, name)).to_pylist()


def ids_by_key(store: LocalStore) -> dict[str, int]:
    manifest = find_manifest(store)
    rows = [row for shard in manifest.shards for row in read_rows(store, shard, range(len(shard.groups))).to_pylist()]
    assert sorted(row["id"] for row in rows) == list(range(manifest.total_rows))
    assert [row["id"] for row in rows] == list(range(manifest.total_rows))
    return {row["key"]: row["id"] for row in rows}


def find_manifest(store: LocalStore):  # type: ignore[no-untyped-def]
    from pipelines.data.shards.manifest import load_manifest

    return load_manifest(store)


# Images that cannot be used


def forged(width: int, height: int) -> bytes:
    """A small JPEG whose header promises another size."""
    data = bytearray(encoded(picture(16, 16)))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


@pytest.fixture
def spoilt(folder: Path) -> Path:
    """The folder with four images that cannot be used; another as large as no image may be."""
    (folder / "a" / "004.jpg").write_bytes(b"<Error/>")
    (folder / "b" / "007.jpg").write_bytes(forged(12000, 12000))
    (folder / "b" / "008.jpg").write_bytes(b"")
    with (folder / "c" / "001.jpg").open("r+b") as file:
        file.truncate((32 << 20) + 1)
    return folder


@pytest.mark.usefixtures("ray_local")
def test_bad_images_within_the_budget_are_left_out_and_listed(spoilt: Path, tmp_path: Path) -> None:
    store = store_at(tmp_path / "out")
    with pytest.raises(UserError, match=r"4 of 90 images cannot be used: .*--set prepare\.max_bad_images=4"):
        prepare(open_source(str(spoilt)), store, PrepareConfig(min_shards=3, max_bad_images=3))
    assert not store.exists("manifest.json")
    config = PrepareConfig(min_shards=3, max_bad_images=4)
    manifest = prepare(open_source(str(spoilt)), store, config)
    rejected = {row["key"]: row["reason"] for row in table(store, "rejected.parquet")}
    assert set(rejected) == {"a/004.jpg", "b/007.jpg", "b/008.jpg", "c/001.jpg"}
    assert rejected["b/007.jpg"] == "12000x12000 is more than 100,000,000 pixels"
    assert rejected["c/001.jpg"] == "33,554,433 bytes are more than 33,554,432"
    assert manifest.total_rows == 86
    keys = set(ids_by_key(store))
    every = {sample.key for split in open_source(str(spoilt)).splits.values() for sample in split.read()}
    assert keys == every - set(rejected)
    report = read_report(store)
    assert report is not None
    assert "left out: 4 images that cannot be used: see rejected.parquet" in report.lines()
    # What a run that knew of the budget from the start makes, and one that was stopped between the rounds.
    assert prepare(open_source(str(spoilt)), store_at(tmp_path / "again"), config).digest == manifest.digest
    assert find_prepared(open_source(str(spoilt)), store, config) == manifest


@pytest.mark.usefixtures("ray_local")
def test_a_run_killed_after_bad_images_were_found_goes_on(spoilt: Path, tmp_path: Path) -> None:
    config = PrepareConfig(min_shards=3, max_bad_images=9)
    whole = prepare(open_source(str(spoilt)), store_at(tmp_path / "whole"), config)
    store = store_at(tmp_path / "killed")

    class Killed(Exception):
        pass

    def kill_in_the_second_round(done: int, total: int, size: int, seconds: float) -> None:
        if store.exists("_progress/rejected.json"):
            raise Killed

    with pytest.raises(Killed):
        prepare(open_source(str(spoilt)), store, config, kill_in_the_second_round)
    with pytest.raises(UserError, match="4 of 90 images cannot be used"):
        prepare(open_source(str(spoilt)), store, CONFIG)
    assert prepare(open_source(str(spoilt)), store, config).digest == whole.digest
    assert table(store, "rejected.parquet") == table(store_at(tmp_path / "whole"), "rejected.parquet")


def test_gaps_are_filled_from_the_end_of_the_split(folder: Path) -> None:
    source = open_source(str(folder))
    stored = stored_form(source, CONFIG)
    before = plan_shards(source, stored, CONFIG)
    gone = [int(before[0].positions[4]), int(before[2].positions[-1])]
    after = plan_shards(source, stored, CONFIG, {"train": gone})
    assert [len(job.positions) for job in after] == [27, 27, 25, 3, 3, 3]
    assert after[0].positions[4] == before[2].positions[-2]
    assert (after[1].digest, after[1].positions.tolist()) == (before[1].digest, before[1].positions.tolist())
    assert [job.first_id for job in after] == [0, 27, 54, 79, 82, 85]
    assert {job.digest for job in after[3:]}.isdisjoint(job.digest for job in before)
    everything = plan_shards(source, stored, CONFIG, {"test": range(9)})
    assert [job.split for job in everything] == ["train"] * 3


# Odd images


def odd_images() -> dict[str, tuple[bytes, list[str]]]:
    rgb = picture(12, 10)
    deep = Image.fromarray(np.arange(120, dtype=np.uint16).reshape(10, 12) * 500)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [picture(12, 10, seed).convert("P") for seed in range(3)]
    return {
        "plain.jpg": (encoded(rgb), []),
        "plain.png": (encoded(rgb, "PNG"), []),
        "cmyk.jpg": (encoded(rgb.convert("CMYK")), ["CMYK"]),
        "grey.JPEG": (encoded(rgb.convert("L")), ["grey"]),
        "png.JPEG": (encoded(rgb, "PNG"), ["PNG named JPEG"]),
        "palette.png": (encoded(rgb.convert("P"), "PNG"), ["palette"]),
        "alpha.png": (encoded(rgb.convert("RGBA"), "PNG"), ["transparent"]),
        "deep.png": (encoded(deep, "PNG"), ["16-bit", "grey"]),
        "turned.jpg": (encoded(rgb, exif=exif), ["EXIF-rotated"]),
        "moving.gif": (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), ["palette", "multi-frame"]),
        "bits.png": (encoded(rgb.convert("1"), "PNG"), ["grey"]),
        "noname": (encoded(rgb, "WEBP"), []),
    }


@pytest.mark.parametrize("key", list(odd_images()))
def test_kinds_of_odd_images(key: str) -> None:
    data, kinds = odd_images()[key]
    assert kinds_of(data, f"train/a.b/{key}") == kinds


def test_metadata_that_pillow_fails_on_is_a_kind_and_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image) -> None:
        raise OverflowError("offset")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert kinds_of(encoded(picture(12, 10).convert("L")), "x.jpg") == ["grey", "damaged metadata"]


@pytest.mark.usefixtures("ray_local")
def test_odd_images_are_kept_and_counted(tmp_path: Path) -> None:
    files = {
        f"images/only/{name}.png" if name == "noname" else f"images/only/{name}": data
        for name, (data, _) in odd_images().items()
    }
    store = store_at(tmp_path / "out")
    manifest = prepare(open_source(str(put(tmp_path, files) / "images"), holdout=0), store, CONFIG)
    assert manifest.total_rows == 12
    report = json.loads(store.read("report.json"))
    assert report["kinds"] == {
        "grey": 3,
        "palette": 2,
        "16-bit": 1,
        "CMYK": 1,
        "EXIF-rotated": 1,
        "PNG named JPEG": 1,
        "WEBP named PNG": 1,
        "multi-frame": 1,
        "transparent": 1,
    }
    assert (report["images"], report["rejected"], report["leaked"]) == (12, 0, 0)


# Duplicates


@pytest.mark.usefixtures("ray_local")
def test_duplicates_are_reported_and_kept(tmp_path: Path) -> None:
    files = {f"in/train/{name}/{index}.jpg": jpeg(10 * ord(name) + index) for name in "ab" for index in range(10)}
    files |= {f"in/val/{name}/{index}.jpg": jpeg(10 * ord(name) + index + 5000) for name in "ab" for index in range(4)}
    files["in/val/a/0.jpg"] = files["in/train/b/3.jpg"]
    files["in/train/a/7.jpg"] = files["in/train/a/2.jpg"]
    files["in/val/b/1.jpg"] = files["in/val/b/2.jpg"]
    store = store_at(tmp_path / "out")
    manifest = prepare(open_source(str(put(tmp_path, files) / "in")), store, CONFIG)
    assert manifest.splits == {"train": 20, "test": 8}
    ids = ids_by_key(store)
    rows = {(row["first_key"], row["key"]): row for row in table(store, "duplicates.parquet")}
    pairs = {frozenset(pair) for pair in rows}
    assert pairs == {
        frozenset({"train/b/3.jpg", "val/a/0.jpg"}),
        frozenset({"train/a/2.jpg", "train/a/7.jpg"}),
        frozenset({"val/b/1.jpg", "val/b/2.jpg"}),
    }
    leak = rows[("train/b/3.jpg", "val/a/0.jpg")]
    assert (leak["first_split"], leak["split"]) == ("train", "test")
    assert (leak["first_id"], leak["id"]) == (ids["train/b/3.jpg"], ids["val/a/0.jpg"])
    assert list(leak) == ["id", "split", "key", "first_id", "first_split", "first_key"]
    report = read_report(store)
    assert report is not None
    assert report.lines() == [
        "duplicates: 1 images are in two splits, 2 more than once in one split: see duplicates.parquet"
    ]


def test_duplicates_by_hash() -> None:
    names = ["c", "a", "b", "a", "a", "c"]
    hashes = b"".join(hashlib.sha256(name.encode()).digest()[:16] for name in names)
    ids, first = find_duplicates(hashes)
    assert (ids.tolist(), first.tolist()) == ([3, 4, 5], [1, 1, 0])
    ids, first = find_duplicates(b"")
    assert (len(ids), len(first)) == (0, 0)


# Parquet is copied out before it is read


@pytest.mark.usefixtures("ray_local")
def test_parquet_becomes_the_same_shards_as_its_files_would(tmp_path: Path) -> None:
    store = store_at(tmp_path / "out")
    manifest = prepare(open_source(str(put(tmp_path / "in", built.parquet_files()))), store, CONFIG)
    rows = [row for shard in manifest.shards for row in read_rows(store, shard, range(len(shard.groups))).to_pylist()]
    images = {row["key"]: row["image"] for row in rows}
    assert images["data/train-00001-of-00002.parquet#4"] == jpeg(13)
    assert images["data/validation-00000-of-00001.parquet#1"] == jpeg(91)
    assert manifest.splits == {"train": 14, "test": 2}
    assert not store.list("_progress")
    assert Image.open(io.BytesIO(rows[0]["image"])).format == "JPEG"


# A finished data set of archives is known without looking into them


@pytest.mark.usefixtures("ray_local")
def test_a_finished_data_set_does_not_list_archives_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, archives = store_at(tmp_path / "out"), put(tmp_path / "in", built.imagenet_files())
    manifest = prepare(open_source(str(archives), keep=store), store, CONFIG)

    def fail(*_: object) -> None:
        raise AssertionError("listed again")

    with monkeypatch.context() as patched:
        patched.setattr("pipelines.data.prepare.sources.imagenet.stored_members", fail)
        assert find_prepared(open_source(str(archives), keep=store), store, CONFIG) == manifest
    # Copied elsewhere it is another listing of the same contents; changed, it is another source.
    copied = put(tmp_path / "copy", built.imagenet_files())
    assert find_prepared(open_source(str(copied)), store, CONFIG) == manifest
    put(archives, built.imagenet_files(per_class=7))
    with pytest.raises(UserError, match="made from another source: choose another destination"):
        find_prepared(open_source(str(archives)), store, CONFIG)


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    ("spoilt", "told"),
    [
        ("*/*/*.jpg", r"all \d+ images of split \w+ cannot be used: \w+/red/0\.jpg \(not an image \(0 bytes\)\); "),
        ("val/*/*.jpg", r"all 4 images of split test cannot be used: val/green/0\.jpg"),
        ("train/red/*.jpg", r"all 6 training images of class red cannot be used: train/red/0\.jpg"),
    ],
)
def test_a_budget_never_empties_a_split_or_a_class(tmp_path: Path, spoilt: str, told: str) -> None:
    counts = {"train": 6, "val": 2}
    names = [(f"{split}/{name}", counts[split]) for split in counts for name in ("green", "red")]
    files = {f"{folder}/{n}.jpg": jpeg(n) for folder, count in names for n in range(count)}
    root, store = put(tmp_path / "in", files), store_at(tmp_path / "out")
    for path in root.glob(spoilt):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=told.replace("red/0", "(red|green)/0")):
        prepare(open_source(str(root)), store, PrepareConfig(max_bad_images=16))
    assert not store.exists("manifest.json")


@pytest.mark.usefixtures("ray_local")
def test_what_is_left_out_is_said_in_the_report(tmp_path: Path) -> None:
    counts = {"train": 6, "val": 2}
    names = [(f"{split}/{name}", counts[split]) for split in counts for name in ("green", "red")]
    files = {f"{folder}/{n}.jpg": jpeg(n) for folder, count in names for n in range(count)}
    root, store = put(tmp_path / "in", {**files, "train/red/x.psd": b"x"}), store_at(tmp_path / "out")
    for path in (root / "val" / "red").iterdir():
        path.write_bytes(b"")
    manifest = prepare(open_source(str(root)), store, PrepareConfig(max_bad_images=2))
    assert manifest.splits == {"train": 12, "test": 2}
    assert report_lines(store)[:2] == [
        "left out: 1 file of other kinds (1 .psd)",
        "left out: every test image of 1 of the classes (red)",
    ]
