"""Start a worker of a local Ray in its runtime environment: Ray's setup_worker.py, without an import of Ray.

Ray starts each worker that has environment variables of its own, which is nearly every process of a run, through a
program that imports Ray, sets the variables and starts Python once more. The import alone takes 0.2 to 0.45 s of
CPU time. This program does the same where nothing else is asked for, and hands all other cases to Ray's program. It
imports nothing of this project, and keeps Ray's file name, by which Ray leaves it out for workers without variables.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

_CONTEXT, _LANGUAGE = "--serialized-runtime-env-context=", "--language="
_EMPTY: dict[str, object] = {"command_prefix": [], "override_worker_entrypoint": None, "java_jars": []}
_KEYS = {*_EMPTY, "env_vars", "py_executable"}


def worker_command(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]] | None:
    """Return a worker's command line and its variables; None if the runtime environment asks for more than variables.

    Args:
        arguments: those that Ray gives to its setup_worker.py.
    """
    contexts = [each.removeprefix(_CONTEXT) for each in arguments if each.startswith(_CONTEXT)]
    if f"{_LANGUAGE}PYTHON" not in arguments or len(contexts) != 1:
        return None
    context = json.loads(contexts[0])
    if set(context) != _KEYS or any(context[key] != value for key, value in _EMPTY.items()):
        return None
    variables = context["env_vars"]
    if any("$" in value for value in variables.values()):  # Ray inserts the values of other variables there
        return None
    rest = [each for each in arguments if not each.startswith((_CONTEXT, _LANGUAGE))]
    return [context["py_executable"], *rest], variables


def main() -> None:
    found = worker_command(sys.argv[1:])
    if found is None:
        package = find_spec("ray")
        assert package and package.origin
        own = Path(package.origin).parent / "_private" / "workers" / "setup_worker.py"
        os.execv(sys.executable, [sys.executable, str(own), *sys.argv[1:]])
    command, variables = found
    os.environ.update(variables)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
