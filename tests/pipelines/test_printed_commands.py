"""Every next command that a verb prints, run as it stands by a shell, from photographs to their classes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.tracking.client import Tracking, connect
from tests.pipelines.conftest import picture

ROOT = Path(__file__).parents[2]
COLOURS = {"azure": (40, 90, 230), "lime": (60, 220, 40)}
PER_CLASS, SIDE = 60, 32


class User:
    """A shell in a folder with the checkout's pipelines, its Python on the path, and a home of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "home").mkdir()
        (folder / "pipelines").symlink_to(ROOT / "pipelines")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "MLFLOW_", "RAY_"))}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = {**kept, "HOME": str(folder / "home"), "PATH": path, "OMP_NUM_THREADS": "1"}

    def __call__(self, line: str) -> str:
        done = subprocess.run(
            line, shell=True, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        return done.stdout


def printed(text: str, name: str) -> str:
    """The rest of the only line that begins with this word."""
    (line,) = [line for line in text.splitlines() if line.startswith(name)]
    return line.removeprefix(name).strip()


def photographs(folder: Path, seed: int) -> None:
    for place, (name, colour) in enumerate(COLOURS.items()):
        (folder / name).mkdir(parents=True)
        for index in range(PER_CLASS):
            image = picture(colour, seed + 1000 * place + index).resize((SIDE, SIDE))
            image.save(folder / name / f"{index:03d}.jpg")


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_photographs_to_classes_by_printed_commands_alone(tmp_path: Path) -> None:
    """Folders have names that a shell, rich and TOML would each read as something else."""
    user = User(tmp_path)
    (tmp_path / "runs").mkdir()
    connect(Tracking(uri=f"sqlite:///{tmp_path}/runs/mlflow.db"))
    photographs(tmp_path / "my photos [old]", seed=0)
    photographs(tmp_path / "more", seed=500)
    told = user("python pipelines/prepare.py 'my photos [old]' 'data/2024 [raw]'")
    assert "class folders of my photos [old] (" in told
    trained = user(printed(told, "next:"))
    assert printed(trained, "registered").startswith("models:/2024-raw/1 (champion")
    name = printed(trained, "run folder").split()[0]
    assert name.startswith("runs/my_small_images-2024-raw-") and (tmp_path / name / "finished.json").exists()
    assert not list((tmp_path / "runs").glob("mnist5k*"))  # the demo's own
    assert set(COLOURS) <= set(user(printed(trained, "classify")).split())
    again = user(printed(told, "next:"))
    assert "is finished: nothing to do" in again and "at data/2024 [raw]" in again
    assert printed(again, "classify") == printed(trained, "classify")

    other = user(printed(user("python pipelines/prepare.py more data/more"), "next:"))  # in no run's way
    assert printed(other, "registered").startswith("models:/more/1 (champion")
    assert set(COLOURS) <= set(user(printed(other, "classify")).split())
