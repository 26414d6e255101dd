from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.errors import UserError
from infra.storage import LocalStore
from pipelines.config.prepare import PrepareConfig
from pipelines.data.images.pillow import to_rgb
from pipelines.data.images.stored import Stored
from pipelines.data.prepare.prepare import find_prepared, prepare
from pipelines.data.prepare.shard_plan import plan_shards, stored_form
from pipelines.data.prepare.shard_writer import encode
from pipelines.data.prepare.source import SourceSample
from pipelines.data.prepare.sources import open_source
from pipelines.data.shards.manifest import Manifest, load_manifest
from pipelines.data.shards.reader import read_rows
from pipelines.training.preview import data_warnings
from tests.pipelines.data.conftest import encoded, picture

CONFIG = PrepareConfig(min_shards=3)
pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(uri=str(tmp_path / "shards"))


def contents(store: LocalStore, manifest: Manifest) -> dict[str, tuple[int, str, int, bytes]]:
    """(id, split, label, image) by key."""
    rows = {}
    for shard in manifest.shards:
        for row in read_rows(store, shard, range(len(shard.groups))).to_pylist():
            rows[row["key"]] = (row["id"], shard.split, row["label"], row["image"])
    return rows


def test_files_become_shards_of_their_own_bytes(folder: Path, store: LocalStore) -> None:
    source = open_source(str(folder))
    calls: list[tuple[int, int, int, float]] = []
    manifest = prepare(source, store, CONFIG, lambda *progress: calls.append(progress))
    rows = contents(store, manifest)
    expected = {s.key: (s.split, s.label, s.image) for split in source.splits.values() for s in split.read()}
    assert {key: row[1:] for key, row in rows.items()} == expected
    assert sorted(row[0] for row in rows.values()) == list(range(90))
    assert {row[0] for row in rows.values() if row[1] == "test"} == set(range(81, 90))
    labels = [label for _, label in sorted((row[0], row[2]) for row in rows.values())]
    assert labels[:81] != sorted(labels[:81])
    assert (manifest.stored.form, manifest.class_names) == ("original", ("a", "b", "c"))
    assert [shard.rows for shard in manifest.shards] == [27, 27, 27, 3, 3, 3]
    assert calls[0] == (0, 90, 0, 0.0)
    assert calls[-1][:3] == (90, 90, manifest.total_bytes)
    assert all(seconds > 0 for _, _, _, seconds in calls[1:])
    assert load_manifest(store) == manifest
    assert [path for path, _ in store.list()] == sorted(
        ["manifest.json", "report.json", *(shard.path for shard in manifest.shards)]
    )


def test_same_source_and_settings_give_the_same_digest_anywhere(
    folder: Path, tmp_path: Path, store: LocalStore
) -> None:
    first = prepare(open_source(str(folder)), store, CONFIG)
    moved = tmp_path / "moved" / "images"
    moved.parent.mkdir()
    folder.rename(moved)
    second = prepare(open_source(str(moved)), LocalStore(uri=str(tmp_path / "again")), CONFIG)
    assert second.digest == first.digest
    reseeded = PrepareConfig(min_shards=3, seed=1)
    other = prepare(open_source(str(moved)), LocalStore(uri=str(tmp_path / "third")), reseeded)
    assert other.digest != first.digest


class Killed(Exception):
    pass


def test_an_interrupted_run_goes_on_without_rewriting_a_finished_shard(
    folder: Path, tmp_path: Path, store: LocalStore
) -> None:
    source = open_source(str(folder))

    def kill_after_two_shards(done: int, total: int, size: int, seconds: float) -> None:
        if done >= 54:
            raise Killed

    with pytest.raises(Killed):
        prepare(source, store, CONFIG, kill_after_two_shards)
    assert not store.exists("manifest.json")
    shards = [Path(path).name.removesuffix(".json") for path, _ in store.list("_progress") if path.endswith("t.json")]
    assert len(shards) >= 2
    before = {name: Path(store.uri, name).stat().st_mtime_ns for name in shards}
    calls: list[tuple[int, int, int, float]] = []
    manifest = prepare(source, store, CONFIG, lambda *progress: calls.append(progress))
    assert {name: Path(store.uri, name).stat().st_mtime_ns for name in shards} == before
    assert calls[0][0] == sum(shard.rows for shard in manifest.shards if shard.path in shards)
    unbroken = prepare(source, LocalStore(uri=str(tmp_path / "unbroken")), CONFIG)
    assert manifest.digest == unbroken.digest
    assert not store.list("_progress")


