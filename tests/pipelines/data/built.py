"""Sources as they are offered for download, made of small generated pictures."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy.io

from pipelines.data.prepare.label_sets import LabelSets
from pipelines.data.prepare.source import Contents, Source
from pipelines.data.prepare.sources.arrays import Arrays
from tests.pipelines.data.conftest import encoded, picture

WNIDS = ("n01440764", "n01443537", "n02012849", "n03126707")  # the last two are both called "crane"
WORDS = ("tench, Tinca tinca", "goldfish, Carassius auratus", "crane", "crane")
IDS = (3, 1, 4, 2)  # ILSVRC2012_ID of each: not in the order of the WNIDs
VAL_IDS = (1, 3, 3, 2, 4, 1)  # the ground truth of validation images 1 to 6


def jpeg(seed: int) -> bytes:
    return encoded(picture(24 + seed % 5, 20 + seed % 7, seed))


def tar_bytes(members: Iterable[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def devkit(ids: Sequence[int] = VAL_IDS) -> bytes:
    """ILSVRC2012_devkit_t12.tar.gz, with a hypernym among the synsets as the real one has 860."""
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(number, wnid, word, "", 0) for number, wnid, word in zip(IDS, WNIDS, WORDS, strict=True)]
    rows.append((5, "n00001740", "entity", "", 4))
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": np.array(rows, dtype=fields)})
    truth = "".join(f"{number}\n" for number in ids).encode()
    root = "ILSVRC2012_devkit_t12"
    files = [
        (f"{root}/readme.txt", b"about"),
        (f"{root}/data/meta.mat", meta.getvalue()),
        (f"{root}/data/ILSVRC2012_validation_ground_truth.txt", truth),
    ]
    return gzip.compress(tar_bytes(files))


def imagenet_files(per_class: int = 6) -> dict[str, bytes]:
    """The three archives; validation images lie in the tar out of order."""
    classes = []
    for number, wnid in enumerate(WNIDS):
        images = [(f"{wnid}_{index}.JPEG", jpeg(100 * number + index)) for index in range(per_class)]
        classes.append((f"{wnid}.tar", tar_bytes(images)))
    val = [(f"ILSVRC2012_val_{number:08d}.JPEG", jpeg(1000 + number)) for number in (3, 1, 2, 6, 5, 4)]
    return {
        "ILSVRC2012_img_train.tar": tar_bytes(reversed(classes)),
        "ILSVRC2012_img_val.tar": tar_bytes(val),
        "ILSVRC2012_devkit_t12.tar.gz": devkit(),
    }


def webdataset_files(per_tar: int = 5) -> dict[str, bytes]:
    """Two training tars with .cls, one validation tar with .json."""
    files = {}
    for number in range(2):
        members = []
        for index in range(per_tar):
            seed = number * per_tar + index
            members += [(f"{index:04d}.jpg", jpeg(seed)), (f"{index:04d}.cls", str(seed % 3).encode())]
        files[f"train-{number:04d}.tar"] = tar_bytes(members)
    members = []
    for index in range(per_tar):
        label = json.dumps({"label": index % 3, "caption": "x"}).encode()
        members += [(f"./{index:04d}.png", encoded(picture(9, 8, 50 + index), "PNG")), (f"./{index:04d}.json", label)]
    files["val-0000.tar"] = tar_bytes(members, tarfile.GNU_FORMAT)
    return files


def parquet_bytes(
    images: Sequence[bytes], labels: Sequence[object], *, names: Sequence[str] = (), image: str = "image"
) -> bytes:
    """As Hugging Face writes it where there are `names`, else a plain binary column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    column: pa.Array = pa.array(images, pa.binary())
    metadata = None
    if names:
        column = pa.StructArray.from_arrays([column, pa.array(["x.jpg"] * len(images))], ["bytes", "path"])
        features = {image: {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({image: column, "label": pa.array(labels)}).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=4)
    return sink.getvalue().to_pybytes()


def parquet_files() -> dict[str, bytes]:
    names = ("cat", "dog", "newt")
    train = [jpeg(seed) for seed in range(14)]
    return {
        "data/train-00000-of-00002.parquet": parquet_bytes(train[:9], [s % 3 for s in range(9)], names=names),
        "data/train-00001-of-00002.parquet": parquet_bytes(train[9:], [s % 3 for s in range(9, 14)], names=names),
        "data/validation-00000-of-00001.parquet": parquet_bytes([jpeg(90), jpeg(91)], [0, 2], names=names),
    }


def cifar_files(variant: int = 10, per_file: int = 12) -> dict[str, bytes]:
    """Random pixels; the label of record r is r % 10 (CIFAR-100: coarse 0, fine r % 100)."""
    rng = np.random.default_rng(variant)

    def records() -> bytes:
        head = [np.arange(per_file) % variant] if variant == 10 else [np.zeros(per_file), np.arange(per_file) % variant]
        pixels = rng.integers(0, 256, (per_file, 3072))
        return np.column_stack([*head, pixels]).astype(np.uint8).tobytes()

    if variant == 10:
        names = [f"data_batch_{number}.bin" for number in range(1, 6)]
        meta = ("batches.meta.txt", "\n".join(f"class{n}" for n in range(10)) + "\n\n")
        test = "test_batch.bin"
    else:
        names, test = ["train.bin"], "test.bin"
        meta = ("fine_label_names.txt", "\n".join(f"fine{n}" for n in range(100)) + "\n")
    return {name: records() for name in (*names, test)} | {meta[0]: meta[1].encode()}


def cifar_archive(variant: int = 10) -> dict[str, bytes]:
    folder = "cifar-10-batches-bin" if variant == 10 else "cifar-100-binary"
    members = [(f"{folder}/{name}", data) for name, data in cifar_files(variant).items()]
    return {f"cifar-{variant}-binary.tar.gz": gzip.compress(tar_bytes(members))}


def idx_files() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    files = {}
    for stem, count in (("train", 30), ("t10k", 10)):
        images = rng.integers(0, 256, (count, 6, 6), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for array, kind in ((images, "images-idx3"), (labels, "labels-idx1")):
            data = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()
            files[f"{stem}-{kind}-ubyte.gz"] = gzip.compress(data)
    return files


def folder_files() -> dict[str, bytes]:
    trees = {"train": 5, "val": 2}
    return {
        f"{split}/{name}/{index:03d}.jpg": jpeg(7 * index + len(name) + count)
        for split, count in trees.items()
        for name in ("ant", "bee", "crab")
        for index in range(count)
    }


def labelled_arrays(
    splits: Mapping[str, Sequence[Sequence[int]]], class_names: tuple[str, ...] = ("ant", "bee", "crab"), side: int = 6
) -> Source:
    """A multi-label source in memory: for each split, the classes of each image, whose pixels are random."""
    rng = np.random.default_rng(0)
    distinct = sorted({tuple(sorted(each)) for sets in splits.values() for each in sets})
    parts = {
        split: Arrays(
            split=split,
            images=rng.integers(0, 256, (len(sets), side, side, 3), dtype=np.uint8),
            labels=np.array([distinct.index(tuple(sorted(each))) for each in sets], dtype=np.int32),
            keys=tuple(f"{split}-{index}" for index in range(len(sets))),
        )
        for split, sets in splits.items()
    }
    contents = Contents(class_names=class_names, splits=parts, fingerprint="4" * 64, label_sets=LabelSets.of(distinct))
    return Source(description="arrays with label sets", side=side, channels=3, load=lambda: contents)


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root
