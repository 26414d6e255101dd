"""What `ray job submit --working-dir .` uploads, by Ray's own reading of our .rayignore and .gitignore."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LIMIT_BYTES = 10 << 20  # a tenth of what Ray's job server takes


def uploaded(folder: Path) -> set[str]:
    """The files of a folder that Ray would upload as a job's working directory."""
    from ray._private.runtime_env.packaging import _dir_travel

    found: list[Path] = []
    _dir_travel(folder, [], found.append, include_gitignore=True)
    return {path.relative_to(folder).as_posix() for path in found if path.is_file()}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files under version control, as a fresh clone has them."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=False).stdout
    if not listed:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_a_job_gets_the_code_and_is_small(checkout: Path) -> None:
    names = uploaded(checkout)
    needed = [*checkout.glob("pipelines/**/*.*"), *checkout.glob("infra/**/*.*"), *checkout.glob("resnet_core/**/*.*")]
    assert {path.relative_to(checkout).as_posix() for path in needed if path.is_file()} <= names
    assert sum((checkout / name).stat().st_size for name in names) < LIMIT_BYTES


@pytest.mark.parametrize(
    "name",
    [
        "weights/resnet50.safetensors",
        "resnet50-11ad3fa6.pth",
        "out/predictions-000000.parquet",
        "plots/confusion.png",
        "photos/cats/IMG_0001.JPG",
        "photos/cats/IMG_0002.jpeg",
        "downloads/ILSVRC2012_img_val.tar",
        "downloads/photos.zip",
        "mlruns/mlflow.db",
        "mlflow.db",
        "runs/demo/run.json",
        "data/photos/train-00000.parquet",
        ".venv/lib/libtorch.so",
    ],
)
def test_data_weights_and_results_stay_at_home(checkout: Path, name: str) -> None:
    before = uploaded(checkout)
    (checkout / name).parent.mkdir(parents=True, exist_ok=True)
    (checkout / name).write_bytes(b"")
    assert uploaded(checkout) == before


@pytest.mark.parametrize("name", ["my_recipe.toml", "configs/photos.toml", "my_space.toml", "own/augment.py"])
def test_a_users_own_recipes_and_code_go_along(checkout: Path, name: str) -> None:
    (checkout / name).parent.mkdir(parents=True, exist_ok=True)
    (checkout / name).write_text("")
    assert name in uploaded(checkout)
