"""A process that ends while it is looked at is none, not an error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from benchmarks.processes import command_line


def test_a_command_line_of_one_that_ended_is_empty():
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    process = psutil.Process(child.pid)
    assert child.stdout is not None
    child.stdout.read()  # until it has ended: a zombie, as nobody has waited for it
    while process.status() != psutil.STATUS_ZOMBIE:
        pass
    assert command_line(process) == ""
    child.wait()
    assert command_line(process) == ""


def test_a_command_line_of_one_that_runs():
    assert Path(sys.executable).name in command_line(psutil.Process())
