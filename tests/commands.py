"""Commands of the project in processes of `tests.processes`, whose server has imported their libraries.

Most tests of commands start one that ends within a second, after imports that take several. A forked command differs
from one that a shell starts in what is imported already: not Ray, which reads the environment when it is imported.
"""

from __future__ import annotations

import atexit
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import infra.cluster
from tests.processes import CONTEXT

ROOT = Path(__file__).parents[1]
_LIMIT_S = 200


def run_command(
    verb: str, *arguments: str, cwd: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run `python pipelines/VERB.py ARGUMENTS` and return its status and output.

    Raises:
        subprocess.TimeoutExpired: it has not ended after 200 seconds.
    """
    command = [str(ROOT / "pipelines" / f"{verb}.py"), *arguments]
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder, name) for name in ("out", "err"))
        process = CONTEXT.Process(target=_run, args=(command, cwd, dict(environment), (out, err)))
        process.start()
        process.join(_LIMIT_S)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(command, _LIMIT_S)
        return subprocess.CompletedProcess(command, process.exitcode, out.read_text(), err.read_text())


def _run(command: Sequence[str], cwd: Path, environment: Mapping[str, str], files: Sequence[Path]) -> None:
    """Give this process what a command that a shell starts would have, and run the command."""
    for target, file in enumerate(files, start=1):
        with file.open("wb") as opened:
            os.dup2(opened.fileno(), target)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = list(command)
    sys.path[0] = str(Path(command[0]).parent)
    # Most commands end before they need a Ray; the others let workers' modules be imported when they start it.
    infra.cluster.warm_up = lambda modules: None
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:  # multiprocessing leaves out the functions that a command has registered for its end
        threading._shutdown()
        atexit._run_exitfuncs()
