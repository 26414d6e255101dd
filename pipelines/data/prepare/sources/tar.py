"""Listing of a tar's members from its headers. Nothing is extracted: images are read as byte ranges of the archive.

Python's tarfile parses the headers (ustar, pax, GNU long names). Some members that tarfile accepts are refused here.
The error is one line that names the tar and the member.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, cast

from infra.errors import UserError
from pipelines.data.prepare.sources.place import is_hidden, lfs_hint
from pipelines.data.prepare.sources.ranged_file import RangedFile

if TYPE_CHECKING:
    from infra.storage import Store

_MOST_HEADER_BYTES = 1 << 20  # limit of one read: pax headers and long names are read whole
_MOST_NAME_LENGTH = 4096
_ZEROS_READ = 64 << 10  # bytes per read after the end mark: tar pads to a multiple of 10,240
# (largest body in bytes that is read instead of skipped, bytes per request then, bytes per request otherwise)
_LOCAL = (16 << 10, 256 << 10, 4 << 10)
_REMOTE = (1 << 20, 4 << 20, 16 << 10)  # a request costs about as much time as a megabyte


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar."""

    name: str  # relative, without "./"
    start: int  # offset of the body in the tar, bytes
    size: int  # bytes


def open_tar(store: Store, path: str, *, length: int, start: int = 0) -> RangedFile:
    """Open a stored tar, or a tar inside it, for listing."""
    return RangedFile(store, path, start=start, length=length, ahead=_ahead(store, 0))


def stored_members(store: Store, file: RangedFile, where: str) -> Iterator[Member]:
    """List the members of a file from `open_tar`. The read-ahead depends on the size of the bodies."""
    before = 0
    for member in list_members(file, file.length, where):
        file.ahead = _ahead(store, max(before, member.size))  # of two members: a label often follows an image
        before = member.size
        yield member


def _ahead(store: Store, body: int) -> int:
    small, through, skip = _REMOTE if store.is_remote else _LOCAL
    return through if body <= small else skip


class _Headers:
    """The file that tarfile reads. It refuses lengths that only a forged header has."""

    def __init__(self, file: IO[bytes] | RangedFile) -> None:
        self.tell, self.seek = file.tell, file.seek
        self._read = file.read

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._read(size)


def list_members(file: IO[bytes] | RangedFile, length: int, where: str) -> Iterator[Member]:
    """Yield the regular files of a tar of `length` bytes, in its order. Bodies may be read between members.

    Folders and hidden files (the `._` files of macOS) are skipped. Archives appended to the first one are read too.

    Raises:
        UserError: not a complete uncompressed tar, or a member is a link, a device, sparse, or leads outside.
    """
    headers = cast("IO[bytes]", _Headers(file))
    start: int | None = 0
    try:
        while start is not None:
            file.seek(start)
            with tarfile.open(fileobj=headers, mode="r:", errors="surrogateescape") as tar:
                while (info := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every member
                    name = _inside(info, where)
                    if not info.isdir() and not is_hidden(name):
                        yield _checked(info, name, length, where)
                start = _next_archive(file, tar.offset, length)
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror or error}") from error
    # tarfile raises most of these intentionally, and the others on hostile headers
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError) as error:
        file.seek(0)
        why = lfs_hint(file.read(tarfile.BLOCKSIZE)) or f": {error or type(error).__name__}"
        raise UserError(f"{where} is not a whole, uncompressed tar{why}") from error


def _inside(info: tarfile.TarInfo, where: str) -> str:
    """Return the member's name without a leading "./". Raise UserError if it leads outside or is not UTF-8."""
    name = info.name.removeprefix("./")
    if not name or name[0] == "/" or "/../" in f"/{name}/" or len(name) > _MOST_NAME_LENGTH:
        raise UserError(f"{where}: member {info.name[:200]!r} leads outside of the archive: nothing is read from it")
    if not name.isascii() and any("\ud800" <= character <= "\udfff" for character in name):
        raise UserError(f"{where}: the name of member {name[:200]!r} is not UTF-8: rename it")
    return name


def _checked(info: tarfile.TarInfo, name: str, length: int, where: str) -> Member:
    if not info.isreg() or info.issparse():
        what = "a link" if info.issym() or info.islnk() else "sparse" if info.issparse() else "not a regular file"
        raise UserError(f"{where}: member {info.name!r} is {what}, which is not followed: pack plain files")
    end = info.offset_data + info.size
    if info.size < 0 or end > length:
        raise UserError(f"{where}: member {info.name!r} ends at byte {end:,} of {length:,}: is the archive whole?")
    return Member(name, info.offset_data, info.size)


def _next_archive(file: IO[bytes] | RangedFile, offset: int, length: int) -> int | None:
    """Return the offset of the archive after the end mark at `offset` (`cat a.tar b.tar`, `tar -A`); None if none.

    tarfile treats a damaged header and a truncated file as the end of the archive; here they raise ReadError.
    """
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it ends at byte {length:,} without the mark of an archive's end")
    if any(block):
        raise tarfile.ReadError(f"bad header at byte {offset:,}")
    at = offset + len(block)
    while data := file.read(_ZEROS_READ):
        if used := data.lstrip(b"\0"):
            return (at + len(data) - len(used)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        at += len(data)
    return None
