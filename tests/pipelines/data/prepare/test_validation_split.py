"""The validation split that prepare takes out of the training images, or finds in the source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from infra.errors import UserError
from pipelines.data.prepare.source import Source, held_out
from pipelines.data.prepare.sources import open_source, splits
from tests.pipelines.data import built
from tests.pipelines.data.built import jpeg, put


def keys(source: Source, split: str) -> list[str]:
    return [sample.key for sample in source.splits[split].read()]


def pictures(root: Path, counts: dict[str, int]) -> Path:
    files = {f"{name}/{index:03d}.jpg": jpeg(index) for name, count in counts.items() for index in range(count)}
    return put(root, files)


def test_mnist5k_has_40_validation_images_of_each_digit() -> None:
    source = open_source("mnist5k", validation=0.1)
    assert list(source.rows.items()) == [("train", 3600), ("validation", 400), ("test", 1000)]
    for split, per_class in (("train", 360), ("validation", 40), ("test", 100)):
        assert np.bincount(source.splits[split].labels).tolist() == [per_class] * 10
        assert {sample.split for sample in source.splits[split].read()} == {split}
    assert keys(source, "test") == keys(open_source("mnist5k"), "test")


def test_it_is_chosen_by_the_seeded_hash_of_the_names(folder: Path) -> None:
    source = open_source(str(folder), holdout=0.1, validation=0.1, seed=5)
    assert source.rows == {"train": 72, "validation": 9, "test": 9}
    for name, count in {"a": 2, "b": 3, "c": 4}.items():
        remaining = [key for key in keys(open_source(str(folder), seed=5), "train") if key.startswith(f"{name}/")]
        wanted = held_out(remaining, round(0.1 * len(remaining)), 5)
        chosen = [key for key in keys(source, "validation") if key.startswith(f"{name}/")]
        assert chosen == [key for key, held in zip(remaining, wanted, strict=True) if held]
        assert len([key for key in keys(source, "test") if key.startswith(f"{name}/")]) == count
    every = [key for split in source.splits for key in keys(source, split)]
    assert len(every) == len(set(every)) == 90
    assert keys(open_source(str(folder), validation=0.1), "validation") != keys(source, "validation")


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_classes_of_three_or_more_training_images_give_at_least_one_and_keep_one(tmp_path: Path, share: float) -> None:
    pictures(tmp_path / "train", {"one": 1, "two": 2, "three": 3, "many": 20})
    pictures(tmp_path / "test", {"one": 1, "two": 1, "three": 1, "many": 1})
    source = open_source(str(tmp_path), validation=share)
    counts = np.bincount(source.splits["validation"].labels, minlength=4)
    named = dict(zip(source.class_names, counts.tolist(), strict=True))
    assert named == {"one": 0, "two": 0, "three": 1 if share < 0.5 else 2, "many": 2 if share < 0.5 else 18}
    assert set(source.splits["train"].labels.tolist()) == {0, 1, 2, 3}


def test_nobody_wants_one_or_no_class_can_give_one(tmp_path: Path) -> None:
    assert "validation" not in open_source("mnist5k", validation=0).splits
    pictures(tmp_path, {"one": 1, "two": 2, "three": 3})  # "three" has two training images left
    assert open_source(str(tmp_path), validation=0.5).rows == {"train": 4, "test": 2}


def test_it_has_at_most_10_000_images_or_one_of_each_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "MOST_VALIDATION", 100)
    source = open_source("mnist5k", validation=0.1)
    assert np.bincount(source.splits["validation"].labels).tolist() == [10] * 10
    monkeypatch.setattr(splits, "MOST_VALIDATION", 3)
    source = open_source("mnist5k", validation=0.1)
    assert np.bincount(source.splits["validation"].labels).tolist() == [1] * 10


def folder_splits(root: Path, names: tuple[str, ...]) -> str:
    put(root, {f"{name}/{kind}/{n}.jpg": jpeg(n) for name in names for kind in ("ant", "bee") for n in range(5)})
    return str(root)


def tar_splits(root: Path, names: tuple[str, ...]) -> str:
    members = [(f"{n}.{end}", data) for n in range(10) for end, data in (("jpg", jpeg(n)), ("cls", b"%d" % (n % 2)))]
    put(root, {f"{name}-000.tar": built.tar_bytes(members) for name in names})
    return str(root)


def parquet_splits(root: Path, names: tuple[str, ...]) -> str:
    images = [jpeg(n) for n in range(10)]
    table = built.parquet_bytes(images, [n % 2 for n in range(10)], names=("a", "b"))
    put(root, {f"data/{name}-00000-of-00001.parquet": table for name in names})
    return str(root)


@pytest.mark.parametrize("make", [folder_splits, tar_splits, parquet_splits])
@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_a_sources_own_validation_and_test_splits_stay_apart(
    tmp_path: Path, make: Callable[[Path, tuple[str, ...]], str], val: str
) -> None:
    source = open_source(make(tmp_path / "three", ("train", val, "test")), validation=0.3)
    assert list(source.rows.items()) == [("train", 10), ("validation", 10), ("test", 10)]
    assert all(val in key for key in keys(source, "validation")) and all("test" in key for key in keys(source, "test"))
    assert f"{val}" in source.description and "test" in source.description
    for alone in (val, "test"):  # one held-out split is the test split; validation comes out of training
        source = open_source(make(tmp_path / alone, ("train", alone)), validation=0.2)
        assert list(source.rows.items()) == [("train", 8), ("validation", 2), ("test", 10)]
        assert all(alone in key for key in keys(source, "test"))
        assert all("train" in key for key in keys(source, "validation"))


@pytest.mark.parametrize("make", [folder_splits, tar_splits, parquet_splits])
def test_two_names_of_one_split_are_refused(tmp_path: Path, make: Callable[[Path, tuple[str, ...]], str]) -> None:
    with pytest.raises(UserError, match="has both val and validation, and both mean the validation split: keep one"):
        open_source(make(tmp_path, ("train", "val", "validation")))


@pytest.mark.parametrize(
    "files",
    [built.imagenet_files, built.cifar_archive, built.idx_files, built.parquet_files, built.webdataset_files],
)
def test_every_kind_of_source_gets_one(tmp_path: Path, files: Callable[[], dict[str, bytes]]) -> None:
    root = str(put(tmp_path, files()))
    before, after = open_source(root), open_source(root, validation=0.34)
    assert list(after.rows) == ["train", "validation", "test"]
    assert sum(after.rows[split] for split in ("train", "validation")) == before.rows["train"]
    assert after.rows["test"] == before.rows["test"]
    assert sorted(keys(after, "train") + keys(after, "validation")) == sorted(keys(before, "train"))
    assert after.fingerprint == before.fingerprint
