"""Printed next commands: they run as they stand, say what they do, and belong to the data set at hand."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.storage import LocalStore
from infra.tracking.client import resolve_tracking
from pipelines.cli.next_command import command, database_option, setting, ui_command
from pipelines.config.recipe import build_recipe, data_name, load_recipe, parse_overrides
from pipelines.data.prepare.sources import open_source
from pipelines.data.shards.manifest import MANIFEST, load_manifest
from pipelines.evaluation.task import task_of
from pipelines.training.recipe_for_data import check_own_data, train_command
from tests.pipelines.conftest import Coloured, picture, written
from tests.pipelines.data import built

ROOT = Path(__file__).parents[3]
ODD_FOLDERS = [
    "photos",
    "my photos",
    "photos [old]",
    "2024",
    "[1]",
    "1e5",
    "true",
    '"x"',
    "it's",
    "a#b",
    "x=y",
    "$HOME",
    "ü:cat:",
]


def shell(line: str, folder: Path, environment: dict[str, str]) -> str:
    """What a line prints that a user pastes."""
    done = subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (line, done.stdout, done.stderr)
    return done.stdout


def in_checkout(folder: Path) -> Path:
    """A folder that stands for a checkout: as links, what a user's has."""
    folder.mkdir(exist_ok=True)
    for name in ("pipelines", "Makefile"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.mark.parametrize("uri", ODD_FOLDERS)
def test_a_setting_comes_back_through_the_shell_as_it_was(uri: str) -> None:
    line = shlex.join(["x", *setting("data.uri", uri)])
    echoed = subprocess.run(
        ["sh", "-c", f'x() {{ printf "%s\\n" "$@"; }}; {line}'], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert parse_overrides(echoed[1:]) == {"data.uri": uri}


@pytest.mark.parametrize("uri", ODD_FOLDERS)
def test_a_data_sets_name_is_one_for_folders_models_and_settings(uri: str) -> None:
    name = data_name(f"/data/{uri}/")
    recipe = build_recipe({"data": {"uri": "d"}}, {"run.register_as": name, "run.name": name})
    assert name and not set(name) & set("/:@ []\"'")
    assert recipe.run.register_as == name


def test_a_command_names_verb_and_interpreter_such_that_they_are_found(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """In the checkout by relative paths, elsewhere by absolute ones; `python` only where it is this one."""
    monkeypatch.chdir(in_checkout(tmp_path / "checkout"))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    assert command("predict", "a b.jpg") == "python pipelines/predict.py 'a b.jpg'"
    assert ui_command("runs") == "make ui"
    assert ui_command("my runs") == "make ui 'RUNS=my runs'"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command("predict") == shlex.join([sys.executable, str(ROOT / "pipelines" / "predict.py")])
    assert ui_command("runs") == shlex.join(["make", "-C", str(ROOT), "ui", f"RUNS={tmp_path}/runs"])


def test_the_database_is_named_where_other_verbs_would_look_elsewhere(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert database_option(resolve_tracking("runs")) == []
    assert database_option(resolve_tracking("my runs")) == ["--home", "my runs"]
    assert database_option(resolve_tracking("/elsewhere")) == ["--home", "/elsewhere"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert database_option(resolve_tracking("my runs")) == []


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("home", ["runs", "my runs"])
def test_make_ui_opens_the_database_of_the_runs(tmp_path: Path, home: str) -> None:
    """With a server that prints its arguments, since a real one would not end."""
    folder = in_checkout(tmp_path / "my checkout")
    for name in (".venv/.installed", "requirements.lock", "my runs/mlflow.db", "runs/mlflow.db"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    os.utime(folder / "requirements.lock", (0, 0))
    (folder / ".venv" / "mlflow").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (folder / ".venv" / "mlflow").chmod(0o755)
    code = f"from pipelines.cli.next_command import ui_command; print(ui_command({home!r}))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = shell(shlex.join([sys.executable, "-c", code]), folder, environment).strip()
    words = shell(f"{line} BIN=.venv", folder, environment).splitlines()
    assert words[words.index("--backend-store-uri") + 1] == f"sqlite:///{folder / home}/mlflow.db"


def dataset(root: Path, source: str) -> tuple[LocalStore, str]:
    store = LocalStore(uri=str(root))
    store.write(MANIFEST, written(open_source(source), store).to_json().encode())
    return store, str(root)


def small_folders(root: Path, side: int) -> str:
    for place, name in enumerate(("azure", "lime")):
        (root / name).mkdir(parents=True)
        for index in range(10):
            picture((40, 90 * place, 200), index).resize((side, side)).save(root / name / f"{index}.jpg")
    return str(root)


@pytest.mark.parametrize(
    ("side", "told"),
    [
        (96, "my_images --set data.uri={uri} --set run.register_as=data"),
        (32, "my_small_images --set data.uri={uri} --set run.register_as=data"),
        (
            28,
            "my_small_images --set data.uri={uri} --set run.register_as=data"
            " --set data.image_size=28 --set data.eval_resize=28",
        ),
    ],
)
def test_prepare_names_a_recipe_that_fits_the_pictures(tmp_path: Path, side: int, told: str) -> None:
    store, uri = dataset(tmp_path / "data", small_folders(tmp_path / "images", side))
    assert train_command(store, load_manifest(store), uri).endswith(f"train.py {told.format(uri=uri)}")


def test_prepare_names_the_recipe_that_belongs_to_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store, uri = dataset(tmp_path / "data" / "mnist5k", "mnist5k")
    assert train_command(store, load_manifest(store), "data/mnist5k").endswith("train.py mnist5k")
    assert train_command(store, load_manifest(store), "digits").endswith("train.py mnist5k --set data.uri=digits")
    check_own_data(load_recipe("mnist5k", {"data.uri": uri}), store, load_manifest(store))


def test_prepare_names_the_loss_that_a_multi_label_data_set_needs(colours: Coloured) -> None:
    manifest = replace(colours.manifest, multi_label=True)
    printed = train_command(colours.store, manifest, "data/x").split(" --set ")
    assert "optim.loss=bce" in printed
    name, settings = printed[0].split()[-1], parse_overrides(printed[1:])
    assert task_of(multi_label=True).settings(load_recipe(name, settings))["model.multi_label"]


def test_the_demos_recipe_refuses_a_foreign_data_set_and_names_one_for_it(colours: Coloured) -> None:
    recipe = load_recipe("mnist5k", {"data.uri": colours.store.uri})
    with pytest.raises(UserError, match=r"recipe mnist5k is for the data set that is prepared from mnist5k.* my_\w+ "):
        check_own_data(recipe, colours.store, colours.manifest)


def test_each_data_set_has_its_own_runs_and_the_recipes_own_keeps_its_name() -> None:
    names = [
        load_recipe("my_images", {"data.uri": uri}).run_name for uri in ("data/photos", "data/birds", "s3://b/cats")
    ]
    assert (
        names[0]
        == load_recipe("my_images").run_name
        == load_recipe("my_images", {"data.uri": "s3://b/photos"}).run_name
    )
    assert [name.rpartition("-")[0] for name in names] == ["my_images", "my_images-birds", "my_images-cats"]
    demo = load_recipe("mnist5k")
    assert load_recipe("mnist5k", {"data.uri": "/elsewhere/digits"}).run_name == demo.run_name == "mnist5k-710ee67b"


def test_grey_arrays_are_not_flipped_since_most_are_digits_or_letters(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    for name, content in built.idx_files().items():
        (tmp_path / "letters" / name).write_bytes(content)
    store, uri = dataset(tmp_path / "data", str(tmp_path / "letters"))
    assert train_command(store, load_manifest(store), uri).endswith("--set augment.flip=false")
