"""ImageNet's archives, CIFAR, WebDataset and Parquet, read from a local folder."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from infra.errors import UserError
from infra.storage import LocalStore
from pipelines.data.prepare.source import Source, SourceSample
from pipelines.data.prepare.sources import open_source
from pipelines.data.prepare.sources.ranges import Ranges
from tests.pipelines.data import built
from tests.pipelines.data.built import jpeg, put


def by_key(source: Source, split: str) -> dict[str, SourceSample]:
    return {sample.key: sample for sample in source.splits[split].read()}


# ImageNet


def test_imagenet_archives_have_torchvisions_classes_and_keys(tmp_path: Path) -> None:
    source = open_source(str(put(tmp_path, built.imagenet_files())))
    assert source.class_names == (
        "n01440764 tench, Tinca tinca",
        "n01443537 goldfish, Carassius auratus",
        "n02012849 crane",
        "n03126707 crane",
    )
    assert source.rows == {"train": 24, "test": 6}
    train = by_key(source, "train")
    assert [(key, s.label) for key, s in train.items()][6:8] == [
        ("train/n01443537/n01443537_0.JPEG", 1),
        ("train/n01443537/n01443537_1.JPEG", 1),
    ]
    assert train["train/n03126707/n03126707_5.JPEG"].image == jpeg(305)
    test = by_key(source, "test")
    # ground truth 1, 3, 3, 2, 4, 1 are ILSVRC2012_IDs; by meta.mat those are goldfish, tench, tench, crane, crane, …
    labels = {int(key[-13:-5]): sample.label for key, sample in test.items()}
    assert labels == {1: 1, 2: 0, 3: 0, 4: 3, 5: 2, 6: 1}
    assert test["val/n01440764/ILSVRC2012_val_00000003.JPEG"].image == jpeg(1003)


def test_imagenets_index_is_kept_and_follows_the_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, keep = put(tmp_path / "archives", built.imagenet_files()), LocalStore(uri=str(tmp_path / "out"))
    first = open_source(str(root), keep=keep)
    expected = {split: by_key(first, split) for split in first.splits}
    assert [path[:16] for path, _ in keep.list()] == ["_progress/index-"]

    def fail(*_: object) -> None:
        raise AssertionError("listed again")

    with monkeypatch.context() as patched:
        patched.setattr("pipelines.data.prepare.sources.imagenet.stored_members", fail)
        again = open_source(str(root), keep=keep)
        assert {split: by_key(again, split) for split in again.splits} == expected
        assert again.fingerprint == first.fingerprint
    # As many bytes as before, but images 1 and 2 have changed places: the archive was written anew.
    numbers = {3: 3, 1: 2, 2: 1, 6: 6, 5: 5, 4: 4}
    swapped = [(f"ILSVRC2012_val_{number:08d}.JPEG", jpeg(1000 + image)) for number, image in numbers.items()]
    put(root, {"ILSVRC2012_img_val.tar": built.tar_bytes(swapped)})
    changed = by_key(open_source(str(root), keep=keep), "test")
    assert changed["val/n01440764/ILSVRC2012_val_00000002.JPEG"].image == jpeg(1001)


def test_the_same_archives_elsewhere_are_the_same_source(tmp_path: Path) -> None:
    files = built.imagenet_files()
    sources = [open_source(str(put(tmp_path / name, files))) for name in ("a", "b")]
    assert sources[0].fingerprint == sources[1].fingerprint
    files["ILSVRC2012_devkit_t12.tar.gz"] = built.devkit((1, 3, 3, 2, 4, 2))
    assert open_source(str(put(tmp_path / "c", files))).fingerprint != sources[0].fingerprint


def _without(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {path: data for path, data in files.items() if path != name}


def test_imagenet_archives_that_are_not_whole(tmp_path: Path) -> None:
    files = built.imagenet_files()
    train, val, devkit = files

    def refused(changed: dict[str, bytes], message: str) -> None:
        root = put(tmp_path / str(len(list(tmp_path.iterdir()))), changed)
        with pytest.raises(UserError, match=message) as info:
            _ = open_source(str(root)).contents
        assert "\n" not in str(info.value)

    alone = put(tmp_path / "alone", files) / train
    with pytest.raises(UserError, match=f"{train} is one of ImageNet's three archives: name the folder"):
        open_source(str(alone))
    refused(_without(files, devkit), f"has archives of ImageNet but no {devkit}: put it in the same folder")
    refused({**files, train: files[train][:-9000]}, f"{train}.* ends at byte|{train} is not a whole")
    one_less = [(f"{wnid}.tar", built.tar_bytes([(f"{wnid}_0.JPEG", jpeg(0))])) for wnid in built.WNIDS[1:]]
    refused(
        {**files, train: built.tar_bytes(one_less)}, rf"{train} holds no n01440764\.tar, a class that {devkit} names"
    )
    extra = [*one_less, ("n01440764.tar", built.tar_bytes([("a.JPEG", b"")])), ("n09999999.tar", b"")]
    refused({**files, train: built.tar_bytes(extra)}, rf"{train} holds n09999999\.tar, which is not the tar of a class")
    links = [*one_less, ("n01440764.tar", built.tar_bytes([("../../x.JPEG", b"1")]))]
    refused(
        {**files, train: built.tar_bytes(links)}, rf"{train}/n01440764\.tar: member '\.\./\.\./x\.JPEG' leads outside"
    )
    refused(
        {**files, val: built.tar_bytes([("ILSVRC2012_val_00000007.JPEG", b"")])},
        "is not one of images 1 to 6, or is there twice",
    )
    five = [(f"ILSVRC2012_val_{number:08d}.JPEG", b"x") for number in range(1, 6)]
    refused({**files, val: built.tar_bytes(five)}, f"{val} holds 5 images, {devkit} has labels for 6")
    refused({**files, devkit: built.devkit((1, 9))}, r"ground_truth\.txt: 9 is not a class number")
    empty = gzip.compress(built.tar_bytes([("ILSVRC2012_devkit_t12/readme.txt", b"")]))
    refused({**files, devkit: empty}, rf"{devkit} holds no data/meta\.mat")
    other = io.BytesIO()
    scipy.io.savemat(other, {"something": np.zeros(3)})
    meta = [("d/data/meta.mat", other.getvalue()), ("d/data/ILSVRC2012_validation_ground_truth.txt", b"1\n")]
    refused({**files, devkit: gzip.compress(built.tar_bytes(meta))}, r"meta\.mat is not ImageNet's table of synsets")


def test_a_devkit_that_unpacks_to_too_much_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.data.prepare.sources.imagenet._MOST_DEVKIT_BYTES", 1 << 20)
    bomb = {"ILSVRC2012_devkit_t12.tar.gz": gzip.compress(bytes(8 << 20))}
    root = put(tmp_path, {**built.imagenet_files(), **bomb})
    with pytest.raises(UserError, match=r"devkit_t12\.tar\.gz holds more than 1,048,576 bytes"):
        _ = open_source(str(root)).contents


# CIFAR


@pytest.mark.parametrize("archive", [False, True])
def test_cifar_10(tmp_path: Path, archive: bool) -> None:
    files = built.cifar_files(10)
    root = put(
        tmp_path, built.cifar_archive(10) if archive else {f"cifar-10-batches-bin/{n}": d for n, d in files.items()}
    )
    source = open_source(str(root))
    assert (source.rows, source.side, source.channels) == ({"train": 60, "test": 12}, 32, 3)
    assert source.class_names[::9] == ("class0", "class9")
    sample = by_key(source, "train")["data_batch_2.bin/00003"]
    record = files["data_batch_2.bin"][3 * 3073 : 4 * 3073]
    assert sample.label == record[0] == 3
    assert isinstance(sample.image, np.ndarray)
    assert sample.image[5, 7].tolist() == [record[1 + plane * 1024 + 5 * 32 + 7] for plane in range(3)]


def test_cifar_100_has_its_fine_labels(tmp_path: Path) -> None:
    source = open_source(str(put(tmp_path, built.cifar_files(100))))
    assert len(source.class_names) == 100
    assert source.splits["test"].labels.tolist() == list(range(12))
    archive = put(tmp_path / "a", built.cifar_archive(100))
    assert open_source(str(archive)).fingerprint == source.fingerprint
    assert open_source(str(archive / "cifar-100-binary.tar.gz")).fingerprint == source.fingerprint


def test_bad_cifar(tmp_path: Path) -> None:
    files = built.cifar_files(10)
    cut = {**files, "data_batch_3.bin": files["data_batch_3.bin"][:-1]}
    with pytest.raises(UserError, match=r"data_batch_3\.bin has 36,875 bytes, expected a multiple of 3,073"):
        open_source(str(put(tmp_path / "cut", cut)))
    with pytest.raises(UserError, match=r"has files of CIFAR-10 but no data_batch_3\.bin"):
        open_source(str(put(tmp_path / "less", _without(files, "data_batch_3.bin"))))
    with pytest.raises(UserError, match=r"label 9 of train sample 9 is outside 0\.\.8"):
        few = b"\n".join(f"class{n}".encode() for n in range(9))
        open_source(str(put(tmp_path / "few", {**files, "batches.meta.txt": few})))
    (tmp_path / "python" / "cifar-10-batches-py").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"cifar-10-batches-py is pickled and not opened: take cifar-10-binary\.tar\.gz"
    ):
        open_source(str(tmp_path / "python"))


# WebDataset


def test_webdataset_tars(tmp_path: Path) -> None:
    source = open_source(str(put(tmp_path, built.webdataset_files())))
    assert source.rows == {"train": 10, "test": 5}
    assert source.class_names == ("0", "1", "2")
    train = by_key(source, "train")
    assert train["train-0001/0003"].image == jpeg(8)
    assert [sample.label for sample in train.values()] == [n % 3 for n in range(10)]
    test = by_key(source, "test")
    assert [(key, sample.label) for key, sample in test.items()][:2] == [("val-0000/0000", 0), ("val-0000/0001", 1)]


def test_webdataset_in_folders_with_class_names_or_held_out(tmp_path: Path) -> None:
    files = built.webdataset_files()
    tree = {"train/a.tar": files["train-0000.tar"], "test/a.tar": files["val-0000.tar"], "classes.txt": b"x\ny\nz\nw\n"}
    source = open_source(str(put(tmp_path / "tree", tree)))
    assert (source.rows, source.class_names) == ({"train": 5, "test": 5}, ("x", "y", "z", "w"))
    single = put(tmp_path / "single", {"pictures.tar": files["train-0000.tar"]})
    assert open_source(str(single)).rows == {"train": 2, "test": 3} or open_source(str(single)).rows["test"] == 2
    assert open_source(str(single / "pictures.tar"), holdout=0).rows == {"train": 5}
    with pytest.raises(UserError, match="names 2 classes, and a label is 2"):
        _ = open_source(str(put(tmp_path / "tree", {"classes.txt": b"x\ny\n"}))).contents


def test_webdataset_splits_must_be_clear(tmp_path: Path) -> None:
    files = built.webdataset_files()
    both = {"train-0.tar": files["train-0000.tar"], "more.tar": files["train-0001.tar"]}
    with pytest.raises(UserError, match=r"more\.tar does not say its split: begin its name with train or val"):
        open_source(str(put(tmp_path / "both", both)))
    with pytest.raises(UserError, match=r"has val-0\.tar but no file whose name says train"):
        open_source(str(put(tmp_path / "val", {"val-0.tar": files["val-0000.tar"]})))


# Parquet


def test_parquet_of_hugging_face(tmp_path: Path) -> None:
    source = open_source(str(put(tmp_path, built.parquet_files())))
    assert (source.rows, source.class_names) == ({"train": 14, "test": 2}, ("cat", "dog", "newt"))
    taken = list(source.splits["train"].take(np.array([11, 2])).read())
    assert [(sample.key, sample.label) for sample in taken] == [
        ("data/train-00001-of-00002.parquet#2", 2),
        ("data/train-00000-of-00002.parquet#2", 2),
    ]
    assert [sample.image for sample in taken] == [jpeg(11), jpeg(2)]


def test_plain_parquet_and_its_copies(tmp_path: Path) -> None:
    images = [jpeg(seed) for seed in range(20)]
    put(tmp_path, {"all.parquet": built.parquet_bytes(images, [seed % 2 for seed in range(20)])})
    source = open_source(str(tmp_path / "all.parquet"), holdout=0.2)
    assert (source.rows, source.class_names) == ({"train": 16, "test": 4}, ("0", "1"))
    at = LocalStore(uri=str(tmp_path / "copies"))
    for copy in source.splits["test"].copies():
        copy.make(at)
        copy.make(at)
    copied = source.splits["test"].copied(at)
    assert isinstance(copied, Ranges)
    assert list(copied.read()) == list(source.splits["test"].read())
    assert {sample.image for sample in copied.read()} < set(images)


def test_bad_parquet(tmp_path: Path) -> None:
    def refused(data: bytes, message: str) -> None:
        put(tmp_path, {"train.parquet": data})
        with pytest.raises(UserError, match=message):
            _ = open_source(str(tmp_path)).contents

    images = [jpeg(0), jpeg(1)]
    refused(built.parquet_bytes(images, [0, -1]), r"train\.parquet: label -1 of row 1 is outside 0\.\.99999")
    refused(built.parquet_bytes(images, [0, 2], names=("a", "b")), r"label 2 of row 1 is outside 0\.\.1")
    refused(built.parquet_bytes(images, [0, None]), "label None of row 1 is outside")
    refused(built.parquet_bytes(images, ["cat", "dog"]), "column label has type string, expected class numbers")
    refused(built.parquet_bytes(images, [0, 1], image="photo"), r"has no image column \(columns: photo, label\)")
    refused(built.parquet_bytes(images, [0, 1])[:-5], r"train\.parquet is not a whole Parquet file")
    put(tmp_path, {"validation.parquet": built.parquet_bytes(images, [0, 1], names=("a", "b"))})
    refused(built.parquet_bytes(images, [0, 1]), r"validation\.parquet has other columns or class names")
