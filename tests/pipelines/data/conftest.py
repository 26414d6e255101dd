from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.storage import LocalStore
from pipelines.data.images.stored import Stored
from pipelines.data.prepare.sources import open_source
from pipelines.data.shards.manifest import Manifest, RowGroup, Shard, Span
from tests.pipelines.conftest import written


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours, so that JPEG and resizing keep neighbouring pixels alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Class folders a, b, c with 20, 30 and 40 JPEGs of differing sizes; one is a PNG by content."""
    root = tmp_path / "images"
    for name, count in {"a": 20, "b": 30, "c": 40}.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            image = picture(20 + index, 16 + index % 7, seed=1000 * ord(name) + index)
            form = "PNG" if (name, index) == ("b", 3) else "JPEG"
            (root / name / f"{index:03d}.jpg").write_bytes(encoded(image, form))
    return root


Build = Callable[..., Manifest]


@pytest.fixture
def build() -> Build:
    """Write a data set without Ray."""
    return written


@pytest.fixture
def mnist(tmp_path: Path, build: Build) -> tuple[LocalStore, Manifest]:
    store = LocalStore(uri=str(tmp_path / "mnist"))
    return store, build(open_source("mnist5k"), store)


def layout_only(train: Sequence[Sequence[int]], test: Sequence[Sequence[int]] = ()) -> Manifest:
    """A manifest of shards with these numbers of rows per row group; for code that never reads them."""
    shards = [
        Shard(
            path=f"{split}-{index:05d}.parquet",
            split=split,
            rows=sum(groups),
            bytes=1000,
            sha256="0" * 64,
            footer=Span(900, 100, "1" * 64),
            groups=tuple(RowGroup(4 + number, 1, "2" * 64, rows) for number, rows in enumerate(groups)),
        )
        for split, of_split in (("train", train), ("test", test))
        for index, groups in enumerate(of_split)
    ]
    splits = {"train": sum(map(sum, train))} | ({"test": sum(map(sum, test))} if test else {})
    stored = Stored(form="raw", size=28, quality=0, channels=1)
    return Manifest(
        class_names=("a", "b"),
        stored=stored,
        source="test",
        fingerprint="3" * 64,
        prepare={"seed": 0},
        splits=splits,
        shards=tuple(shards),
    )
