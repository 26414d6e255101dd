"""Lines that compiled code writes to stderr are left out, and nothing else."""

from __future__ import annotations

import os

import pytest

from pipelines.inference.batch_predict import left_out


def test_only_lines_with_the_mark_are_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    with left_out(b"core_worker.cc"):
        os.write(2, b"[E 1] core_worker.cc:2465: a false alarm\n")
        os.write(2, b"error: a user's line\n")
        os.write(2, b"without an end")
    os.write(2, b"\n[E 1] core_worker.cc:1: afterwards\n")
    assert capfd.readouterr().err == ("error: a user's line\nwithout an end\n[E 1] core_worker.cc:1: afterwards\n")


def test_an_error_in_the_block_comes_out(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), left_out(b"x"):
        raise KeyError("bug")
    os.write(2, b"x is written again\n")
    assert capfd.readouterr().err == "x is written again\n"
