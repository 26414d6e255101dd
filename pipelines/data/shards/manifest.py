"""The manifest of a data set, `manifest.json`: its classes, splits and shards, with the byte ranges of row groups.

A reader fetches and verifies each byte range separately. prepare writes the manifest last: a folder without it is not a
data set. The manifest contains its own digest, which names the data set.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from infra.errors import UserError
from infra.nearest import nearest
from pipelines.data.images.stored import Form, Stored
from pipelines.data.shards.shard_table import RowGroup, Shard, ShardTable, Span

if TYPE_CHECKING:
    from infra.storage import Store

__all__ = ["MANIFEST", "Form", "Manifest", "RowGroup", "Shard", "Span", "Stored", "check_shards", "load_manifest"]

MANIFEST = "manifest.json"
REPORTS = ("duplicates.parquet", "rejected.parquet", "unlabelled.parquet")
"""Tables that prepare writes next to the shards."""
FORMAT_VERSION = 1
NAME_LENGTH = 16
_SHARDS = b'"shards": [\n'  # the line of manifest.json after which each line is a shard


@dataclasses.dataclass(frozen=True, kw_only=True)  # no slots: `digest` is a cached property
class Manifest:
    """A finished data set. Ids are dense: they count from 0 in the order of the splits and shards, train first."""

    class_names: tuple[str, ...]
    stored: Stored
    source: str  # description, for users
    fingerprint: str  # digest of the source
    prepare: Mapping[str, float]  # settings of prepare that decided the layout
    splits: Mapping[str, int]  # rows by split, in id order
    shards: Sequence[Shard]  # becomes a ShardTable
    multi_label: bool = False  # True: an image has any number of the classes, also none; False: exactly one

    def __post_init__(self) -> None:
        object.__setattr__(self, "shards", ShardTable.of(self.shards))

    @property
    def columns(self) -> ShardTable:
        """Return the shards as columns."""
        return cast(ShardTable, self.shards)

    @cached_property
    def digest(self) -> str:
        """Return the sha256 of the content. Equal digests mean equal data, at any location."""
        digest = _Digest(self._head())
        for shard in self.shards:
            digest.add(shard.to_record())
        return digest.hexdigest()

    @property
    def name(self) -> str:
        """Return the short name of the data set: the first 16 hex digits of the digest."""
        return self.digest[:NAME_LENGTH]

    @property
    def total_rows(self) -> int:
        """Return the number of samples of all splits."""
        return sum(self.splits.values())

    @property
    def total_bytes(self) -> int:
        """Return the size of all shards, in bytes."""
        return self.columns.total_bytes

    def split_start(self, split: str) -> int:
        """Return the id of the split's first sample."""
        names = list(self.splits)
        return sum(self.splits[name] for name in names[: names.index(split)])

    def shards_of(self, split: str) -> list[Shard]:
        """Return the split's shards in id order."""
        return [shard for shard in self.shards if shard.split == split]

    def require_split(self, split: str) -> None:
        """Raise UserError if the data set has no such split."""
        if split not in self.splits:
            hint = nearest(split, self.splits)
            raise UserError(f"data set {self.name} has no split {split!r}{hint}: it has {', '.join(self.splits)}")

    def to_json(self) -> str:
        """Return a stable text: sorted keys, one shard per line."""
        fields = {**self._head(), "digest": self.digest}
        shards = ",\n".join(_text(shard.to_record()) for shard in self.shards)
        head = ",\n".join(f"{_text(key)}: {_text(value)}" for key, value in sorted(fields.items()))
        return f"{{\n{head},\n{_SHARDS.decode()}{shards}\n]\n}}\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str = MANIFEST) -> Manifest:
        """Parse and verify a manifest.

        Raises:
            UserError: not a manifest, another format version, or edited since it was written.
        """
        try:
            head, parsed = _parsed(text.encode() if isinstance(text, str) else text)
            version, digest = head.pop("format_version"), head.pop("digest")
            if version != FORMAT_VERSION:
                raise UserError(
                    f"{where} has format version {version}; this code reads {FORMAT_VERSION}: prepare again"
                )
            found = _Digest({**head, "format_version": version})
            shards = ShardTable.of(Shard.from_record(found.add(shard)) for shard in parsed)
        except (ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:
            raise UserError(f"{where} is not a manifest of resnet-ray: prepare the data set again") from error
        if found.hexdigest() != digest:
            raise UserError(
                f"{where} was edited: its content no longer has the digest {digest[:NAME_LENGTH]}: "
                "restore it or prepare again"
            )
        return cls(
            **{
                **head,
                "class_names": tuple(head["class_names"]),
                "stored": Stored(**head["stored"]),
                "splits": dict(head["splits"]),
                "shards": shards,
            }
        )

    def _head(self) -> dict[str, Any]:
        """Return all fields except the shards, as plain JSON values."""
        # A manifest has the key only if it is true: older data sets keep their digests.
        labels = {"multi_label": True} if self.multi_label else {}
        return {
            **labels,
            "format_version": FORMAT_VERSION,
            "class_names": list(self.class_names),
            "stored": self.stored.fields,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "prepare": dict(self.prepare),
            "splits": list(self.splits.items()),  # a list, because the order decides the ids
        }


class _Digest:
    """The sha256 of a manifest as canonical JSON (keys sorted, no spaces), computed without that text in memory."""

    def __init__(self, head: Mapping[str, Any]) -> None:
        before = ",".join(f"{_text(key)}:{_text(head[key])}" for key in sorted(head) if key < "shards")
        after = "".join(f",{_text(key)}:{_text(head[key])}" for key in sorted(head) if key > "shards")
        self._hash = hashlib.sha256(f'{{{before},"shards":['.encode())
        self._end = f"]{after}}}"
        self._comma = ""

    def add(self, shard: dict[str, Any]) -> dict[str, Any]:
        """Add the next shard, as JSON values, and return it."""
        self._hash.update((self._comma + _text(shard)).encode())
        self._comma = ","
        return shard

    def hexdigest(self) -> str:
        """Return the digest. Call it once, after the last shard."""
        self._hash.update(self._end.encode())
        return self._hash.hexdigest()


def _parsed(data: bytes) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """Parse all fields except the shards, and return an iterator that parses the shards one at a time.

    The shards take ten times less memory as text than parsed.
    """
    lines = io.BytesIO(data)
    head = b""
    for line in lines:
        if line == _SHARDS:
            return json.loads(head.rstrip(b",\n") + b"}"), _shard_lines(lines)
        head += line
    whole = json.loads(data)  # the same content in another layout
    return whole, iter(whole.pop("shards"))


def _shard_lines(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith(b"]"):
            return
        yield json.loads(line.rstrip(b",\n"))
    raise ValueError("the list of shards has no end")


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def is_dataset(store: Store) -> bool:
    """Return whether `store` holds a data set. A foreign `manifest.json` (of a web page or a camera) does not count."""
    try:
        content = json.loads(store.read(MANIFEST))
    except FileNotFoundError:
        return False
    except ValueError:
        return True  # damaged: `load_manifest` raises the error
    return isinstance(content, dict) and ("format_version" in content or "shards" in content)


def load_manifest(store: Store) -> Manifest:
    """Load and verify the manifest of a data set.

    Raises:
        UserError: there is no manifest, or it is invalid.
    """
    where = f"{store.description}/{MANIFEST}"
    try:
        data = store.read(MANIFEST)
    except FileNotFoundError:
        from pipelines.config.paths import hint_of_job

        hint = hint_of_job(store.uri)
        raise UserError(f"no {MANIFEST} in {store.description}: is it prepared? run prepare.py{hint}") from None
    return Manifest.from_json(data, where)


def check_shards(store: Store, manifest: Manifest) -> list[str]:
    """Compare the listing of the store with the manifest.

    Returns:
        Paths of shards in the store that do not belong to the data set. They are never read.

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
    named = {*(shard.path for shard in manifest.shards), *REPORTS}
    return [path for path in found if path.endswith(".parquet") and path not in named]
