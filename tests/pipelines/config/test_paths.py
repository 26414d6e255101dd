"""Paths of recipes: absolute where a command reads them, in a Ray job in the cluster's storage, short in messages."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from infra.cluster import in_job
from infra.errors import UserError
from infra.storage import LocalStore
from pipelines import cli, evaluate, predict, prepare, register, serve
from pipelines.config import paths
from pipelines.config.recipe import build_recipe, load_recipe
from pipelines.data.prepare.sources import MNIST5K
from pipelines.data.shards.manifest import load_manifest
from pipelines.reproduction.plan import plan_runs
from pipelines.reproduction.spec import load_suite
from pipelines.tuning.space import load_space
from pipelines.tuning.trial_recipes import StudyPlan

RECIPE = """
[data]
uri = "data/photos"
source = "photos"
cache_dir = "cache"
[model]
init_from = "weights/start.safetensors"
new_head = true
"""
SPACE = """
title = "Starts"
recipe = "mine.toml"
[set.model]
num_classes = 5
[space]
"model.init_from" = {choice = ["weights/a.safetensors", "s3://bucket/b.safetensors"]}
[budget]
trials = 2
reports = 100
"""
KEYS = ("data.uri", "data.source", "data.cache_dir", "model.init_from", "run.home")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a recipe and a space of relative paths."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "mine.toml").write_text(RECIPE)
    (folder / "starts.toml").write_text(SPACE)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("RESNET_RAY_STORAGE", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    return folder


def paths_of(flat: dict[str, object]) -> list[object]:
    return [flat[key] for key in KEYS]


def test_a_recipe_s_paths_are_absolute_once_it_is_read(work: Path, tmp_path: Path) -> None:
    expected = [str(work / name) for name in ("data/photos", "photos", "cache", "weights/start.safetensors", "runs")]
    assert paths_of(load_recipe("mine.toml").flat()) == expected
    given = {"data.uri": "~/photos", "run.home": "../elsewhere/", "data.source": "file:///photos"}
    flat = load_recipe("mine.toml", {**given, "model.init_from": "s3://b/w.safetensors"}).flat()
    assert [flat["data.uri"], flat["run.home"]] == [str(tmp_path / "home/photos"), str(tmp_path / "elsewhere")]
    assert [flat["data.source"], flat["model.init_from"]] == ["file:///photos", "s3://b/w.safetensors"]


def test_the_embedded_images_are_no_folder(work: Path) -> None:
    assert load_recipe("mnist5k").data.source == MNIST5K
    assert load_recipe("mnist5k", {"data.source": f"./{MNIST5K}"}).data.source == str(work / MNIST5K)


IN_A_JOB: list[tuple[ModuleType, str, dict[str, Any]]] = [
    (prepare, "images data/photos", {"source": "images", "dest": "STORAGE/data/photos"}),
    (prepare, f"{MNIST5K} digits", {"source": MNIST5K, "dest": "STORAGE/digits"}),
    (prepare, "elsewhere.csv s3://b/photos", {"source": "STORAGE/elsewhere.csv", "dest": "s3://b/photos"}),
    (predict, "images new --out a", {"images": ["images", "STORAGE/new"], "out": "STORAGE/a", "home": "DISK/runs"}),
    (evaluate, "runs/a models:/b@champion", {"targets": ["STORAGE/runs/a", "models:/b@champion"], "home": "DISK/runs"}),
    (evaluate, "/a --data d --json j", {"targets": ["/a"], "data": "STORAGE/d", "json": "DISK/j"}),
    (evaluate, "/a --predictions p --plots c", {"predictions": "DISK/p", "plots": "DISK/c"}),
    (register, "runs/a --data d", {"run": "STORAGE/runs/a", "data": "STORAGE/d", "home": "DISK/runs"}),
    (serve, "--home mine", {"home": "DISK/mine"}),
]


@pytest.mark.parametrize(("verb", "arguments", "places"), IN_A_JOB)
@pytest.mark.parametrize("storage", ["", "s3://bucket"])
def test_each_path_of_a_command_begins_where_a_job_keeps_its_files(
    work: Path, monkeypatch: pytest.MonkeyPatch, verb: Any, arguments: str, places: dict[str, Any], storage: str
) -> None:
    """Files that were submitted are read where they are; nothing is written there."""
    (work / "images").mkdir()

    def parsed() -> dict[str, Any]:
        found = vars(verb._parser().parse_args(arguments.split()))
        return {name: found[name] for name in places}

    def expected(storage: str, disk: str) -> dict[str, Any]:
        text = json.dumps(places).replace("STORAGE/", storage).replace("DISK/", disk)
        return json.loads(text)

    assert parsed() == expected("", "")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("RESNET_RAY_STORAGE", storage)
    disk = f"{work.parent}/home/resnet-ray"
    assert parsed() == expected(f"{storage or disk}/", f"{disk}/")


def test_a_run_s_name_does_not_depend_on_the_folder(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names from before paths were made absolute: finished runs are found again."""
    recipe = load_recipe("mine.toml")
    assert load_recipe("mnist5k").run_name == "mnist5k-710ee67b"
    assert load_recipe("finetune_resnet50").run_name == "finetune_resnet50-345db6e3"
    assert recipe.trajectory()["model.init_from"] == "weights/start.safetensors"
    again = build_recipe({}, recipe.flat())
    monkeypatch.chdir(tmp_path)
    assert again.run_name == load_recipe(work / "mine.toml").run_name == recipe.run_name
    other = load_recipe(work / "mine.toml", {"model.init_from": "weights/other.safetensors"})
    assert other.run_name != recipe.run_name


