"""`manifest.json`: what a data set is made of, down to the byte ranges that a reader fetches and verifies alone.

It is written last, so that a folder without one is no data set, and carries its own digest, which names the data set.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from infra.errors import UserError

if TYPE_CHECKING:
    from infra.storage import Store

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
_NAME_LENGTH = 16

Form = Literal["original", "jpeg", "raw"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """How the column `image` holds an image."""

    form: Form  # the source's own bytes; JPEG; or uint8 size x size x channels
    size: int  # jpeg: pixels of the shorter side at most; raw: side; original: 0
    quality: int  # jpeg: Pillow's quality; else 0
    channels: int  # raw: 1 or 3; else 3


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """Bytes [start, start + length) of a shard."""

    start: int
    length: int
    sha256: str  # of these bytes


@dataclasses.dataclass(frozen=True, slots=True)
class RowGroup(Span):
    """A Parquet row group: the unit that is fetched, verified and shuffled."""

    rows: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One Parquet file."""

    path: str  # relative to the data set's root
    split: str
    rows: int
    bytes: int
    sha256: str  # of the whole file
    footer: Span
    groups: tuple[RowGroup, ...]

    def to_record(self) -> dict[str, Any]:
        """Plain JSON values; spans as lists, which keep a manifest of 20,000 row groups at 2 MB."""
        plain = {name: getattr(self, name) for name in ("path", "split", "rows", "bytes", "sha256")}
        footer, groups = dataclasses.astuple(self.footer), [dataclasses.astuple(group) for group in self.groups]
        return {**plain, "footer": list(footer), "groups": [list(group) for group in groups]}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Shard:
        """Inverse of `to_record`."""
        groups = tuple(RowGroup(*group) for group in record["groups"])
        return cls(**{**record, "footer": Span(*record["footer"]), "groups": groups})


@dataclasses.dataclass(frozen=True, kw_only=True)  # no slots: `digest` is computed once and kept
class Manifest:
    """A finished data set. Ids are dense: in the order of the shards, train from 0, test from there on."""

    class_names: tuple[str, ...]
    stored: Stored
    source: str  # description, for people
    fingerprint: str  # digest of the source
    prepare: Mapping[str, float]  # settings of prepare that decided the layout
    splits: Mapping[str, int]  # rows, in id order
    shards: tuple[Shard, ...]

    @cached_property
    def digest(self) -> str:
        """sha256 of the content; equal digests mean equal data, wherever it lies."""
        return hashlib.sha256(_canonical(self._record())).hexdigest()

    @property
    def name(self) -> str:
        """Short name of the data set: the first 16 hex digits of the digest."""
        return self.digest[:_NAME_LENGTH]

    @property
    def total_rows(self) -> int:
        """Samples of all splits."""
        return sum(self.splits.values())

    @property
    def total_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)

    def split_start(self, split: str) -> int:
        """Id of the split's first sample."""
        names = list(self.splits)
        return sum(self.splits[name] for name in names[: names.index(split)])

    def shards_of(self, split: str) -> list[Shard]:
        """The split's shards in id order."""
        return [shard for shard in self.shards if shard.split == split]

    def require_split(self, split: str) -> None:
        """Raise UserError where the data set has no such split."""
        if split not in self.splits:
            raise UserError(f"data set {self.name} has no split {split!r}: it has {', '.join(self.splits)}")

    def to_json(self) -> str:
        """Stable text: keys sorted, one shard a line."""
        record = {**self._record(), "digest": self.digest}
        shards = ",\n".join(_text(shard) for shard in record.pop("shards"))
        head = ",\n".join(f"{_text(key)}: {_text(value)}" for key, value in sorted(record.items()))
        return f'{{\n{head},\n"shards": [\n{shards}\n]\n}}\n'

    @classmethod
    def from_json(cls, text: str | bytes, where: str = MANIFEST) -> Manifest:
        """Parse and verify.

        Raises:
            UserError: not a manifest, another format version, or edited since it was written.
        """
        try:
            record = json.loads(text)
            version, digest = record.pop("format_version"), record.pop("digest")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{where} is not a manifest of resnet-ray: prepare the data set again") from error
        if version != FORMAT_VERSION:
            raise UserError(f"{where} has format version {version}; this code reads {FORMAT_VERSION}: prepare again")
        if hashlib.sha256(_canonical({**record, "format_version": version})).hexdigest() != digest:
            raise UserError(
                f"{where} was edited: its content no longer has the digest {digest[:_NAME_LENGTH]}: "
                "restore it or prepare again"
            )
        return cls(
            **{
                **record,
                "class_names": tuple(record["class_names"]),
                "stored": Stored(**record["stored"]),
                "splits": dict(record["splits"]),
                "shards": tuple(Shard.from_record(shard) for shard in record["shards"]),
            }
        )

    def _record(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "class_names": list(self.class_names),
            "stored": dataclasses.asdict(self.stored),
            "source": self.source,
            "fingerprint": self.fingerprint,
            "prepare": dict(self.prepare),
            "splits": list(self.splits.items()),  # a list, because their order decides the ids
            "shards": [shard.to_record() for shard in self.shards],
        }


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _canonical(record: Mapping[str, Any]) -> bytes:
    return _text(record).encode()


def load_manifest(store: Store) -> Manifest:
    """The manifest of a data set.

    Raises:
        UserError: there is none, or it cannot be trusted.
    """
    where = f"{store.description}/{MANIFEST}"
    try:
        data = store.read(MANIFEST)
    except FileNotFoundError:
        raise UserError(f"no {MANIFEST} in {store.description}: is it prepared? run prepare.py") from None
    return Manifest.from_json(data, where)


def check_shards(store: Store, manifest: Manifest) -> None:
    """Compare the listing with the manifest; files that it does not name are ignored.

    Raises:
        UserError: a shard is missing or has another size.
    """
    found = dict(store.list())
    for shard in manifest.shards:
        size = found.get(shard.path)
        if size is None:
            raise UserError(f"shard {shard.path} is missing in {store.description}: restore it or prepare again")
        if size != shard.bytes:
            raise UserError(
                f"shard {shard.path} in {store.description} has {size:,} bytes, the manifest says {shard.bytes:,}: "
                "restore it or prepare again"
            )