def test_a_shard_that_lost_bytes_or_its_record_is_written_again(folder: Path, store: LocalStore) -> None:
    source = open_source(str(folder))
    progress = Path(store.uri, "_progress")
    aside = store.sub("aside")

    def keep_records(done: int, total: int, size: int, seconds: float) -> None:
        if done == total:
            for path, _ in store.list("_progress"):
                aside.write(path, store.read(path))

    manifest = prepare(source, store, CONFIG, keep_records)
    Path(aside.uri, "_progress").rename(progress)
    store.delete("manifest.json")
    store.delete("_progress/train-00002.parquet.json")
    cut, whole = Path(store.uri, "train-00001.parquet"), Path(store.uri, "train-00000.parquet")
    cut.write_bytes(cut.read_bytes()[:-7])
    kept = whole.stat().st_mtime_ns
    assert prepare(source, store, CONFIG).digest == manifest.digest
    assert cut.stat().st_size == manifest.shards[1].bytes
    assert whole.stat().st_mtime_ns == kept


def test_a_finished_data_set_is_left_alone_and_checked(folder: Path, store: LocalStore) -> None:
    source = open_source(str(folder))
    assert find_prepared(source, store, CONFIG) is None
    manifest = prepare(source, store, CONFIG)
    before = {path: Path(store.uri, path).stat().st_mtime_ns for path, _ in store.list()}
    assert find_prepared(source, store, CONFIG) == manifest
    assert prepare(source, store, CONFIG) == manifest
    assert {path: Path(store.uri, path).stat().st_mtime_ns for path, _ in store.list()} == before
    store.delete("train-00001.parquet")
    with pytest.raises(UserError, match=r"shard train-00001\.parquet is missing in"):
        prepare(source, store, CONFIG)


def test_two_data_sets_are_never_mixed(folder: Path, store: LocalStore) -> None:
    source = open_source(str(folder))
    manifest = prepare(source, store, CONFIG)
    with pytest.raises(
        UserError,
        match=f"already holds data set {manifest.name} .*made from another source: choose another destination",
    ):
        prepare(open_source("mnist5k"), store, CONFIG)
    for settings, told in (
        ({"form": "raw", "size": 8}, "prepare.form = original there, raw now; prepare.size = 0 there, 8 now"),
        ({"validation": 0.25}, "prepare.validation = 0.1 there, 0.25 now"),
        ({"holdout": 0.2, "seed": 3}, "prepare.holdout = 0.1 there, 0.2 now; prepare.seed = 0 there, 3 now"),
    ):
        now = PrepareConfig(min_shards=3, **settings)  # type: ignore[arg-type]
        again = open_source(str(folder), holdout=now.holdout, validation=now.validation, seed=now.seed)
        with pytest.raises(UserError, match=rf"made with other settings \({told}\): choose another destination or"):
            prepare(again, store, now)
    assert load_manifest(store) == manifest


def test_a_data_set_of_an_earlier_version_has_no_validation_split_and_stays_usable(
    folder: Path, store: LocalStore
) -> None:
    manifest = prepare(open_source(str(folder)), store, PrepareConfig(min_shards=3, validation=0))
    settings = {name: value for name, value in manifest.prepare.items() if name != "validation"}
    earlier = dataclasses.replace(manifest, prepare=settings)
    store.write("manifest.json", earlier.to_json().encode())
    assert load_manifest(store).splits == {"train": 81, "test": 9}
    assert find_prepared(open_source(str(folder)), store, PrepareConfig(min_shards=3, validation=0)) == earlier
    with pytest.raises(UserError, match=r"prepare.validation = 0\.0 there, 0\.1 now"):
        find_prepared(open_source(str(folder), validation=0.1), store, CONFIG)


