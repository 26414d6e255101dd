"""Start a worker of a local Ray: let the fork server fork it, or start Python in the worker's environment.

Ray runs this program for each worker in place of its own setup_worker.py, which imports Ray to do the second of these.
It imports nothing but the standard library, since a run starts it a dozen times, and hands to Ray's program whatever
asks for more than environment variables. Its name must not hold Ray's, which Ray leaves out for workers without a
runtime environment.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

SOCKET = "RESNET_RAY_FORK_SERVER"  # environment variable with the path of the fork server's socket
FORKED = b"y"  # the fork server's answer if the worker runs; anything else: start it otherwise
_CONTEXT, _LANGUAGE = "--serialized-runtime-env-context=", "--language="
_EMPTY: dict[str, object] = {"command_prefix": [], "override_worker_entrypoint": None, "java_jars": []}
_KEYS = {*_EMPTY, "env_vars", "py_executable"}


def worker_command(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]] | None:
    """Return a worker's command line and its variables; None if the runtime environment asks for more than variables.

    Args:
        arguments: those that Ray gives to its setup_worker.py; without a context if there is no runtime environment.
    """
    contexts = [each.removeprefix(_CONTEXT) for each in arguments if each.startswith(_CONTEXT)]
    if f"{_LANGUAGE}PYTHON" not in arguments or len(contexts) > 1:
        return None
    rest = [each for each in arguments if not each.startswith((_CONTEXT, _LANGUAGE))]
    if not contexts:
        return [sys.executable, *rest], {}
    context = json.loads(contexts[0])
    if set(context) != _KEYS or any(context[key] != value for key, value in _EMPTY.items()):
        return None
    variables = context["env_vars"]
    if any("$" in value for value in variables.values()):  # Ray inserts the values of other variables there
        return None
    return [context["py_executable"], *rest], variables


def forked(command: Sequence[str], path: str) -> bool:
    """Ask the fork server at `path` for a worker with this process's environment; return whether it runs."""
    if command[0] != sys.executable or command[1].startswith("-"):  # another Python, or options for it
        return False
    request = {
        "argv": command[1:],
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
        "leads": os.getpgid(0) == os.getpid(),
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    }
    text = json.dumps(request).encode()
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            socket.send_fds(connection, [len(text).to_bytes(4, "big")], [0, 1, 2])
            connection.sendall(text)
            return connection.recv(1) == FORKED
    except OSError:  # the server has ended, or never began
        return False


def main() -> None:
    path = os.environ.pop(SOCKET, None)
    found = worker_command(sys.argv[1:])
    if found is None:
        package = find_spec("ray")
        assert package and package.origin
        own = Path(package.origin).parent / "_private" / "workers" / "setup_worker.py"
        os.execv(sys.executable, [sys.executable, str(own), *sys.argv[1:]])
    command, variables = found
    os.environ.update(variables)
    if not (path and forked(command, path)):
        os.execv(command[0], command)


if __name__ == "__main__":
    main()
