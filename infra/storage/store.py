"""The interface of object storage, and the rule that keeps paths inside a root."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Protocol

from infra.errors import UserError


class Store(Protocol):
    """Objects under one root. Every path is relative to the root, with "/" between its parts.

    Methods raise `UserError` for any other failure of the storage, such as a full disk or missing permissions.

    Picklable: other processes open the same objects. `infra/storage/__init__.py` has the guarantees, and
    tests/infra/storage/test_storage.py checks them. A new scheme goes into three functions of `infra/storage/open.py`:
    `_parse`, `open_store` and `pyarrow_filesystem`.
    """

    @property
    def uri(self) -> str:
        """Absolute URI, valid in every process and on every host that can reach the storage."""

    @property
    def is_remote(self) -> bool:
        """True if each request takes a round trip: then concurrent requests pay off, and callers wait for outages."""

    @property
    def description(self) -> str:
        """The root for messages, without secrets."""

    def read(self, path: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Return bytes [start, start + length) of an object; like a slice, fewer at the object's end.

        Raises:
            FileNotFoundError: there is no such object.
        """

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        """Store ``data`` atomically and durably.

        Raises:
            FileExistsError: ``if_absent`` is set and the object exists; the object stays unchanged.
        """

    def put_file(self, path: str, local_path: str | Path) -> None:
        """Store a local file of any size, atomically and durably."""

    def size(self, path: str) -> int | None:
        """Return the size of an object in bytes, or None if there is no object."""

    def exists(self, path: str) -> bool:
        """Return whether the object exists."""

    def version(self, path: str) -> str:
        """Return a text that changes with every write of the object, even of equal size; "" if there is no object."""

    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        """Return (path, bytes) of every object under the folder ``prefix``, at any depth, sorted by path."""

    def delete(self, path: str) -> None:
        """Remove an object; a missing object is no error."""

    def sub(self, prefix: str) -> Store:
        """Return the store whose root is the folder ``prefix`` of this one."""

    def check_access(self, *, write: bool) -> None:
        """Fail within about 15 s if the root cannot be read (or written) at present.

        Raises:
            UserError: missing folder or bucket, unreachable endpoint, refused credentials, unwritable destination.
        """


def inside(path: str) -> str:
    """Return ``path`` if it stays below the root of a store.

    Raises:
        UserError: the path is absolute, has "..", or has a NUL; a manifest from another source may hold such a path.
    """
    if path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise UserError(f"{path!r} leads out of its storage location: paths are relative and have no '..'")
    if "\0" in path:
        raise UserError(f"{path!r} has a NUL in it: no file can have that name")
    return path
