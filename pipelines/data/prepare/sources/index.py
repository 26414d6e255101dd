"""The index of archives: the file and the byte range of each sample, stored as arrays.

The index is kept next to the shards until the data set is finished. A prepare that was killed therefore need not list
a hundred gigabytes of tars again.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipelines.data.prepare.source import Contents
from pipelines.data.prepare.sources.names import Names
from pipelines.data.prepare.sources.ranges import Ranges

if TYPE_CHECKING:
    from infra.storage import Store

PROGRESS = "_progress"
_VERSION = 1
_COLUMNS = ("object", "starts", "sizes", "labels")

Tables = dict[str, npt.NDArray[np.generic]]


class IndexBuilder:
    """A growing index: 30 bytes per sample, plus the key's characters."""

    def __init__(self) -> None:
        self.object, self.labels = array("i"), array("i")
        self.starts, self.sizes, self.ends = array("q"), array("q"), array("q")
        self.text = bytearray()

    def add(self, object_number: int, start: int, size: int, label: int, key: str) -> None:
        """Add one sample."""
        self.object.append(object_number)
        self.starts.append(start)
        self.sizes.append(size)
        self.labels.append(label)
        self.text += key.encode()
        self.ends.append(len(self.text))

    def ranges(self, store: Store, split: str, objects: Names) -> Ranges:
        """Return the added samples. `objects[n]` is the path of object number n."""
        return Ranges(
            store=store,
            split=split,
            objects=objects,
            object=np.frombuffer(self.object, dtype=np.int32),
            starts=np.frombuffer(self.starts, dtype=np.int64),
            sizes=np.frombuffer(self.sizes, dtype=np.int64),
            labels=np.frombuffer(self.labels, dtype=np.int32),
            keys=Names(text=np.frombuffer(self.text, dtype=np.uint8), ends=np.frombuffer(self.ends, dtype=np.int64)),
        )


def joined(parts: list[Ranges]) -> Ranges:
    """Join the samples of several archives of one store and split. All parts must have the same `objects`."""
    first = parts[0]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
    keys = Names.joined([part.keys for part in parts])
    return Ranges(store=first.store, split=first.split, objects=first.objects, keys=keys, **columns)


def kept_contents(keep: Store | None, listing: str, store: Store, find: Callable[[], Contents]) -> Contents:
    """Return the result of `find`, from the copy that `keep` has for this `listing`. If there is none, keep one."""
    if keep is None:
        return find()
    path = f"{PROGRESS}/index-{listing[:16]}.npz"
    contents = _read(keep, path, store)
    if contents is None:
        contents = find()
        _write(keep, path, contents)
    return contents


def _write(keep: Store, path: str, contents: Contents) -> None:
    tables: Tables = {"version": np.array(_VERSION), "fingerprint": np.array(contents.fingerprint)}
    tables |= _names("class_names", Names.of(contents.class_names)) | _names("splits", Names.of(contents.splits))
    for split, ranges in contents.splits.items():
        assert isinstance(ranges, Ranges)
        tables |= {f"{split}.{name}": getattr(ranges, name) for name in _COLUMNS}
        tables |= _names(f"{split}.objects", ranges.objects) | _names(f"{split}.keys", ranges.keys)
    with tempfile.NamedTemporaryFile(prefix="resnet-ray-", suffix=".npz") as file:
        np.savez(file, allow_pickle=False, **tables)
        file.flush()
        keep.put_file(path, Path(file.name))


def _read(keep: Store, path: str, store: Store) -> Contents | None:
    """Read a kept index; None if there is none of this version."""
    try:
        with np.load(io.BytesIO(keep.read(path)), allow_pickle=False) as tables:
            if int(tables["version"]) != _VERSION:
                return None
            splits = {split: _ranges(tables, split, store) for split in _named(tables, "splits")}
            class_names = tuple(_named(tables, "class_names"))
            return Contents(class_names=class_names, splits=splits, fingerprint=str(tables["fingerprint"]))
    except (FileNotFoundError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _ranges(tables: Tables, split: str, store: Store) -> Ranges:
    columns = {name: tables[f"{split}.{name}"] for name in _COLUMNS}
    names = {name: _named(tables, f"{split}.{name}") for name in ("objects", "keys")}
    return Ranges(store=store, split=split, **names, **columns)  # type: ignore[arg-type]


def _names(name: str, names: Names) -> Tables:
    return {f"{name}.text": names.text, f"{name}.ends": names.ends}


def _named(tables: Tables, name: str) -> Names:
    return Names(text=tables[f"{name}.text"], ends=tables[f"{name}.ends"])  # type: ignore[arg-type]
