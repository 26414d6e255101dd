"""Files and folders that an option names for results: found wanting before the work, and then written whole or not."""

from __future__ import annotations

from pathlib import Path

from infra.errors import UserError
from infra.storage import open_store


def check_file(option: str, file: str) -> None:
    """Raise UserError where a file such as `--json FILE` could not be written."""
    path = Path(file)
    if path.is_dir():
        raise UserError(f"{option} {file}: cannot be written: Is a directory")
    if not path.parent.is_dir():
        raise UserError(f"{option} {file}: cannot be written: No such file or directory")
    if not _special(path):
        _check(option, file, path.absolute().parent)


def check_folder(option: str, folder: str) -> None:
    """Raise UserError where files could not be written to a folder, which need not exist yet."""
    if Path(folder).exists() and not Path(folder).is_dir():
        raise UserError(f"{option} {folder}: cannot be written: File exists")
    _check(option, folder, Path(folder).absolute())


def write_file(option: str, file: str, content: bytes) -> None:
    """Write a file whole or not at all; what is no file, such as a pipe, gets the bytes as they are."""
    path = Path(file)
    try:
        if _special(path):
            path.write_bytes(content)
        else:
            open_store(str(path.absolute().parent)).write(path.name, content)
    except UserError as error:
        raise UserError(f"{option} {file}: {error}") from error
    except OSError as error:
        raise UserError(f"{option} {file}: cannot be written: {error.strerror}") from error


def _special(path: Path) -> bool:
    return path.is_symlink() or (path.exists() and not path.is_file())


def _check(option: str, place: str, folder: Path) -> None:
    try:
        open_store(str(folder)).check_access(write=True)
    except UserError as error:
        raise UserError(f"{option} {place}: {error}") from error
