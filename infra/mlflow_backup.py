"""Backups of MLflow's SQLite database in object storage, so that runs and registry outlive the head's disk.

    python -m infra.mlflow_backup FOLDER URI
    python -m infra.mlflow_backup FOLDER URI --restore

The first command stores one backup of FOLDER/mlflow.db below URI. The second fetches the newest backup if FOLDER has no
database. `infra.head` restores before it starts MLflow and backs up every minute while MLflow runs. SQLite's backup API
makes the copy, so the copy is consistent while other processes write. A backup is `NUMBER-TIME-SHA256.db.gz`, with the
hash of the database. The five newest backups are kept, and the last one of each of the seven newest days.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import re
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from infra.errors import UserError, run
from infra.storage import Store, open_store

DATABASE_FILE = "mlflow.db"
EVERY_S = 60.0
_LOAD = 20.0  # the pause between backups is at least this many times the duration of the last one
_NEWEST, _DAYS = 5, 7  # backups that are kept, at most their sum
_NAME = re.compile(r"(?P<number>\d{10})-(?P<day>\d{8})T\d{6}Z-(?P<sha256>[0-9a-f]{64})\.db\.gz")
_LOCK_TIMEOUT_S = 30.0
_CHUNK_BYTES = 1 << 20
_LAST_S = 30.0
_SCRATCH = "mlflow-backup-"


def back_up(database: Path, store: Store) -> str:
    """Store one consistent copy; return its name, or "" if the newest backup already equals the database.

    Args:
        database: SQLite file, which other processes may write meanwhile.
        store: holds the backups of this database and nothing else.
    """
    earlier = _backups(store)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=database.parent) as scratch:
        copy, packed = Path(scratch, "copy.db"), Path(scratch, "copy.db.gz")
        _copy(database, copy)
        sha256 = _sha256(copy)
        if earlier and _part(earlier[-1], "sha256") == sha256:
            return ""
        with copy.open("rb") as source, gzip.open(packed, "wb", compresslevel=1) as target:
            shutil.copyfileobj(source, target, _CHUNK_BYTES)
        number = int(_part(earlier[-1], "number")) + 1 if earlier else 1
        name = f"{number:010d}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{sha256}.db.gz"
        store.put_file(name, packed)
    for old in _superseded([*earlier, name]):
        store.delete(old)
    return name


def restore(database: Path, store: Store) -> str:
    """Fetch the newest intact backup if there is no database; return its name, or "" if there was nothing to do.

    Raises:
        UserError: there are backups, but none is intact. Backups of a new database would soon replace them.
    """
    if database.exists() and database.stat().st_size:
        return ""
    found = _backups(store)
    for name in reversed(found):
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=database.parent) as scratch:
            copy = Path(scratch, "copy.db")
            if not _unpack(store.read(name), copy) or _sha256(copy) != _part(name, "sha256"):
                _log(f"backup {name} is damaged: trying the one before it")
                continue
            os.replace(copy, database)
            _sync(database.parent)
            return name
    if found:
        raise UserError(
            f"none of {len(found)} backups in {store.uri} is intact: move them elsewhere to begin with a new database"
        )
    return ""


@contextmanager
def backed_up(database: Path, store: Store, every_s: float = EVERY_S) -> Iterator[None]:
    """Back up every `every_s` seconds until the block ends, and once at its end; failures are only logged."""
    for left in database.parent.glob(f"{_SCRATCH}*"):  # of a process that was killed before its clean-up
        shutil.rmtree(left, ignore_errors=True)
    over = threading.Event()

    def repeat() -> None:
        pause, stored = every_s, None
        while not over.wait(pause):
            if (now := _state(database)) != stored:
                began = time.monotonic()
                stored = now if _try(database, store) else None
                pause = max(every_s, _LOAD * (time.monotonic() - began))
        if database.exists():
            _try(database, store)

    thread = threading.Thread(target=repeat, name="mlflow-backup", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_LAST_S)  # unreachable storage must not delay the end


def _try(database: Path, store: Store) -> bool:
    try:
        back_up(database, store)
    except Exception as error:  # of any kind: one failure must not end the backups that follow
        _log(f"MLflow's database was not backed up: {' '.join(str(error).split())}")
        return False
    return True


def _copy(database: Path, copy: Path) -> None:
    """Copy in one step of SQLite's backup API: readers continue, writers wait for the end."""
    source = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=_LOCK_TIMEOUT_S)
    with closing(source), closing(sqlite3.connect(copy)) as target:
        source.backup(target)


def _unpack(packed: bytes, copy: Path) -> bool:
    """Unpack a backup; return whether it is a complete gzip file of a database that passes SQLite's own check."""
    try:
        copy.write_bytes(gzip.decompress(packed))
        with copy.open("rb") as file:
            os.fsync(file.fileno())
        with closing(sqlite3.connect(copy)) as database:
            sound: bool = database.execute("PRAGMA quick_check").fetchone() == ("ok",)
    except (EOFError, gzip.BadGzipFile, sqlite3.DatabaseError, ValueError):
        return False
    return sound


def _superseded(names: list[str]) -> list[str]:
    """Return the backups to delete; `names` are oldest first."""
    last_of_day = {_part(name, "day"): name for name in names}
    kept = {*names[-_NEWEST:], *(last_of_day[day] for day in sorted(last_of_day)[-_DAYS:])}
    return [name for name in names if name not in kept]


def _backups(store: Store) -> list[str]:
    """Return the names of all backups, oldest first."""
    return sorted(name for name, _ in store.list() if _NAME.fullmatch(name))


def _part(name: str, group: str) -> str:
    match = _NAME.fullmatch(name)
    assert match
    return match[group]


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _state(database: Path) -> tuple[tuple[int, int], ...]:
    """Return size and time of the file and of its write-ahead log: every commit changes them."""
    files = (database, database.with_name(f"{database.name}-wal"))
    return tuple((stat.st_size, stat.st_mtime_ns) for file in files if file.exists() for stat in [file.stat()])


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _log(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%F %T')} {line}\n")


def main() -> None:
    """Store one backup, or restore the newest."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.mlflow_backup", description="Backups of MLflow's SQLite database."
    )
    parser.add_argument("folder", type=Path, help=f"holds {DATABASE_FILE}")
    parser.add_argument("uri", help="holds the backups: s3://BUCKET/mlflow-database/CLUSTER, or a folder")
    parser.add_argument("--restore", action="store_true", help="fetch the newest backup if there is no database")
    arguments = parser.parse_args()
    database, store = arguments.folder / DATABASE_FILE, open_store(arguments.uri)
    if not arguments.folder.is_dir():
        raise UserError(f"{arguments.folder} is not a folder: name the one that holds {DATABASE_FILE}")
    if arguments.restore:
        name = restore(database, store)
        nothing = f"nothing to restore: {'there is a database' if database.exists() else f'no backup in {store.uri}'}"
        sys.stdout.write(f"restored {name}\n" if name else f"{nothing}\n")
        return
    if not database.is_file():
        raise UserError(f"no {database}: nothing to back up")
    try:
        name = back_up(database, store)
    except sqlite3.DatabaseError as error:
        raise UserError(f"{database} cannot be copied: {error}: expected a SQLite database") from error
    sys.stdout.write(f"stored {store.uri}/{name}\n" if name else "the newest backup is up to date\n")


if __name__ == "__main__":
    run(main)
