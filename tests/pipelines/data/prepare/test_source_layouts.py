"""Sources laid out in unusual ways: read as meant, or refused in one line with what was expected; nothing is dropped
without a word."""

from __future__ import annotations

import gzip
import io
import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from infra.errors import UserError
from infra.storage import LocalStore
from pipelines.config.prepare import PrepareConfig
from pipelines.data.prepare.shard_plan import stored_form
from pipelines.data.prepare.source import Source
from pipelines.data.prepare.sources import open_source
from pipelines.data.shards.manifest import MANIFEST, check_shards
from tests.pipelines.data import built
from tests.pipelines.data.built import jpeg, put, tar_bytes
from tests.pipelines.data.conftest import layout_only


def pictures(*folders: str, count: int = 4) -> dict[str, bytes]:
    return {f"{folder}/{n}.jpg": jpeg(n) for folder in folders for n in range(count)}


def samples(start: int, count: int, prefix: str = "") -> bytes:
    numbers = range(start, start + count)
    return tar_bytes(
        [
            (f"{prefix}{n:06d}.{end}", data)
            for n in numbers
            for end, data in (("cls", b"%d" % (n % 2)), ("jpg", jpeg(n)))
        ]
    )


def opened(root: Path, files: Mapping[str, bytes], **settings: float) -> Source:
    return open_source(str(put(root, dict(files))), **{"holdout": 0.25, **settings})  # type: ignore[arg-type]


def refused(root: Path, files: Mapping[str, bytes], *told: str) -> None:
    with pytest.raises(UserError) as info:
        _ = opened(root, files).contents
    message = str(info.value)
    assert "\n" not in message
    for words in told:
        assert words in message


# Folders


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("TRAIN", "VAL"),
        ("Training", "Testing"),
        ("training_set", "test_set"),
        ("train2017", "val2017"),
        ("train_images", "Validation"),
        ("trainset", "testset"),
        ("train", "Evaluation"),
        ("seg_train", "seg_test"),
        ("Brain Train", "Brain Valid"),
    ],
)
def test_split_folders_are_known_in_any_case_and_under_their_usual_names(tmp_path: Path, train: str, test: str) -> None:
    files = pictures(f"{train}/ant", f"{train}/bee", count=5) | pictures(f"{test}/ant", f"{test}/bee", count=2)
    source = opened(tmp_path, files)
    assert (source.class_names, source.rows) == (("ant", "bee"), {"train": 10, "test": 4})
    assert f"{train}/ and {test}/" in source.description


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        (("train/ant", "val"), ("/val holds 4 images but no class folders: expected ", "/val/CLASS/*.jpg")),
        (("train/ant", "val/ant", "test"), ("/test holds 4 images but no class folders",)),
        (("train", "val/ant"), ("/train holds 4 images but no class folders",)),
        (("train", "test"), ("/train holds 4 images but no class folders",)),
        (("train",), ("/train holds 4 images but no class folders",)),
        (("ant", "bee", "test"), ("/test is next to the class folder ant/", "a class needs another name")),
        (("train/ant", "bee"), ("has train/ with folders in it, but also images in bee/", "CLASS/*.jpg")),
        (("Train/ant", "train/ant", "val/ant"), ("has both Train and train, and both mean the train split",)),
        (("train/ant", "val/ant", "valid/ant"), ("has both val and valid, and both mean the validation split",)),
        (("test/ant", "val/ant"), ("but no train/",)),
        (("train/Cat", "val/cat"), ("/val/cat has no counterpart in train/ (did you mean Cat?)",)),
        (("train/ant", "val/images"), ("/val/images has no counterpart in train/",)),
        (("photos/ant", "photos/bee"), ("holds a single folder with folders in it (photos/ant/): name ", "/photos")),
        (("one/ant", "one/bee", "two/ant", "two/bee"), ("the folders one/ and two/", "all hold the same folders")),
    ],
)
def test_folders_that_are_not_understood_are_refused_with_what_was_expected(
    tmp_path: Path, folders: Sequence[str], told: Sequence[str]
) -> None:
    refused(tmp_path, pictures(*folders), *told)


def test_a_class_may_be_called_train_and_hold_folders_of_its_own(tmp_path: Path) -> None:
    assert opened(tmp_path / "a", pictures("bus", "car", "train")).class_names == ("bus", "car", "train")
    deep = opened(tmp_path / "b", pictures("test_tube/one", "test_tube/two", "train_station", "bus/left"))
    assert (deep.class_names, sum(deep.rows.values())) == (("bus", "test_tube", "train_station"), 16)