def rotated(folder: Path) -> Path:
    """A photo that viewers turn, among others."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "a" / "turned.jpg").write_bytes(encoded(picture(60, 40), exif=exif))
    return folder


def test_a_data_set_of_an_earlier_version_keeps_its_stored_pixels(folder: Path, store: LocalStore) -> None:
    """`auto` finds it; its text and so its digest have no `pixels`, as they had before there was the setting."""
    source = open_source(str(rotated(folder)), validation=0.1)
    earlier = prepare(source, store, dataclasses.replace(CONFIG, pixels="stored"))
    assert json.loads(store.read("manifest.json"))["stored"] == {
        "form": "original",
        "size": 0,
        "quality": 0,
        "channels": 3,
    }
    assert earlier.stored.displayed is False
    assert find_prepared(source, store, CONFIG) == earlier
    with pytest.raises(UserError, match=r"\(prepare.pixels = stored there, displayed now\)"):
        find_prepared(source, store, dataclasses.replace(CONFIG, pixels="displayed"))
    assert data_warnings(store, earlier)[-1].startswith("warning: 1 EXIF-rotated images are used as they are stored")


def test_a_run_that_an_earlier_version_began_is_finished_with_stored_pixels(folder: Path, store: LocalStore) -> None:
    source = open_source(str(rotated(folder)), validation=0.1)
    finished = prepare(source, store, dataclasses.replace(CONFIG, pixels="stored"))
    settings = {name: value for name, value in finished.prepare.items()} | {"form": "original", "size": 0, "quality": 0}
    job = {"source": source.description, "fingerprint": source.fingerprint, "settings": settings}
    store.delete("manifest.json")
    store.write("_progress/job.json", json.dumps(job).encode())
    assert prepare(source, store, CONFIG) == finished


def test_new_data_sets_say_that_files_are_as_viewers_show_them(folder: Path, store: LocalStore) -> None:
    source = open_source(str(rotated(folder)), validation=0.1)
    manifest = prepare(source, store, CONFIG)
    assert (manifest.stored.pixels, manifest.stored.displayed, manifest.stored.file_pixels) == (
        "displayed",
        True,
        "displayed",
    )
    assert load_manifest(store) == manifest
    assert find_prepared(source, store, CONFIG) == manifest
    assert not any("EXIF" in line for line in data_warnings(store, manifest))


def test_the_validation_split_has_its_own_ids_between_the_others(folder: Path, store: LocalStore) -> None:
    source = open_source(str(folder), validation=0.1)
    manifest = prepare(source, store, CONFIG)
    assert list(manifest.splits.items()) == [("train", 72), ("validation", 9), ("test", 9)]
    rows = contents(store, manifest)
    ids = {split: sorted(row[0] for row in rows.values() if row[1] == split) for split in manifest.splits}
    assert ids == {"train": list(range(72)), "validation": list(range(72, 81)), "test": list(range(81, 90))}
    assert [manifest.split_start(split) for split in manifest.splits] == [0, 72, 81]
    expected = {sample.key: split for split in source.splits for sample in source.splits[split].read()}
    assert {key: row[1] for key, row in rows.items()} == expected
    assert manifest.prepare["validation"] == 0.1


def test_an_unfinished_data_set_is_not_mixed_with_another(folder: Path, store: LocalStore) -> None:
    def kill(done: int, total: int, size: int, seconds: float) -> None:
        raise Killed

    with pytest.raises(Killed):
        prepare(open_source(str(folder)), store, CONFIG, kill)
    with pytest.raises(
        UserError, match=r"holds an unfinished data set \(.*images .*\), made from another source: finish it"
    ):
        prepare(open_source("mnist5k"), store, CONFIG)
    with pytest.raises(UserError, match=r"made with other settings \(prepare.shard_mb = 128 there, 64 now\)"):
        prepare(open_source(str(folder)), store, PrepareConfig(min_shards=3, shard_mb=64))


def test_images_that_do_not_decode_are_all_named_and_no_manifest_is_written(folder: Path, store: LocalStore) -> None:
    (folder / "a" / "004.jpg").write_bytes(b"<Error/>")
    whole = (folder / "c" / "007.jpg").read_bytes()
    (folder / "c" / "007.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        UserError, match=r"2 of 90 images cannot be used: a/004\.jpg \(not an image .*\); c/007\.jpg \(OSError"
    ) as info:
        prepare(open_source(str(folder)), store, CONFIG)
    assert "\n" not in str(info.value)
    assert not store.exists("manifest.json")


def test_a_file_that_vanishes_meanwhile_is_named(folder: Path, store: LocalStore) -> None:
    source = open_source(str(folder))
    (folder / "a" / "000.jpg").unlink()
    with pytest.raises(UserError, match=r"a/000\.jpg cannot be read: No such file"):
        prepare(source, store, CONFIG)


def test_unwritable_destination(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        prepare(open_source(str(folder)), LocalStore(uri=str(tmp_path / "file")), CONFIG)


def test_raw_and_jpeg_forms(folder: Path, tmp_path: Path) -> None:
    source = open_source(str(folder))
    raw = LocalStore(uri=str(tmp_path / "raw"))
    manifest = prepare(source, raw, PrepareConfig(form="raw", size=12))
    assert manifest.stored == Stored(form="raw", size=12, quality=0, channels=3, pixels="displayed")
    table = read_rows(raw, manifest.shards[0], [0])
    assert {len(record) for record in table["image"].to_pylist()} == {12 * 12 * 3}
    assert {image.shape for image in to_rgb(table, manifest.stored)} == {(12, 12, 3)}
    jpeg = LocalStore(uri=str(tmp_path / "jpeg"))
    manifest = prepare(source, jpeg, PrepareConfig(form="jpeg", size=18))
    shapes = {min(Image.open(io.BytesIO(row[3])).size) for row in contents(jpeg, manifest).values()}
    assert shapes == {16, 17, 18}


def test_encoding_by_form() -> None:
    image = picture(48, 30)
    sample = SourceSample(image=encoded(image, "PNG"), label=0, key="x", split="train")
    raw = encode(sample, Stored(form="raw", size=15, quality=0, channels=3))
    expected = image.resize((24, 15), Image.Resampling.BILINEAR).crop((4, 0, 19, 15))
    assert raw == expected.tobytes()
    small = encode(sample, Stored(form="jpeg", size=15, quality=90, channels=3))
    assert (small[:3], Image.open(io.BytesIO(small)).size) == (b"\xff\xd8\xff", (24, 15))
    digit = SourceSample(image=np.arange(16, dtype=np.uint8).reshape(4, 4), label=0, key="x", split="train")
    assert encode(digit, Stored(form="raw", size=4, quality=0, channels=1)) == bytes(range(16))


def test_form_must_fit_the_source(folder: Path) -> None:
    files, arrays = open_source(str(folder)), open_source("mnist5k")
    assert stored_form(arrays, PrepareConfig()) == Stored(form="raw", size=28, quality=0, channels=1)
    for source, config, message in (
        (arrays, PrepareConfig(form="original"), 'prepare.form "original" needs image files'),
        (files, PrepareConfig(form="raw"), 'prepare.size must be at least 1 for form "raw"'),
        (files, PrepareConfig(size=64), "prepare.size has no effect on image files kept as they are"),
    ):
        with pytest.raises(UserError, match=message):
            stored_form(source, config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"form": "png"}, "prepare.form must be one of auto, original, jpeg, raw, got 'png'"),
        ({"form": "jpeg"}, 'prepare.size must be at least 1 for form "jpeg"'),
        ({"form": "original", "size": 9}, 'prepare.size must be 0 for form "original"'),
        ({"size": -1}, "prepare.size"),
        ({"quality": 101}, "prepare.quality must be in 1..100, got 101"),
        ({"shard_mb": 0}, "prepare.shard_mb"),
        ({"min_shards": 0}, "prepare.min_shards"),
        ({"holdout": 1.0}, "prepare.holdout"),
        ({"validation": 1.0}, "prepare.validation must be in"),
        ({"max_bad_images": -1}, "prepare.max_bad_images"),
        ({"seed": -1}, "prepare.seed"),
    ],
)
def test_bad_settings_name_their_key(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrepareConfig(**fields)  # type: ignore[arg-type]


def test_shards_are_sized_by_bytes_and_never_fewer_than_asked(folder: Path) -> None:
    source = open_source("mnist5k")
    jobs = plan_shards(source, stored_form(source, PrepareConfig()), PrepareConfig(shard_mb=1))
    assert [job.path for job in jobs][3:5] == ["train-00003.parquet", "test-00000.parquet"]
    large = PrepareConfig(form="raw", size=112, shard_mb=16)
    jobs = plan_shards(source, stored_form(source, large), large)
    assert [sum(job.split == split for job in jobs) for split in ("train", "test")] == [4, 4]
    jobs = plan_shards(source, stored_form(source, large), PrepareConfig(form="raw", size=112, shard_mb=4))
    assert [sum(job.split == split for job in jobs) for split in ("train", "test")] == [12, 4]
    few = open_source(str(folder), holdout=0.01)
    assert [len(job.positions) for job in plan_shards(few, stored_form(few, CONFIG), PrepareConfig(min_shards=9))][
        -3:
    ] == [1, 1, 1]
