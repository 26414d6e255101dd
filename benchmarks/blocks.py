"""Blocks like those of data tasks, made in memory: they test and measure `RankBatches` without Ray."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Rows = dict[str, npt.NDArray[Any]]
Picture = Callable[[int], Image.Image]
"""Function from a sample's id to its image."""


def host_block(ids: Sequence[int], size: int, labels: Sequence[int], repeats: int = 1) -> Rows:
    """Return a block of crops of noise: uint8 [n, S, S, 3], or [n, r, S, S, 3] with r crops of each sample."""
    shape = (len(ids), size, size, 3) if repeats == 1 else (len(ids), repeats, size, size, 3)
    images = np.random.default_rng(ids[0]).integers(0, 256, shape, dtype=np.uint8)
    return {"image": read_only(images), **_columns(ids, labels)}


def raw_block(ids: Sequence[int], side: int, size: int, labels: Sequence[int], picture: Picture) -> Rows:
    """Return a block of stored squares of `side` pixels, from which the device makes crops of `size`."""
    images = np.stack([np.asarray(picture(sample).resize((side, side))) for sample in ids])
    return {"image": read_only(images), **_windows([(side, side)] * len(ids), size), **_columns(ids, labels)}


def jpeg_block(ids: Sequence[int], size: int, labels: Sequence[int], picture: Picture, quality: int = 90) -> Rows:
    """Return a block of stored JPEGs, from which the device makes crops of `size`."""
    made = [picture(sample) for sample in ids]
    images = np.empty(len(ids), dtype=object)
    images[:] = [_jpeg(each, quality) for each in made]
    sides = [each.size for each in made]
    return {
        "image": images,
        "width": np.array([width for width, _ in sides], dtype=np.int32),
        "height": np.array([height for _, height in sides], dtype=np.int32),
        "coded": np.ones(len(ids), dtype=bool),
        **_windows(sides, size),
        **_columns(ids, labels),
    }


def renumbered(blocks: Sequence[Rows], rows: int) -> Iterator[Rows]:
    """Yield blocks with `rows` samples in total: a few blocks repeated with new ids, which costs no time."""
    given, place = 0, 0
    while given < rows:
        block = blocks[place % len(blocks)]
        count = min(len(block["id"]), rows - given)
        ids = np.arange(given, given + count, dtype=np.int64)
        yield {**{name: column[:count] for name, column in block.items()}, "id": ids, "draw": ids}
        given, place = given + count, place + 1


def detailed(sample: int) -> Image.Image:
    """Return an image of ImageNet's usual size with some detail: at quality 90 about 110 kB, ImageNet's mean."""
    noise = np.random.default_rng(sample)
    coarse = Image.fromarray(noise.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
        (500, 375), Image.Resampling.BICUBIC
    )
    fine = noise.normal(0, 13, (375, 500, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8))


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Make an array read-only, like arrays from Ray's object store."""
    array.setflags(write=False)
    return array


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _windows(sides: Sequence[tuple[int, int]], size: int) -> Rows:
    """Return crop windows that are the whole image; `sides` has (width, height) of each image."""
    windows = [[0.0, width, 0.0, width, 0.0, height, 0.0, height] for width, height in sides]
    return {"window": np.array(windows), "size": np.full(len(sides), size, dtype=np.int32)}


def _columns(ids: Sequence[int], labels: Sequence[int]) -> Rows:
    count, nothing = len(ids), np.zeros(len(ids))
    return {
        "label": np.asarray(labels, dtype=np.int64),
        "id": np.asarray(ids, dtype=np.int64),
        "draw": np.asarray(ids, dtype=np.int64),
        "epoch": np.zeros(count, dtype=np.int32),
        "base": np.zeros(count, dtype=np.int64),
        **dict.fromkeys(("read_s", "decode_s", "made_at"), nothing),
        "retries": np.zeros(count, dtype=np.int64),
        "bad": np.full(count, "", dtype=object),
        "warning": np.full(count, "", dtype=object),
    }
