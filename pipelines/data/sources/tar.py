"""The members of a tar, from its headers. Nothing is ever extracted: images are read as byte ranges of the archive.

The headers are parsed by Python's tarfile (ustar, pax, GNU long names); what it lets pass and we do not is refused in
one line that names the tar and the member.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, cast

from infra.errors import UserError
from pipelines.data.sources.place import is_hidden, lfs_hint
from pipelines.data.sources.ranged_file import RangedFile

if TYPE_CHECKING:
    from infra.storage import Store

_MOST_HEADER_BYTES = 1 << 20  # of one read: pax headers and long names are read whole
_MOST_NAME_LENGTH = 4096
_ZEROS_READ = 64 << 10  # bytes at once behind the end mark: tar fills up to 10,240
# (bodies up to this many bytes are read through rather than skipped, bytes fetched at once then, else)
_LOCAL = (16 << 10, 256 << 10, 4 << 10)
_REMOTE = (1 << 20, 4 << 20, 16 << 10)  # a request costs about as much time as a megabyte


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar."""

    name: str  # relative, without "./"
    start: int  # of its body in the tar, bytes
    size: int  # bytes


def open_tar(store: Store, path: str, *, length: int, start: int = 0) -> RangedFile:
    """A stored tar, or one inside it, as a file to list."""
    return RangedFile(store, path, start=start, length=length, ahead=_ahead(store, 0))


def stored_members(store: Store, file: RangedFile, where: str) -> Iterator[Member]:
    """`list_members` of `open_tar`, fetching ahead as far as the size of the bodies makes worth while."""
    before = 0
    for member in list_members(file, file.length, where):
        file.ahead = _ahead(store, max(before, member.size))  # of two: a label often follows an image
        before = member.size
        yield member


def _ahead(store: Store, body: int) -> int:
    small, through, skip = _REMOTE if store.uri.startswith("s3://") else _LOCAL
    return through if body <= small else skip


class _Headers:
    """What tarfile reads: refuses the lengths that only a forged header asks for."""

    def __init__(self, file: IO[bytes] | RangedFile) -> None:
        self.tell, self.seek = file.tell, file.seek
        self._read = file.read

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._read(size)


def list_members(file: IO[bytes] | RangedFile, length: int, where: str) -> Iterator[Member]:
    """Regular files of a tar of `length` bytes, in its order. A body may be read meanwhile.

    Folders and hidden files (the `._` files of macOS) are passed over. Archives behind the first one are read too.

    Raises:
        UserError: not a whole uncompressed tar, or a member that is a link, a device, sparse, or leads outside.
    """
    headers = cast("IO[bytes]", _Headers(file))
    start: int | None = 0
    try:
        while start is not None:
            file.seek(start)
            with tarfile.open(fileobj=headers, mode="r:", errors="surrogateescape") as tar:
                while (info := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep each
                    name = _inside(info, where)
                    if not info.isdir() and not is_hidden(name):
                        yield _checked(info, name, length, where)
                start = _next_archive(file, tar.offset, length)
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror or error}") from error
    # tarfile raises most of these on purpose, and the others on hostile headers
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError) as error:
        file.seek(0)
        why = lfs_hint(file.read(tarfile.BLOCKSIZE)) or f": {error or type(error).__name__}"
        raise UserError(f"{where} is not a whole, uncompressed tar{why}") from error


def _inside(info: tarfile.TarInfo, where: str) -> str:
    """The member's name without a leading "./"."""
    name = info.name.removeprefix("./")
    if not name or name[0] == "/" or "/../" in f"/{name}/" or len(name) > _MOST_NAME_LENGTH:
        raise UserError(f"{where}: member {info.name[:200]!r} leads outside of the archive: nothing is read from it")
    if not name.isascii() and any("\ud800" <= character <= "\udfff" for character in name):
        raise UserError(f"{where}: the name of member {name[:200]!r} is not UTF-8: rename it")
    return name


def _checked(info: tarfile.TarInfo, name: str, length: int, where: str) -> Member:
    if not info.isreg() or info.issparse():
        what = "a link" if info.issym() or info.islnk() else "sparse" if info.issparse() else "no regular file"
        raise UserError(f"{where}: member {info.name!r} is {what}, which is not followed: pack plain files")
    end = info.offset_data + info.size
    if info.size < 0 or end > length:
        raise UserError(f"{where}: member {info.name!r} ends at byte {end:,} of {length:,}: is the archive whole?")
    return Member(name, info.offset_data, info.size)


def _next_archive(file: IO[bytes] | RangedFile, offset: int, length: int) -> int | None:
    """Where another archive begins behind the end mark at `offset` (`cat a.tar b.tar`, `tar -A`); None at the end.

    tarfile takes a damaged header, and the end of the file, for the end of the archive.
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