def test_class_names_in_two_spellings_of_unicode_are_one_class(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    source = opened(tmp_path / "a", pictures(f"train/{composed}", "train/tea") | pictures(f"val/{apart}", count=2))
    assert (source.class_names, source.rows) == ((composed, "tea"), {"train": 8, "test": 2})
    refused(tmp_path / "b", pictures(composed, apart), "in two spellings of Unicode: merge the two folders")


def test_pictures_are_known_by_all_usual_suffixes_and_others_are_counted(tmp_path: Path) -> None:
    names = [f"{n}{suffix}" for n, suffix in enumerate((".jpg", ".JFIF", ".jpe", ".jif", ".mpo", ".pjpeg", ".JPEG"))]
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "PNG")
    files = {f"red/{name}": jpeg(n) for n, name in enumerate(names)} | {"red/a.apng": png.getvalue()}
    others = {"red/a.psd": b"x", "red/b.PSD": b"x", "red/notes.txt": b"x", "readme": b"x", "red/Thumbs.db": b"x"}
    source = opened(tmp_path, {**files, **others, "stray.jpg": jpeg(1)}, holdout=0)
    assert source.rows == {"train": 8}
    assert source.notes == (
        "left out: 1 image in no class folder (stray.jpg)",
        "left out: 4 files of other kinds (2 .psd, 1 .txt, 1 without a suffix)",
    )
    refused(tmp_path / "only", {"red/a.psd": b"x"}, "/red holds no images (found 1 .psd; read are .jpg, ")


def test_avif_and_heic_count_as_images_whatever_is_installed(tmp_path: Path) -> None:
    files = {"red/a.avif": b"x", "red/b.HEIC": b"x", "red/c.heif": b"x"}
    assert opened(tmp_path, files, holdout=0).rows == {"train": 3}


def test_imagenet_in_class_folders_keeps_its_stored_pixels(tmp_path: Path) -> None:
    photos = opened(tmp_path / "photos", {"n01/a.jpg": b"x", "n01440764/a.jpg": b"x"}, holdout=0)
    imagenet = opened(tmp_path / "imagenet", {"n01440764/a.jpg": b"x", "n01443537/a.jpg": b"x"}, holdout=0)
    assert (photos.pixels, imagenet.pixels) == ("displayed", "stored")
    assert stored_form(imagenet, PrepareConfig()).displayed is False
    assert stored_form(imagenet, PrepareConfig(pixels="displayed")).displayed is True
    assert stored_form(photos, PrepareConfig()).displayed is True
    assert stored_form(photos, PrepareConfig(pixels="stored")).displayed is False


def test_what_operating_systems_leave_is_not_a_class(tmp_path: Path) -> None:
    files = pictures("red", "blue") | pictures("__MACOSX/red", "@eaDir/blue", "red/@eaDir", "red/.ipynb_checkpoints")
    source = opened(tmp_path, files, holdout=0)
    assert (source.class_names, source.rows, source.notes) == (("blue", "red"), {"train": 8}, ())


def test_a_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    put(tmp_path, pictures("red"))
    (tmp_path / "red" / "caf\udce9.jpg").write_bytes(jpeg(1))
    refused(tmp_path, {}, r"/red/caf\xe9.jpg: this name is not UTF-8: rename it")


@pytest.mark.parametrize(
    ("files", "name", "told"),
    [
        (pictures("flat"), "flat", ("holds 4 images but no class folders: expected ", "/flat/CLASS/*.jpg")),
        (
            {"flat/a.jpg": b"", "flat/labels.csv": b""},
            "flat",
            ("holds 1 image but no class folders; for labels in a table, name ",),
        ),
        (
            {"labels.xlsx": b"a,b"},
            "labels.xlsx",
            ("is a table of another kind: save it as CSV: expected SOURCE/CLASS/*.jpg",),
        ),
        ({"a.jpg": b""}, "a.jpg", ("is one image: expected SOURCE/CLASS/*.jpg",)),
        ({"a.zip": b""}, "a.zip", ("is an archive that is not read: unpack it",)),
        ({"in/a.zip": b""}, "in", ("holds a.zip, an archive that is not read: unpack it",)),
        ({"in/a.bin": b""}, "in", ("holds no supported files (1 .bin)",)),
    ],
)
def test_a_source_of_another_kind_is_told_what_was_expected(
    tmp_path: Path, files: dict[str, bytes], name: str, told: Sequence[str]
) -> None:
    put(tmp_path, files)
    refused(tmp_path / name, {}, *told)
    with pytest.raises(UserError) as info:
        open_source(str(tmp_path / name))
    assert len(str(info.value).replace(str(tmp_path), "")) < 250


