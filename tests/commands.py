"""Commands of the project in processes forked from one that has imported their libraries.

Most tests of commands start one that ends within a second, after imports that take several. A forked command differs
from one that a shell starts in what is imported already: not Ray, which reads the environment when it is imported.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

import infra.cluster

ROOT = Path(__file__).parents[1]
MODULES = (
    *("torch", "torchvision", "pandas", "pyarrow.parquet", "boto3", "sqlalchemy", "rich.live", "matplotlib.figure"),
    *("mlflow", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"),
    *("pipelines.training.driver", "pipelines.training.result", "pipelines.tuning.study"),
)
"""What the commands import, and Ray is not imported by."""


class Commands:
    """A process that runs commands one after another, each in a fork of itself."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Start the process, which imports `MODULES` in this environment."""
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.commands"],
            cwd=ROOT,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(
        self, verb: str, *arguments: str, cwd: Path, environment: Mapping[str, str], timeout: float = 200
    ) -> subprocess.CompletedProcess[str]:
        """Run `python pipelines/VERB.py ARGUMENTS` and return its status and output.

        Raises:
            subprocess.TimeoutExpired: it has not ended after `timeout` seconds. This object is of no use then.
        """
        command = [str(ROOT / "pipelines" / f"{verb}.py"), *arguments]
        with tempfile.TemporaryDirectory() as folder:
            files = [str(Path(folder) / name) for name in ("out", "err")]
            request = {"argv": command, "cwd": str(cwd), "environment": dict(environment), "files": files}
            to, back = _pipes(self._server)
            print(json.dumps(request), file=to, flush=True)
            if not select.select([back], [], [], timeout)[0]:
                self.close()
                raise subprocess.TimeoutExpired(command, timeout)
            status = int(back.readline())
            out, err = (Path(file).read_text() for file in files)
        return subprocess.CompletedProcess(command, status, out, err)

    def close(self) -> None:
        """End the process, and a command that it runs."""
        to, back = _pipes(self._server)
        os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()
        to.close()
        back.close()


@contextmanager
def serving_commands(environment: Mapping[str, str]) -> Iterator[Commands]:
    commands = Commands(environment)
    try:
        yield commands
    finally:
        commands.close()


def _pipes(server: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert server.stdin and server.stdout
    return server.stdin, server.stdout


def _serve() -> None:
    """Answer each request, a line of the input, with the status of its command, until the input ends."""
    for module in MODULES:
        importlib.import_module(module)
    assert "ray" not in sys.modules
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run(json.loads(line))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _run(request: Mapping[str, Any]) -> NoReturn:
    """Give this process what a command that a shell starts would have, run the command, and end."""
    files = [os.open(os.devnull, os.O_RDONLY), *(os.open(file, os.O_WRONLY | os.O_CREAT) for file in request["files"])]
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = list(request["argv"])
    sys.path[0] = str(Path(sys.argv[0]).parent)
    # Most commands end before they need a Ray. One that does not imports its workers' modules when it starts Ray.
    infra.cluster.warm_up = lambda modules: None
    status: Any = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    # As the interpreter ends, but for its last garbage collection, which would look at, and so copy, every page: 2 s.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _serve()
