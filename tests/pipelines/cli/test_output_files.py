"""Results of an option: refused before the work where they cannot be written, and never half-written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from infra.errors import UserError
from pipelines.evaluation.outputs import check_file, check_folder, write_file


def test_what_cannot_be_written_is_found_before(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for file, why in [
        (tmp_path, "Is a directory"),
        (tmp_path / "no" / "x.json", "No such file or directory"),
        (tmp_path / "file" / "x.json", "No such file or directory"),
        (Path("/proc/x.json"), "cannot write to /proc"),
    ]:
        with pytest.raises(UserError, match=f"^--json {file}: .*{why}"):
            check_file("--json", str(file))
    with pytest.raises(UserError, match=f"^--plots {tmp_path}/file: cannot be written: File exists"):
        check_folder("--plots", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"^--plots /proc/plots: cannot write to /proc/plots"):
        check_folder("--plots", "/proc/plots")
    check_file("--json", str(tmp_path / "new.json"))
    check_folder("--plots", str(tmp_path / "new"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.json"
    write_file("--json", str(file), b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=f"^--json {file}: cannot write {file}: No space left on device"):
        write_file("--json", str(file), b"new")
    assert file.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_pipe_or_a_link_is_written_to_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"")
    (tmp_path / "link").symlink_to("target")
    write_file("--json", str(tmp_path / "link"), b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"x"
    check_file("--json", "/dev/null")
    write_file("--json", "/dev/null", b"x")
    assert not Path("/dev/null").is_file()