def test_a_data_set_is_no_source_but_a_foreign_manifest_is_only_a_file(tmp_path: Path) -> None:
    foreign = opened(tmp_path / "a", pictures("red", count=2) | {MANIFEST: b'{"name": "My photos"}'}, holdout=0)
    assert foreign.rows == {"train": 2}
    refused(tmp_path / "b", {MANIFEST: b'{"format_version": 1}', "train-00000.parquet": b""}, "is a data set that prep")


# Archives and Parquet


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"),
        ("imagenet-train-000000.tar", "imagenet-val-000000.tar"),
        ("imagenetTrain-0.tar", "imagenetTest-0.tar"),
        ("birds_TRAIN_0.tar", "birds_VALID_0.tar"),
        ("train2017.tar", "val2017.tar"),
        ("shards/imagenet-train/0.tar", "shards/imagenet-val/0.tar"),
        ("Training/0.tar", "Testing/0.tar"),
    ],
)
def test_archives_say_their_split_anywhere_in_the_name(tmp_path: Path, train: str, val: str) -> None:
    source = opened(tmp_path, {train: samples(0, 8), val: samples(10, 4)})
    assert source.rows == {"train": 8, "test": 4}


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("train-val-0.tar", "test-0.tar"), "names more than one split (train, val)"),
        (("imagenet-val-0.tar", "imagenet-x-0.tar"), "imagenet-x-0.tar does not say its split"),
        (("imagenettrain.tar", "imagenetval.tar"), "do not say their splits: begin their names with train- and val-"),
        (("train-0.tar", "val-0.tar", "valid-0.tar"), "has both val and valid"),
    ],
)
def test_archives_whose_split_is_not_clear_are_refused(tmp_path: Path, names: Sequence[str], told: str) -> None:
    refused(tmp_path, {name: samples(0, 4) for name in names}, told)


@pytest.mark.parametrize("name", ["train-0.tar", "birds-0.tar"])
def test_archives_for_training_alone_have_a_share_held_out(tmp_path: Path, name: str) -> None:
    source = opened(tmp_path, {name: samples(0, 8), "index.json": b"{}"})
    assert source.rows == {"train": 6, "test": 2}
    assert source.notes == ("left out: 1 file of other kinds (1 .json)",)
    assert "0.25 of each class held out" in source.description


def test_parquet_for_training_alone_has_a_share_held_out(tmp_path: Path) -> None:
    table = built.parquet_bytes([jpeg(n) for n in range(8)], [n % 2 for n in range(8)])
    assert opened(tmp_path, {"train-0.parquet": table}).rows == {"train": 6, "test": 2}


def test_archives_one_after_another_are_read_to_the_end(tmp_path: Path) -> None:
    joined = samples(0, 4) + samples(10, 4) + bytes(20480) + samples(20, 4)
    source = opened(tmp_path, {"train-0.tar": joined}, holdout=0)
    assert [s.image for s in source.splits["train"].read()] == [
        jpeg(n) for n in (*range(4), *range(10, 14), *range(20, 24))
    ]
    refused(tmp_path / "rest", {"train-0.tar": samples(0, 4) + b"more"}, "is not a whole, uncompressed tar")
    refused(tmp_path / "again", {"train-0.tar": samples(0, 4) * 2}, "belongs to two samples: keys must be unique")


def test_imagenets_class_archives_are_read_to_the_end(tmp_path: Path) -> None:
    files = built.imagenet_files()
    classes = [
        (
            f"{wnid}.tar",
            b"".join(tar_bytes([(f"{wnid}_{n}.JPEG", jpeg(n)), (f"._{wnid}_{n}.JPEG", b"x")]) for n in range(3)),
        )
        for wnid in built.WNIDS
    ]
    files["ILSVRC2012_img_train.tar"] = tar_bytes(classes[:2]) + tar_bytes(classes[2:])
    assert opened(tmp_path, files).rows == {"train": 12, "test": 6}


def test_files_of_macos_in_archives_are_passed_over(tmp_path: Path) -> None:
    members = [
        (f"./{dot}{n:03d}.{end}", b"0" if end == "cls" else jpeg(n))
        for n in range(4)
        for end in ("cls", "jpg")
        for dot in ("._", "")
    ]
    members += [("__MACOSX/000.jpg", b"x"), (".DS_Store", b"x")]
    assert opened(tmp_path, {"train-0.tar": tar_bytes(members)}, holdout=0).rows == {"train": 4}


