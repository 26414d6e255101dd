"""How a command ends: a user's error and a machine's refusal in one line with status 2, a bug with its traceback."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from infra.errors import UserError, machine_error, run


def raises(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


def caused_by(cause: BaseException) -> RuntimeError:
    error = RuntimeError("many\nlines")
    error.__cause__ = cause
    return error


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/disk/file")


@pytest.mark.parametrize("error", [FULL, caused_by(FULL), caused_by(caused_by(FULL))])
def test_a_full_disk_is_one_line_whoever_met_it(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(raises(error))
    said = capsys.readouterr().err
    assert said.startswith("error: cannot use /disk/file: No space left on device: free some space there")
    assert said.count("\n") == 1


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG, errno.EMFILE])
def test_other_refusals_of_a_machine(number: int) -> None:
    assert os.strerror(number) in str(machine_error(OSError(number, os.strerror(number))))


@pytest.mark.parametrize(
    "error", [ValueError("x"), FileNotFoundError(errno.ENOENT, "no such file"), KeyError("x"), OSError("no number")]
)
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run(raises(error))


def test_what_was_handled_before_a_bug_is_no_cause_of_it() -> None:
    try:
        try:
            raise FULL
        except OSError:
            raise KeyError("bug")  # noqa: B904
    except KeyError as error:
        assert machine_error(error) is None


def test_ray_s_wrapping_is_looked_through() -> None:
    from ray.exceptions import RayTaskError

    error = RayTaskError("write", "a traceback\nof many lines", FULL).as_instanceof_cause()
    told = machine_error(error)
    assert isinstance(told, UserError)
    assert str(told).startswith("cannot use /disk/file: No space left on device")
    assert "traceback" not in str(told)
