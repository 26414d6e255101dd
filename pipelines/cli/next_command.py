"""Commands that a verb prints for its user to paste. They run unchanged in the folder in which the verb ran.

command("predict", "my photo.jpg", "--model", "models:/photos@champion")
setting("data.uri", "data/photos")      # ["--set", "data.uri=data/photos"]
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

from infra.tracking.address import sqlite_file
from infra.tracking.client import Tracking, resolve_tracking
from pipelines import cli
from pipelines.config.recipe import parse_overrides

_ROOT = Path(__file__).resolve().parents[2]


def command(verb: str, *arguments: str) -> str:
    """Return the shell command that runs a verb of this checkout with these arguments."""
    return shlex.join([_python(), _file(f"pipelines/{verb}.py"), *arguments])


def setting(key: str, value: str) -> list[str]:
    """Return the arguments that set a recipe's key to this text, quoted if TOML would read it as another type."""
    plain = f"{key}={value}"
    return ["--set", plain if parse_overrides([plain])[key] == value else f"{key}={json.dumps(value)}"]


def home_option(run_home: str) -> list[str]:
    """Return the arguments with which other verbs find the MLflow database of the runs in `run_home`."""
    return database_option(resolve_tracking(cli.local_home(run_home)))


def database_option(tracking: Tracking) -> list[str]:
    """Return the arguments with which other verbs find this MLflow; [] if they find it without arguments."""
    if tracking.uri == resolve_tracking("runs").uri:
        return []
    file = sqlite_file(tracking.uri)
    return ["--home", _shorter(str(file.parent))] if file else []


def ui_command(run_home: str) -> str:
    """Return the shell command that shows the MLflow database of the runs in `run_home`."""
    home, makefile = Path(cli.local_home(run_home)).absolute(), Path("Makefile")
    if makefile.exists() and makefile.samefile(_ROOT / "Makefile"):
        return shlex.join(["make", "ui", *([] if home == Path("runs").absolute() else [f"RUNS={_shorter(str(home))}"])])
    return shlex.join(["make", "-C", str(_ROOT), "ui", f"RUNS={home}"])


def _python() -> str:
    """Return `python` if the shell finds this interpreter by that name, else the interpreter's path."""
    found = shutil.which("python")
    if found and os.path.abspath(found) == sys.executable:
        return "python"
    return _shorter(sys.executable)


def _file(path: str) -> str:
    """Return the path of a file of this checkout, which may be the current folder under another name."""
    file = _ROOT / path
    return path if Path(path).exists() and Path(path).samefile(file) else _shorter(str(file))


def _shorter(path: str) -> str:
    """Return a path below the current folder as a relative path, any other unchanged."""
    here = os.getcwd()
    return os.path.relpath(path, here) if path.startswith(f"{here}/") else path
