"""Commands that a verb prints for its user to paste: they run as they stand, in the folder that the verb ran in.

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

from infra.mlflow_address import sqlite_file
from infra.mlflow_client import Tracking, resolve_tracking
from pipelines import cli
from pipelines.recipe import parse_overrides

_ROOT = Path(__file__).resolve().parents[1]


def command(verb: str, *arguments: str) -> str:
    """The shell command that runs a verb of this checkout with these arguments."""
    return shlex.join([_python(), _file(f"pipelines/{verb}.py"), *arguments])


def setting(key: str, value: str) -> list[str]:
    """The arguments that give a recipe's key this text, quoted where TOML would read a number or a list."""
    plain = f"{key}={value}"
    return ["--set", plain if parse_overrides([plain])[key] == value else f"{key}={json.dumps(value)}"]


def home_option(run_home: str) -> list[str]:
    """The arguments that lead other verbs to the MLflow database of runs in `run_home`."""
    return database_option(resolve_tracking(cli.local_home(run_home)))


def database_option(tracking: Tracking) -> list[str]:
    """The arguments that lead other verbs to this MLflow; none where they find it by themselves."""
    if tracking.uri == resolve_tracking("runs").uri:
        return []
    file = sqlite_file(tracking.uri)
    return ["--home", _shorter(str(file.parent))] if file else []


def ui_command(run_home: str) -> str:
    """The shell command that shows the MLflow database of runs in `run_home`."""
    home, makefile = Path(cli.local_home(run_home)).absolute(), Path("Makefile")
    if makefile.exists() and makefile.samefile(_ROOT / "Makefile"):
        return shlex.join(["make", "ui", *([] if home == Path("runs").absolute() else [f"RUNS={_shorter(str(home))}"])])
    return shlex.join(["make", "-C", str(_ROOT), "ui", f"RUNS={home}"])


def _python() -> str:
    """This interpreter: by its name where that finds it, else by its path."""
    found = shutil.which("python")
    if found and os.path.abspath(found) == sys.executable:
        return "python"
    return _shorter(sys.executable)


def _file(path: str) -> str:
    """A file of this checkout, which may be the present folder under another name."""
    file = _ROOT / path
    return path if Path(path).exists() and Path(path).samefile(file) else _shorter(str(file))


def _shorter(path: str) -> str:
    """A path below the present folder from there; any other as it is."""
    here = os.getcwd()
    return os.path.relpath(path, here) if path.startswith(f"{here}/") else path
