"""Start the Ray of one command on this machine, without what it does not need, and end it with the command."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partialmethod
from pathlib import Path

import psutil

from infra.errors import UserError
from infra.local_ray.fork_server import ForkServer
from infra.local_ray.start_worker import SOCKET
from infra.ray_start import ray_folder, use_own_token
from infra.subprocesses import wait_for_end

_fork_server: ForkServer | None = None

# Monitoring that a Ray of one command does not need: no dashboard reads it, and no cloud takes its node away. On two
# cores it slows the training down (docs/results.md, overhead).
_UNWATCHED = {
    "RAY_task_events_report_interval_ms": "0",
    "RAY_metrics_report_interval_ms": "60000",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "30000",
}
# Ray sets these before it starts its node. The fork server needs them too, and starts before.
_SET_BY_RAY = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "RAY_CLIENT_MODE": "0"}
# Makes a local Ray use loopback on every system, so that all its ports stay there. Without it, on Linux, its ports are
# open to the network. Ray reads it at import.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_ENDING_S = 5.0  # for the processes of a local Ray to end by themselves, which takes milliseconds


def warm_up(modules: Sequence[str]) -> None:
    """Start to import modules for the workers, in another process, for a Ray that `start` starts later."""
    global _fork_server  # a process has one local Ray
    _set_environment()
    if _fork_server or sys.platform != "linux":  # macOS's own libraries do not survive a fork
        return
    _fork_server = ForkServer(modules, _SET_BY_RAY | os.environ)
    atexit.register(_fork_server.close)


def start(ray, cpus: int, modules: Sequence[str] = ()) -> None:  # type: ignore[no-untyped-def]
    """Start a Ray of so many logical CPUs that ends with this process, and `warm_up` unless that was done.

    Raises:
        UserError: it does not start within three tries, which a busy machine may need.
    """
    folder = ray_folder()
    warm_up(modules)
    before = _descendants()
    for last in (False, False, True):  # Ray waits 30 seconds for its node each time
        try:
            with _lean_node():
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    logging_level="ERROR",
                    log_to_driver=False,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=folder,
                )
        except Exception as error:  # Ray raises bare Exceptions if one of its processes is slow
            ray.shutdown()
            _kill(_descendants() - before)
            if last or isinstance(error, (OSError, ValueError)):
                hint = (
                    "the machine may be overloaded or out of memory; the logs are in ray/session_latest/logs of TMPDIR"
                )
                line = " ".join(str(error).split())[:200]
                raise UserError(f"Ray does not start on this machine: {line}: {hint}") from error
        else:
            atexit.register(_end_here, _descendants() - before, ray.get_runtime_context().get_session_name())
            return


def _set_environment() -> None:
    """Set what Ray's processes and the fork server read when they begin."""
    for name, value in _UNWATCHED.items():
        os.environ.setdefault(name, value)
    use_own_token()


@contextmanager
def _lean_node() -> Iterator[None]:
    """Let a node that starts meanwhile leave out what the Ray of one command does not need.

    Its workers start by `start_worker.py`. There is no autoscaler, no monitor that sends logs to the driver, and no web
    server, for which Ray would wait.
    """
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    init, serve = RayParams.__init__, Node.start_api_server
    program = str(Path(__file__).with_name("start_worker.py"))
    RayParams.__init__ = partialmethod(  # type: ignore[assignment]
        init, setup_worker_path=program, no_monitor=True, include_log_monitor=False
    )
    Node.start_api_server = lambda node, **_: None  # type: ignore[method-assign]
    if _fork_server:
        os.environ[SOCKET] = _fork_server.path  # for Ray's node, which gives it to start_worker.py
    try:
        yield
    finally:
        os.environ.pop(SOCKET, None)
        RayParams.__init__, Node.start_api_server = init, serve  # type: ignore[method-assign]


def _end_here(daemons: set[psutil.Process], session: str) -> None:
    """Shut down the Ray of this process, and kill what is left of it after a while.

    A worker that starts at this moment waits for its Ray for minutes, and one that ends may never do so (Ray 2.60).
    """
    import ray

    found = set(daemons)
    if _fork_server:
        with suppress(psutil.NoSuchProcess):
            found.add(_fork_server.process)
    for parent in tuple(found):
        with suppress(psutil.NoSuchProcess):
            found.update(parent.children(recursive=True))
    ray.shutdown()
    if _fork_server:
        _fork_server.close()
    argument = f"--session-name={session}"  # of each process of it that has just started
    found.update(each for each in psutil.process_iter(["cmdline"]) if argument in (each.info["cmdline"] or ()))
    wait_for_end(found, _ENDING_S)
    _kill(found)


def _kill(processes: set[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _descendants() -> set[psutil.Process]:
    """Return all descendants of this process."""
    return set(psutil.Process().children(recursive=True))
