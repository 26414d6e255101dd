from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from infra.errors import UserError
from pipelines.data.prepare.sources import open_source


def write_idx(path: Path, array: np.ndarray, magic: int | None = None) -> None:
    magic = 0x0800 + array.ndim if magic is None else magic
    data = struct.pack(f">I{array.ndim}I", magic, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def idx(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for stem, count, suffix in (("train", 30, ".gz"), ("t10k", 10, "")):
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte{suffix}", rng.integers(0, 256, (count, 6, 6), dtype=np.uint8))
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte{suffix}", (np.arange(count) % 10).astype(np.uint8))
    return tmp_path


def test_mnist5k_holds_out_100_of_each_digit() -> None:
    source = open_source("mnist5k")
    assert source.rows == {"train": 4000, "test": 1000}
    assert source.class_names == tuple("0123456789")
    keys = {}
    for split, per_class in (("train", 400), ("test", 100)):
        samples = list(source.splits[split].read())
        assert np.bincount([sample.label for sample in samples]).tolist() == [per_class] * 10
        assert {sample.split for sample in samples} == {split}
        keys[split] = {sample.key for sample in samples}
    assert len(keys["train"] | keys["test"]) == 5000
    first = next(open_source("mnist5k").splits["train"].read()).image
    assert isinstance(first, np.ndarray)
    assert (first.shape, first.dtype, first.max() > 200) == ((28, 28), np.dtype(np.uint8), True)
    other = {sample.key for sample in open_source("mnist5k", seed=1).splits["test"].read()}
    assert other != keys["test"]


def test_idx_files_gzipped_or_not(idx: Path) -> None:
    source = open_source(str(idx))
    assert (source.rows, source.side, source.channels) == ({"train": 30, "test": 10}, 6, 1)
    assert source.class_names == tuple("0123456789")
    taken = list(source.splits["train"].take(np.array([29, 0])).read())
    assert [(sample.key, sample.label) for sample in taken] == [("train-00029", 9), ("train-00000", 0)]
    fingerprint = source.fingerprint
    write_idx(idx / "t10k-labels-idx1-ubyte", np.zeros(10, dtype=np.uint8))
    assert open_source(str(idx)).fingerprint != fingerprint


def test_fashion_mnist_is_known_by_its_path(idx: Path) -> None:
    fashion = idx.parent / "fashion-mnist"
    idx.rename(fashion)
    assert open_source(str(fashion)).class_names[::9] == ("T-shirt/top", "Ankle boot")


@pytest.mark.parametrize(
    ("name", "array", "magic", "message"),
    [
        ("t10k-labels-idx1-ubyte", np.zeros(9, np.uint8), None, r"holds 10 images but t10k-labels-idx1-ubyte 9 labels"),
        ("t10k-labels-idx1-ubyte", np.full(10, 11, np.uint8), None, r"label 11 of sample 0 is outside 0\.\.9"),
        ("t10k-images-idx3-ubyte", np.zeros((10, 6, 6), np.uint8), 0x0D03, "starts with 00000d03, not 00000803"),
        ("t10k-labels-idx1-ubyte", np.zeros((10, 1), np.uint8), None, "starts with 00000802, not 00000801"),
    ],
)
def test_bad_idx_files(idx: Path, name: str, array: np.ndarray, magic: int | None, message: str) -> None:
    write_idx(idx / name, array, magic)
    with pytest.raises(UserError, match=message):
        open_source(str(idx))


def test_cut_and_missing_idx_files(idx: Path) -> None:
    images = idx / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte has 359 bytes of data where its header promises"):
        open_source(str(idx))
    images.unlink()
    with pytest.raises(
        UserError, match=r"has IDX files but no t10k-images-idx3-ubyte \(nor t10k-images-idx3-ubyte\.gz\)"
    ):
        open_source(str(idx))
    archive = idx / "train-images-idx3-ubyte.gz"
    archive.write_bytes(archive.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz cannot be read"):
        open_source(str(idx))


def test_class_folders_hold_out_a_share_of_each_class(folder: Path) -> None:
    source = open_source(str(folder), holdout=0.1)
    assert source.class_names == ("a", "b", "c")
    assert source.rows == {"train": 81, "test": 9}
    held = [sample.key for sample in source.splits["test"].read()]
    assert [sum(key.startswith(name) for key in held) for name in "abc"] == [2, 3, 4]
    assert held == [sample.key for sample in open_source(str(folder), holdout=0.1).splits["test"].read()]
    assert held != [sample.key for sample in open_source(str(folder), holdout=0.1, seed=1).splits["test"].read()]
    assert open_source(str(folder), holdout=0).rows == {"train": 90}
    sample = next(source.splits["test"].read())
    assert sample.image == (folder / sample.key).read_bytes()


def test_what_is_held_out_stays_so_when_another_class_grows(folder: Path) -> None:
    before = {sample.key for sample in open_source(str(folder)).splits["test"].read() if sample.key.startswith("a/")}
    (folder / "b" / "new.jpg").write_bytes((folder / "b" / "000.jpg").read_bytes())
    after = {sample.key for sample in open_source(str(folder)).splits["test"].read() if sample.key.startswith("a/")}
    assert before == after


@pytest.mark.parametrize("test_name", ["val", "validation", "test"])
def test_train_and_test_folders(folder: Path, test_name: str) -> None:
    root = folder.parent
    folder.rename(root / "train")
    (root / test_name / "b" / "deep").mkdir(parents=True)
    (root / test_name / "b" / "deep" / "x.JPEG").write_bytes((root / "train" / "a" / "000.jpg").read_bytes())
    (root / test_name / "b" / "notes.txt").write_text("no image")
    source = open_source(str(root))
    assert source.rows == {"train": 90, "test": 1}
    (sample,) = source.splits["test"].read()
    assert (sample.key, sample.label) == (f"{test_name}/b/deep/x.JPEG", 1)


def test_fingerprint_follows_names_and_sizes_not_the_place(folder: Path) -> None:
    fingerprint = open_source(str(folder)).fingerprint
    moved = folder.parent / "elsewhere"
    folder.rename(moved)
    assert open_source(str(moved)).fingerprint == fingerprint
    with (moved / "c" / "039.jpg").open("ab") as file:
        file.write(b"\0")
    assert open_source(str(moved)).fingerprint != fingerprint


def test_bad_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="source /no/such does not exist"):
        open_source("/no/such")
    with pytest.raises(UserError, match=rf"imagse does not exist \(did you mean {folder}\?\)"):
        open_source(str(folder.parent / "imagse"))
    with pytest.raises(UserError, match=r"000\.jpg is one image: expected SOURCE/CLASS/\*\.jpg"):
        open_source(str(folder / "a" / "000.jpg"))
    with pytest.raises(UserError, match=r"/a holds 20 images but no class folders: expected .*/a/CLASS/\*\.jpg"):
        open_source(str(folder / "a"))
    with pytest.raises(UserError, match=r"storage location gs://… is not supported"):
        open_source("gs://bucket/x")
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match="void is empty"):
        open_source(str(tmp_path / "void"))
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=rf"class folder {folder}/empty holds no images"):
        open_source(str(folder))
    (folder / "empty").rmdir()
    os.symlink(folder / "gone.jpg", folder / "a" / "dangling.jpg")
    with pytest.raises(UserError, match=r"a/dangling\.jpg cannot be read: No such file"):
        open_source(str(folder))


def test_bad_split_folders(folder: Path) -> None:
    root = folder.parent
    (root / "val" / "d").mkdir(parents=True)
    with pytest.raises(UserError, match=r"has val/ but no train/"):
        open_source(str(root))
    folder.rename(root / "train")
    with pytest.raises(UserError, match=r"class folder .*/val/d has no counterpart in train/"):
        open_source(str(root))


def test_a_file_that_vanishes_is_named(folder: Path) -> None:
    source = open_source(str(folder))
    (folder / "a" / "000.jpg").unlink()
    (folder / "a" / "001.jpg").unlink()
    with pytest.raises(UserError, match=r"a/00[01]\.jpg cannot be read: No such file"):
        list(source.splits["train"].read()) + list(source.splits["test"].read())
