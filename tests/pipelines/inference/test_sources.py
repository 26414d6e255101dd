"""Images to be classified are found wherever they lie, each of them in exactly one part of its source."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from infra.errors import UserError
from infra.storage import LocalStore
from pipelines.config.crop import CropConfig
from pipelines.data.images.pillow import decode_rgb
from pipelines.inference.sources import find_images
from pipelines.inference.sources.files import ImageFiles
from pipelines.inference.sources.images import Images, UnlabelledImage, decoded
from tests.pipelines.conftest import COLOURS, SIZE, Coloured, picture
from tests.pipelines.data.built import jpeg, put
from tests.pipelines.data.images.test_crops import textured

CROP = CropConfig(image_size=SIZE, eval_resize=SIZE)


def pictures(images: Images) -> list[UnlabelledImage]:
    assert [part.first for part in images.parts] == np.cumsum([0, *(p.rows for p in images.parts)])[:-1].tolist()
    found = [list(images.read(part)) for part in images.parts]
    assert [len(each) for each in found] == [part.rows for part in images.parts]
    return [each for part in found for each in part]


def encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(COLOURS["lime"], seed).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """200 pictures in two folders, with what is no picture beside them."""
    for place in range(200):
        file = tmp_path / "album" / ("a" if place % 2 else "b/c") / f"{place:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(place))
    (tmp_path / "album/notes.txt").write_text("no picture")
    (tmp_path / "album/.hidden.png").write_text("no picture")
    return tmp_path / "album"


def test_files_below_folders_and_by_name(album: Path) -> None:
    single = album.parent / "one.unusual"
    single.write_bytes(encoded(500))
    images = find_images([str(album), str(single)])
    found = pictures(images)
    assert images.description == "201 image files"
    assert [each.id for each in found] == list(range(201))
    assert found[0].path == f"{album}/a/001.png" and found[-1].path == str(single)
    assert {each.path for each in found[:-1]} == {str(path) for path in album.rglob("0*.png")} | {
        str(path) for path in album.rglob("1*.png")
    }
    assert found[-1].record == single.read_bytes()
    assert find_images([str(album)]).fingerprint == find_images([str(album)]).fingerprint
    before = find_images([str(album)]).fingerprint
    (album / "a/001.png").write_bytes(b"longer" * 1000)
    assert find_images([str(album)]).fingerprint != before


def test_a_file_that_went_away_has_a_fault(album: Path) -> None:
    images = find_images([str(album)])
    (album / "a/003.png").unlink()
    faulty = [each for each in pictures(images) if each.fault]
    assert [(each.path, each.fault) for each in faulty] == [
        (f"{album}/a/003.png", "cannot be read: No such file or directory")
    ]


def test_a_data_set_by_its_manifest(colours: Coloured) -> None:
    every, test = (pictures(find_images([colours.store.uri], split)) for split in (None, "test"))
    start, rows = colours.manifest.split_start("test"), colours.manifest.splits["test"]
    assert [each.id for each in every] == list(range(colours.manifest.total_rows))
    assert [each.id for each in test] == list(range(start, start + rows))
    assert every[start].path == test[0].path and test[0].path.endswith(".png")
    with pytest.raises(UserError, match="has no split 'val'"):
        find_images([colours.store.uri], "val")


def test_a_damaged_row_group_of_a_data_set_is_named_row_by_row(colours: Coloured, tmp_path: Path) -> None:
    for name, _ in colours.store.list():
        LocalStore(uri=str(tmp_path)).write(name, colours.store.read(name))
    shard = colours.manifest.shards_of("test")[0]
    data = bytearray((tmp_path / shard.path).read_bytes())
    data[shard.groups[0].start + 100] ^= 1
    (tmp_path / shard.path).write_bytes(data)
    faulty = [each for each in pictures(find_images([str(tmp_path)], "test")) if each.fault]
    assert len(faulty) == shard.groups[0].rows
    assert faulty[0].fault.startswith("unreadable: row group 0")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two Parquet files in the form of Hugging Face, without labels; row 11 has no image and row 12 no good one."""
    images = [{"bytes": encoded(place), "path": None} for place in range(11)]
    (tmp_path / "table").mkdir()
    pq.write_table(pa.table({"image": images}), tmp_path / "table/a.parquet", row_group_size=4)
    bad = [{"bytes": None, "path": None}, {"bytes": b"junk", "path": None}]
    pq.write_table(pa.table({"image": bad}), tmp_path / "table/b.parquet")
    return tmp_path / "table"


def test_any_parquet_with_an_image_column(table: Path) -> None:
    images = find_images([str(table)])
    found = pictures(images)
    assert [part.rows for part in images.parts] == [4, 4, 3, 2]
    assert [each.id for each in found] == list(range(13))
    assert (found[5].path, found[12].path) == ("a.parquet#5", "b.parquet#1")
    assert found[5].record == encoded(5)
    assert [each.fault for each in found[10:]] == ["", "the row has no image", ""]
    assert len(pictures(find_images([str(table / "a.parquet")]))) == 11