def test_the_label_does_not_depend_on_the_order_of_the_files(tmp_path: Path) -> None:
    words = json.dumps({"label": "red"}).encode()
    for place, order in enumerate((("json", "cls"), ("cls", "json"))):
        data = {"json": words, "cls": b"1\n"}
        members = [(f"0.{end}", data[end]) for end in order] + [("0.jpg", jpeg(0))]
        source = opened(tmp_path / f"a{place}", {"train-0.tar": tar_bytes(members)}, holdout=0)
        assert source.splits["train"].labels.tolist() == [1]
        data = {"json": b'{"label": 2}', "cls": b"1"}
        members = [(f"0.{end}", data[end]) for end in order] + [("0.jpg", jpeg(0))]
        told = "sample '0' is of class 1 by its .cls and of 2 by its .json"
        refused(tmp_path / f"b{place}", {"train-0.tar": tar_bytes(members)}, told)
    alone = tar_bytes([("0.json", words), ("0.jpg", jpeg(0))])
    refused(tmp_path / "c", {"train-0.tar": alone}, "holds 'red', which is not a class number")


@pytest.mark.parametrize("name", ["train-0.tar", "train-0.parquet"])
def test_a_pointer_of_git_lfs_is_told_as_one(tmp_path: Path, name: str) -> None:
    refused(tmp_path, {name: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"}, "run git lfs pull")


def hugging_face(images: Sequence[bytes | None], labels: Sequence[int], names: object) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    rows = [{"bytes": image, "path": f"/home/me/{n}.jpg"} for n, image in enumerate(images)]
    column = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    sink = pa.BufferOutputStream()
    table = pa.table({"image": column, "label": pa.array(labels)}).replace_schema_metadata(metadata)
    pq.write_table(table, sink, row_group_size=4)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("names", "expected"),
    [(None, ("0", "1")), ([], ("0", "1")), ({"1": "dog", "0": "cat"}, ("cat", "dog")), (7, ("0", "1"))],
)
def test_descriptions_of_hugging_face_without_names(tmp_path: Path, names: object, expected: tuple[str, ...]) -> None:
    table = hugging_face([jpeg(n) for n in range(8)], [n % 2 for n in range(8)], names)
    assert opened(tmp_path, {"train-0.parquet": table}).class_names == expected


def test_paths_without_bytes_are_told_as_such(tmp_path: Path) -> None:
    labels = [n % 2 for n in range(8)]
    refused(
        tmp_path / "a",
        {"train-0.parquet": hugging_face([None] * 8, labels, ["a", "b"])},
        "column image holds the paths of the images and no bytes",
    )
    some = hugging_face([None, *(jpeg(n) for n in range(7))], labels, ["a", "b"])
    assert opened(tmp_path / "b", {"train-0.parquet": some}, holdout=0).rows == {"train": 8}


def test_a_test_split_without_labels_is_left_out_and_said(tmp_path: Path) -> None:
    labelled = hugging_face([jpeg(n) for n in range(8)], [n % 2 for n in range(8)], ["a", "b"])
    contest = hugging_face([jpeg(n) for n in range(8)], [-1] * 8, ["a", "b"])
    files = {"train-0.parquet": labelled, "validation-0.parquet": labelled, "test-0.parquet": contest}
    source = opened(tmp_path, files)
    assert source.rows == {"train": 8, "test": 8}
    assert "validation" in next(source.splits["test"].read()).key
    assert source.notes == ("left out: 1 file of test, whose labels are all -1",)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_with_a_dot_in_the_name(tmp_path: Path, suffix: str) -> None:
    files = built.idx_files()
    dotted = {
        name.replace("-idx", ".idx").removesuffix(".gz") + suffix: data if suffix else gzip.decompress(data)
        for name, data in files.items()
    }
    assert opened(tmp_path, dotted).rows == {"train": 30, "test": 10}


def test_stray_reports_of_prepare_are_its_own(tmp_path: Path) -> None:
    store = LocalStore(uri=str(put(tmp_path, {"train-00000.parquet": bytes(1000), "duplicates.parquet": b"x",
                                              "rejected.parquet": b"x", "other.parquet": b"x"})))  # fmt: skip
    assert check_shards(store, layout_only([[5]])) == ["other.parquet"]
