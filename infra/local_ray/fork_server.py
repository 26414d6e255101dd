"""Fork the workers of a local Ray from one process that has imported their modules.

A run starts a dozen Python processes one after another. Each would import Ray and pandas, and some torch with its
compiler: 0.5 to 5 s of CPU time each. The fork server, as Python's multiprocessing calls such a process, imports these
once, while the command does the same for itself and starts Ray, and forks a worker in 20 ms. The workers share its
memory.

A forked worker differs from a started one in what an import has read already. So the server refuses a worker if a
variable that libraries read at import has another value; `start_worker.py` then starts it as Ray would. Threads do not
survive a fork, so the server has none: it computes nothing, and its libraries get one thread each. PyArrow's allocator
(jemalloc) has one; it holds its locks during a fork, and a worker does without that thread.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from infra.local_ray.start_worker import FORKED
from infra.ray_start import short_folder

_READ_AT_IMPORT = (
    "RAY_",
    "PYTHON",
    "LD_",
    "MALLOC_",
    "OMP_",
    "OPENBLAS_",
    "MKL_",
    "TORCH",
    "PYTORCH_",
    "CUDA_",
    "ARROW_",
)
"""Prefixes of variables that a library may read at its import."""
_READ_LATER = {"RAY_RAYLET_PID", "RAY_JOB_ID", "RAY_LD_PRELOAD_ON_WORKERS", "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC"}
"""Variables with such a prefix that a worker reads after its start."""
_NO_JOB = "ffffffff"  # what a worker has that Ray starts before it is needed; the first task brings the job
ALWAYS = ("ray.data", "pandas", "pydantic.v1")
_FOLDER, _SOCKET = "resnet-ray-fork-", "socket"
_WAITING = 64  # requests that may wait for the end of an import
_HEAD = 4  # bytes of a request's length
_STDIN = 0
Request = Mapping[str, Any]  # what start_worker.py sends


class ForkServer:
    """A fork server, seen by the command that starts it."""

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a server that imports Ray Data and `modules`, in this order.

        Args:
            modules: names of modules.
            environment: environment that the workers will have.

        Raises:
            UserError: TMPDIR is too long for a socket, and /tmp cannot be written.
        """
        below = len(f"/{_FOLDER}12345678/{_SOCKET}")
        # only this user may open the socket in it
        self._folder = tempfile.mkdtemp(prefix=_FOLDER, dir=short_folder(below))
        self.path = os.path.join(self._folder, _SOCKET)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self.path)
            listening.listen(_WAITING)
            # It ends with its input, so also when this process is killed.
            self._server = subprocess.Popen(
                [sys.executable, __file__, str(listening.fileno()), *ALWAYS, *modules],
                env=environment,
                pass_fds=[listening.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    @property
    def process(self) -> psutil.Process:
        """The server. The workers are its children.

        Raises:
            psutil.NoSuchProcess: it has ended.
        """
        return psutil.Process(self._server.pid)

    def close(self) -> None:
        """End the server. Workers that still run end soon after it."""
        self._server.kill()  # it has nothing to save, and may be in the middle of a long import
        self._server.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def _serve(listening: socket.socket, environment: Mapping[str, str], modules: Sequence[str]) -> Request | None:
    """Import the modules and fork a worker for each request, until the input ends.

    Return None at the end; in a worker, return its request.
    """
    left = list(modules)
    while True:
        ready, _, _ = select.select([_STDIN, listening.fileno()], [], [], 0 if left else None)
        if _STDIN in ready:
            return None
        if ready:
            request = _answer(listening, environment)
            if request is not None:
                return request
        elif left:
            with suppress(Exception):  # a worker that needs this module reports its error
                importlib.import_module(left.pop(0))
            if not left:
                gc.freeze()  # a worker's garbage collection would otherwise copy every page


def _answer(listening: socket.socket, environment: Mapping[str, str]) -> Request | None:
    """Answer one request: fork a worker if its environment allows it. Return the request in the worker, else None."""
    connection, _ = listening.accept()
    descriptors: list[int] = []
    with connection:
        try:
            request = _receive(connection, descriptors)
        except (OSError, ValueError):  # who asked has ended meanwhile
            request = None
        try:
            if request is None or _decisive(request["environment"]) != environment:
                return None  # the connection closes without an answer
            if os.fork() == 0:
                _become(request, descriptors)
                return request
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        with suppress(OSError):
            connection.sendall(FORKED)
    return None


def _receive(connection: socket.socket, descriptors: list[int]) -> Request:
    """Return the request, and put its standard files into `descriptors`."""
    head, files, _, _ = socket.recv_fds(connection, _HEAD, 3)
    descriptors += files
    with connection.makefile("rb") as stream:
        request: Request = json.loads(stream.read(int.from_bytes(head, "big")))
        return request


def _decisive(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables in which a worker must agree with the server."""
    return {
        key: value for key, value in environment.items() if key.startswith(_READ_AT_IMPORT) and key not in _READ_LATER
    }


def _become(request: Request, descriptors: Sequence[int]) -> None:
    """Give this process what a program that Ray starts would have: files, folder, variables, signals, group, seeds."""
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
    if request["leads"]:
        os.setpgid(0, 0)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = list(request["argv"])
    sys.path[0] = str(Path(sys.argv[0]).parent)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])


@contextmanager
def _no_random_ids() -> Iterator[None]:
    """Let classes of actors that are defined meanwhile get their ids from the system.

    Ray's own generator would be seeded by the first id, and then give the same ids in all workers.
    """
    actor: Any = importlib.import_module("ray.actor")
    own = actor.ActorClassID

    class FromSystem:
        @staticmethod
        def from_random() -> Any:
            return own(os.urandom(own.size()))

    actor.ActorClassID = FromSystem
    try:
        yield
    finally:
        actor.ActorClassID = own


def main() -> None:
    """Serve until the input ends; in a worker that was forked, run its program.

    The arguments are the number of the descriptor of a listening socket, and the modules to import.
    """
    descriptor, *modules = sys.argv[1:]
    environment = _decisive(os.environ)
    # Ray's library reads its settings when it is loaded. A worker ends once the process with this id has ended.
    os.environ.update({"RAY_JOB_ID": _NO_JOB, "RAY_RAYLET_PID": str(os.getpid())})
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as Ray sets it for a worker of one CPU
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command decides what Ctrl-C ends
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # workers that end leave no zombies
    with socket.socket(fileno=int(descriptor)) as listening, _no_random_ids():
        folder = Path(listening.getsockname()).parent
        request = _serve(listening, environment, modules)
    if request is None:  # the command was killed, or it would have removed the folder
        shutil.rmtree(folder, ignore_errors=True)
    else:
        runpy.run_path(request["argv"][0], run_name="__main__")


if __name__ == "__main__":
    main()