def test_a_damaged_row_group_of_parquet_has_faults(table: Path) -> None:
    data = bytearray((table / "a.parquet").read_bytes())
    column = pq.read_metadata(table / "a.parquet").row_group(1).column(0)
    data[column.data_page_offset : column.data_page_offset + 30] = bytes(30)
    (table / "a.parquet").write_bytes(data)
    found = pictures(find_images([str(table)]))
    assert [bool(each.fault) for each in found[:11]] == [False] * 4 + [True] * 4 + [False] * 3
    assert found[4].fault.startswith("cannot be read: ")


def test_blocks_are_what_evaluation_sees_and_name_what_is_bad(table: Path) -> None:
    images = find_images([str(table)])
    blocks = [block for part in images.parts for block in decoded(images, part, CROP.shown, rows_per_block=3)]
    assert [len(block["id"]) for block in blocks] == [3, 1, 3, 1, 3, 2]
    pixels = np.concatenate([block["image"] for block in blocks])
    np.testing.assert_array_equal(pixels[7], decode_rgb(encoded(7))[:, 2:-2])
    assert pixels[11:].max() == 0
    assert np.concatenate([block["reason"] for block in blocks]).tolist() == [
        *[""] * 11,
        "the row has no image",
        "not an image (4 bytes)",
    ]


def test_what_is_not_there_or_does_not_go_together(album: Path, table: Path, colours: Coloured, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("a")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "texts.parquet")
    for texts, split, reason in (
        ([f"{tmp_path}/none.png"], None, f"there is no image file {tmp_path}/none.png"),
        ([f"{tmp_path}/empty"], None, "is empty"),
        ([f"{tmp_path}/texts"], None, "texts holds no images (found 1 .txt): their names end in .jpg"),
        ([f"{tmp_path}/texts.parquet"], None, "has no image column"),
        ([str(album), colours.store.uri], None, "is a data set or Parquet: name it alone"),
        ([str(album), str(table)], None, "is a data set or Parquet: name it alone"),
        ([str(album)], "test", "--split is for a data set that prepare.py wrote"),
    ):
        with pytest.raises(UserError) as refused:
            find_images(texts, split)
        assert reason in str(refused.value)
    (table / "x.png").write_bytes(encoded(0))
    with pytest.raises(UserError, match=r"holds both a.parquet and x.png"):
        find_images([str(table)])


def test_a_name_that_is_not_utf8_is_shown_escaped_and_the_image_is_read(tmp_path: Path) -> None:
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "caf\udce9.jpg").write_bytes(jpeg(1))
    images = find_images([str(tmp_path / "album")])
    (seen,) = images.read(images.parts[0])
    assert (seen.path, seen.record) == (f"{tmp_path}/album/caf\\xe9.jpg", jpeg(1))
    assert seen.path.encode()
    named = find_images([f"{tmp_path}/album/caf\udce9.jpg"])
    assert next(named.read(named.parts[0])).path == seen.path


def test_files_of_other_kinds_are_counted_and_junk_is_not(tmp_path: Path) -> None:
    put(tmp_path / "album", {"a.jpg": jpeg(1), "b.jfif": jpeg(2), "c.psd": b"x", "d.txt": b"x", "Thumbs.db": b"x"})
    images = find_images([str(tmp_path / "album")])
    assert isinstance(images, ImageFiles)
    assert [seen.path.rpartition("/")[2] for part in images.parts for seen in images.read(part)] == ["a.jpg", "b.jfif"]
    assert images.notes == [f"left out: 2 files of other kinds (1 .psd, 1 .txt) below {tmp_path}/album"]
    put(tmp_path / "none", {"c.psd": b"x"})
    with pytest.raises(UserError, match=r"/none holds no images \(found 1 \.psd\): their names end in \.jpg, "):
        find_images([str(tmp_path / "none")])


def test_somebody_elses_manifest_does_not_hide_the_pictures(tmp_path: Path) -> None:
    put(tmp_path, {"album/1.jpg": jpeg(1), "manifest.json": b'{"name": "My photos", "icons": [], "start_url": "/"}'})
    images = find_images([str(tmp_path)])
    assert isinstance(images, ImageFiles)
    assert len(images.folders[0].paths) == 1


def test_a_rotated_photo_is_classified_as_its_upright_twin(tmp_path: Path) -> None:
    """By a version whose metadata say so; one that was registered before gets the stored pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = textured(40, 30)
    buffer = io.BytesIO()
    photo.save(buffer, "PNG", exif=exif)
    turned, upright = io.BytesIO(), photo.transpose(Image.Transpose.ROTATE_270)
    upright.save(turned, "PNG")
    put(tmp_path / "album", {"a.png": buffer.getvalue(), "b.png": turned.getvalue()})
    images = find_images([str(tmp_path / "album")])
    model = {**CROP.shown, "pixels": "displayed"}
    (block,) = (block for part in images.parts for block in decoded(images, part, model, 9))
    np.testing.assert_array_equal(block["image"][0], block["image"][1])
    (old,) = (block for part in images.parts for block in decoded(images, part, CROP.shown, 9))
    assert (old["image"][0] != old["image"][1]).any()
    np.testing.assert_array_equal(old["image"][1], block["image"][1])
