"""Backups of a SQLite database: consistent while others write, restored where there is none, bounded in number."""

from __future__ import annotations

import gzip
import hashlib
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra import mlflow_backup
from infra.errors import UserError
from infra.mlflow_backup import back_up, backed_up, restore
from infra.storage import LocalStore, Store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return LocalStore(uri=str(tmp_path / "bucket" / "mlflow-database"))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    file = tmp_path / "head" / "mlflow.db"
    file.parent.mkdir()
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE aliases (name TEXT, version INTEGER)")
        connection.commit()
    return file


def register(database: Path, version: int) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("INSERT INTO aliases VALUES ('champion', ?)", (version,))
        connection.commit()


def versions(database: Path) -> list[int]:
    with closing(sqlite3.connect(database)) as connection:
        return [version for (version,) in connection.execute("SELECT version FROM aliases ORDER BY rowid")]


def names(store: Store) -> list[str]:
    return [name for name, _ in store.list()]


def test_a_new_disk_gets_what_was_backed_up_last(database: Path, store: Store, tmp_path: Path) -> None:
    for version in (1, 2):
        register(database, version)
        assert back_up(database, store) in names(store)
    new = tmp_path / "new-head" / "mlflow.db"
    new.parent.mkdir()
    assert restore(new, store) == names(store)[-1]
    assert versions(new) == [1, 2]
    assert [file.name for file in new.parent.iterdir()] == ["mlflow.db"]


def test_a_database_that_is_there_stays(database: Path, store: Store) -> None:
    register(database, 1)
    back_up(database, store)
    register(database, 2)
    assert restore(database, store) == ""
    assert versions(database) == [1, 2]


def test_without_a_backup_there_is_nothing_to_restore(store: Store, tmp_path: Path) -> None:
    assert restore(tmp_path / "mlflow.db", store) == ""
    assert list(tmp_path.iterdir()) == []


def test_what_has_not_changed_is_not_stored_again(database: Path, store: Store) -> None:
    assert back_up(database, store)
    assert back_up(database, store) == ""
    assert len(names(store)) == 1


def test_a_damaged_backup_is_passed_over(
    database: Path, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = []
    for version in (1, 2, 3):
        register(database, version)
        kept.append(back_up(database, store))
    whole = store.read(kept[1])
    store.write(kept[2], store.read(kept[2])[:-20])  # broken off
    store.write(kept[1], gzip.compress(b"not a database"))
    new = tmp_path / "mlflow.db"
    assert restore(new, store) == kept[0]
    assert versions(new) == [1]
    assert capsys.readouterr().err.count("is damaged") == 2
    new.unlink()
    store.write(kept[2], whole)  # sound, and another database than its name says
    assert restore(new, store) == kept[0]


def test_a_new_database_does_not_take_the_place_of_backups_that_cannot_be_read(
    database: Path, store: Store, tmp_path: Path
) -> None:
    store.write(back_up(database, store), b"?")
    with pytest.raises(UserError, match=r"none of 1 backups in .* is intact: move them elsewhere"):
        restore(tmp_path / "mlflow.db", store)


def test_a_backup_is_one_moment_of_a_database_that_is_written_meanwhile(
    database: Path, store: Store, tmp_path: Path
) -> None:
    """Each writer's transaction inserts a pair, so an odd number would be half of one."""
    over = threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(database, timeout=30)) as connection:
            number = 0
            while not over.is_set():
                number += 1
                pair = [(number,), (number,)]
                connection.executemany("INSERT INTO aliases VALUES ('champion', ?)", pair)
                connection.commit()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(8):
            back_up(database, store)
    finally:
        over.set()
        writer.join()
    for name in names(store):
        content = gzip.decompress(store.read(name))
        assert hashlib.sha256(content).hexdigest() in name
        copy = tmp_path / "copy.db"
        copy.write_bytes(content)
        found = versions(copy)
        assert len(found) % 2 == 0 and found == sorted(found)


class Clock(datetime):
    """A day later at each look."""

    moment = datetime(2026, 11, 1, 12, tzinfo=UTC)

    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        cls.moment += timedelta(hours=8)
        return cls.moment


def test_the_newest_five_and_one_of_each_of_seven_days_are_kept(
    database: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_backup, "datetime", Clock)
    for version in range(60):  # three a day
        register(database, version)
        back_up(database, store)
    kept = names(store)
    numbers = [int(name.split("-")[0]) for name in kept]
    days = [name.split("-")[1][:8] for name in kept]
    assert numbers[-5:] == [56, 57, 58, 59, 60]
    assert len(set(days)) == 7 and len(kept) <= 12
    assert sorted(days)[-1] == kept[-1].split("-")[1][:8]


def test_while_a_server_runs_changes_are_stored_and_the_last_one_at_its_end(
    database: Path, store: Store, tmp_path: Path
) -> None:
    stored = threading.Event()
    put = store.put_file

    class Told(LocalStore):
        def put_file(self, path: str, local_path: str | Path) -> None:
            put(path, local_path)
            stored.set()

    (database.parent / "mlflow-backup-left").mkdir()
    with backed_up(database, Told(uri=store.uri), every_s=0.01):
        register(database, 1)
        assert stored.wait(60)
        register(database, 2)
    assert restore(tmp_path / "mlflow.db", store)
    assert versions(tmp_path / "mlflow.db") == [1, 2]
    assert [file.name for file in database.parent.iterdir()] == ["mlflow.db"]


def test_storage_that_refuses_ends_no_server_and_is_tried_again(
    database: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    failed, again = threading.Event(), threading.Event()

    class Refusing(LocalStore):
        def put_file(self, path: str, local_path: str | Path) -> None:
            (again if failed.is_set() else failed).set()
            raise UserError("refused for now")

    with backed_up(database, Refusing(uri=store.uri), every_s=0.01):
        assert failed.wait(60) and again.wait(60)
    assert "MLflow's database was not backed up: refused for now" in capsys.readouterr().err


@pytest.fixture
def command(database: Path, store: Store) -> Iterator[list[str]]:
    yield [sys.executable, "-m", "infra.mlflow_backup", str(database.parent), store.uri]


def told(command: list[str]) -> tuple[int, str, str]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_the_command_stores_and_restores(command: list[str], database: Path, store: Store) -> None:
    register(database, 7)
    status, out, _ = told(command)
    (name,) = names(store)
    assert (status, out) == (0, f"stored {store.uri}/{name}\n")
    assert told(command)[1] == "the newest backup is up to date\n"
    assert told([*command, "--restore"])[1] == "nothing to restore: there is a database\n"
    database.unlink()
    assert told([*command, "--restore"])[1] == f"restored {name}\n"
    assert versions(database) == [7]


def test_the_command_tells_in_one_line_what_is_wrong(command: list[str], database: Path, tmp_path: Path) -> None:
    database.write_text("not a database, and longer than the header of one" * 10)
    assert told(command)[0::2] == (
        2,
        f"error: {database} cannot be copied: file is not a database: expected a SQLite database\n",
    )
    database.unlink()
    assert told(command)[0::2] == (2, f"error: no {database}: nothing to back up\n")
    wrong = [*command[:3], str(tmp_path / "nowhere"), command[-1]]
    assert told(wrong)[0::2] == (
        2,
        f"error: {tmp_path / 'nowhere'} is not a folder: name the one that holds mlflow.db\n",
    )
