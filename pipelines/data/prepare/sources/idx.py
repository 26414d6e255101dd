"""IDX files, gzipped or not: the format of MNIST and Fashion-MNIST."""

from __future__ import annotations

import hashlib
import math
import struct

import numpy as np
import numpy.typing as npt

from infra.errors import UserError
from pipelines.data.prepare.source import TEST, TRAIN, Source
from pipelines.data.prepare.sources.arrays import Arrays, arrays_source
from pipelines.data.prepare.sources.place import Place
from pipelines.data.prepare.sources.splits import SplitChoice

EXPECTS = "IDX files (train-images-idx3-ubyte.gz, …)"

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
_MOST_BYTES = 2 << 30


def open_idx(place: Place, choice: SplitChoice) -> Source | None:
    """Open the four IDX files of a folder; None if there are none.

    Raises:
        UserError: a file is missing, has a wrong magic number or length, counts differ, or a label is out of range.
    """
    names = [f"{stem}-{kind}-ubyte" for stem in IDX_STEMS.values() for kind in ("images-idx3", "labels-idx1")]
    spelled = {path.lower().removesuffix(".gz").replace(".idx", "-idx"): path for path in place.files}
    present = {name: spelled[name] for name in names if name in spelled}
    if not present:
        return None
    class_names = FASHION if "fashion" in place.store.uri.lower() else DIGITS
    digest = hashlib.sha256()
    splits = {}
    for split, stem in IDX_STEMS.items():
        image_file = _present(place, present, f"{stem}-images-idx3-ubyte")
        label_file = _present(place, present, f"{stem}-labels-idx1-ubyte")
        images = _read_idx(place, image_file, _IMAGE_MAGIC, digest)
        labels = _read_idx(place, label_file, _LABEL_MAGIC, digest).astype(np.int32)
        where = f"{place.text}/{image_file}"
        if len(images) != len(labels):
            raise UserError(f"{where} holds {len(images):,} images but {label_file} {len(labels):,} labels")
        if len(labels) == 0:
            raise UserError(f"{where} holds no images")
        if labels.max() >= len(class_names):
            row = int(np.argmax(labels >= len(class_names)))
            where = f"{place.text}/{label_file}"
            raise UserError(f"{where}: label {labels[row]} of sample {row} is outside 0..{len(class_names) - 1}")
        keys = tuple(f"{stem}-{index:05d}" for index in range(len(labels)))
        splits[split] = Arrays(split=split, images=images, labels=labels, keys=keys)
    return arrays_source(f"IDX files of {place.name}", class_names, splits, digest)


def _present(place: Place, present: dict[str, str], name: str) -> str:
    if name not in present:
        raise UserError(f"{place.text} has IDX files but no {name} (nor {name}.gz)")
    return present[name]


def _read_idx(place: Place, path: str, magic: int, digest: hashlib._Hash) -> npt.NDArray[np.uint8]:
    """Read the array of an IDX file: magic number, one big-endian length per dimension, then unsigned bytes."""
    where = f"{place.text}/{path}"
    data = place.read(path, most=_MOST_BYTES)
    dimensions = magic & 0xFF
    header = 4 * (1 + dimensions)
    if len(data) < header or struct.unpack_from(">I", data)[0] != magic:
        raise UserError(
            f"{where} is not an IDX file of the expected kind: it starts with {data[:4].hex()}, not {magic:08x}"
        )
    shape = struct.unpack_from(f">{dimensions}I", data, 4)
    if len(data) - header != math.prod(shape):
        raise UserError(f"{where} has {len(data) - header:,} bytes of data where its header promises {shape}")
    digest.update(data)
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)