def test_a_job_s_paths_lie_in_the_cluster_s_storage(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert in_job()
    name, start = load_recipe("mine.toml").run_name, "weights/start.safetensors"
    kept = tmp_path / "home/resnet-ray"
    flat = load_recipe("mine.toml", {"run.home": "/shared/runs"}).flat()
    assert paths_of(flat) == [str(kept / path) for path in ("data/photos", "photos", "cache", start)] + ["/shared/runs"]
    monkeypatch.setenv("RESNET_RAY_STORAGE", "s3://bucket/")
    stored = load_recipe("mine.toml")
    inside = [f"s3://bucket/{path}" for path in ("data/photos", "photos", start, "runs")]
    assert paths_of(stored.flat()) == [*inside[:2], str(kept / "cache"), *inside[2:]]
    assert stored.run_name == name
    assert cli.local_home(stored.run.home) == str(kept / "runs")


def test_trials_and_runs_of_suites_see_the_command_s_folder(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Tune has each trial work in a folder of its own."""
    plan = StudyPlan(load_space("starts.toml"), {})
    plan.check()
    (run, *_) = plan_runs(load_suite("degradation_fashion"), {})
    monkeypatch.chdir(tmp_path)
    for start, found in (("weights/a.safetensors", str(work / "weights/a.safetensors")), ("s3://b/b", "s3://b/b")):
        recipe = plan.named({"model.init_from": start}, "starts-000")
        assert (recipe.data.uri, recipe.model.init_from) == (str(work / "data/photos"), found)
        assert (recipe.run.home, recipe.trajectory()["model.init_from"]) == (str(work / "runs"), start)
    assert run.recipe.run.home == str(work / "runs")


def test_messages_name_paths_below_the_current_folder_in_short(work: Path) -> None:
    assert paths.shown(f"{work}/runs/demo") == "runs/demo"
    assert paths.shown("/elsewhere/runs") == "/elsewhere/runs"
    assert paths.shown("s3://bucket/runs") == "s3://bucket/runs"
    assert paths.shown(f"{work}-2/runs") == f"{work}-2/runs"
    assert cli.local_home("s3://bucket/runs") == str(work / "runs")


def test_relative_folders_of_a_job_are_explained_where_they_hold_no_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    store = LocalStore(uri=str(tmp_path / "resnet-ray" / "data" / "photos"))
    said = "relative paths mean ~/resnet-ray/… on the node: give an absolute path or s3://…"
    with pytest.raises(UserError, match=r"run prepare\.py$"):
        load_manifest(store)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UserError, match=f"no manifest.json in {store.uri}: .* temporary copy of this folder; {said}"):
        load_manifest(store)
    with pytest.raises(UserError, match=r"run prepare\.py$"):
        load_manifest(LocalStore(uri=str(tmp_path / "elsewhere")))
