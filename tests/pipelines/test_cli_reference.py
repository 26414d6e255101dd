"""The page of all keys is what the code reads; every key says what it means; recipes are listed and shown."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from infra.errors import UserError
from pipelines.cli_reference import PAGE, recipe_rows, to_markdown
from pipelines.config.field_docs import first_sentence
from pipelines.config.recipe import DEFAULTS, RECIPES, build_recipe, load_recipe, parse_overrides
from pipelines.config.synonyms import our_key, synonyms

ROOT = Path(__file__).parents[2]


def train(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "pipelines/train.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=200)


def test_the_page_is_the_code_s() -> None:
    assert to_markdown() == PAGE.read_text(), "run: python pipelines/train.py --keys > docs/recipe-keys.md"


def test_every_key_has_a_meaning_and_a_default() -> None:
    rows = {row.key: row for row in recipe_rows()}
    assert list(rows) == [key for key in DEFAULTS if "." in key]
    assert [key for key, row in rows.items() if not row.meaning] == []
    assert "| |" not in PAGE.read_text().replace("  ", " ")


@pytest.mark.parametrize("row", list(recipe_rows()), ids=lambda row: row.key)
def test_examples_are_values_of_their_keys(row) -> None:
    """Of the right type; a few need other keys beside them to be valid."""
    value = tomllib.loads(f"value = {row.example.strip('`')}")["value"]
    try:
        build_recipe({"data": {"uri": "none"}}, {row.key: value})
    except UserError as error:
        assert "input should be" not in str(error) and "unknown" not in str(error)


def test_a_word_of_another_framework_means_one_key() -> None:
    for key in DEFAULTS:
        for word in synonyms(key):
            assert our_key(word) == key, f"{word} is there twice"


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("optim.lr", "optim.lr_per_256?): Peak learning rate per 256 images of the global batch"),
        ("optim.learning_rate", "optim.lr_per_256?"),
        ("schedule.epochs", "schedule.length?): Length of the training, in schedule.unit"),
        ("model.pretrained", "model.init_from?): Weights to start from"),
        ("optim.batch_size", "optim.global_batch_size?): Images per step over all workers"),
        ("data.batch-size", "optim.global_batch_size?"),
        ("run.gpus", "run.num_workers?): Training processes"),
        ("data.num_workers", "run.num_workers?"),
        ("optim.wd", "optim.weight_decay?"),
        ("train.epochs", "schedule.length?"),
        ("optimizer.LR", "optim.lr_per_256?"),
        ("run.momentum", "optim.momentum?"),
        ("optim.smoothing", "optim.label_smoothing?"),
        ("data.size", "data.image_size?"),
        ("optim.warmup", "schedule.warmup?"),
        ("data.imageSize", "data.image_size?"),
    ],
)
def test_keys_of_other_frameworks_are_answered_with_ours(key: str, meant: str) -> None:
    with pytest.raises(UserError) as told:
        load_recipe("mnist5k", {key: 1})
    assert f"did you mean {meant}" in str(told.value)
    assert len(str(told.value)) < 250


def test_a_setting_without_a_section_is_answered_too() -> None:
    with pytest.raises(UserError, match=r"--set lr=0\.1: expected section\.key=value .*optim\.lr_per_256\?"):
        parse_overrides(["lr=0.1"])
    with pytest.raises(UserError, match=r"epochs = 3 is outside a section \(did you mean schedule\.length\?"):
        build_recipe({"epochs": 3, "data": {"uri": "none"}})


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("model.name", "ResNet50", r"one of 39 names .*, got 'ResNet50' \(did you mean resnet50\?\)"),
        ("model.name", "resnext50", r"did you mean resnext50_32x4d\?"),
        ("optim.optimizer", "Adam", r"should be 'sgd', .*, got 'Adam' \(did you mean adamw\?\)"),
        ("run.use_gpu", "True", r"boolean \(write true\), got 'True'"),
    ],
)
def test_values_are_answered_with_the_nearest(key: str, value: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        load_recipe("mnist5k", {key: value})


def test_a_network_is_no_recipe() -> None:
    with pytest.raises(UserError, match=r"no recipe resnet50: it is a network.*--set model\.name=resnet50"):
        load_recipe("resnet50")


def test_first_sentences() -> None:
    assert first_sentence("Peak rate per 256 images (linear scaling, Goyal et al. 2017).") == "Peak rate per 256 images"
    assert first_sentence("Share of 0.1; 0 = off.") == "Share of 0.1"


def test_train_lists_the_shipped_recipes() -> None:
    lines = train("--list").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == sorted(file.stem for file in RECIPES.glob("*.toml"))
    (demo,) = [line for line in lines if line.startswith("mnist5k ")]
    assert "resnet20" in demo and "data/mnist5k" in demo and "The embedded demo" in demo


def test_train_shows_a_recipe_that_it_takes(tmp_path: Path) -> None:
    shown = train("--show", "fashion_mnist", "--set", "schedule.length=2", folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    (tmp_path / "mine.toml").write_text(shown.stdout)
    expected = load_recipe("fashion_mnist", {"schedule.length": 2})
    recipe = load_recipe(tmp_path / "mine.toml")
    assert (recipe.run_name, recipe.schedule.length) == (expected.run_name, 2)
    assert recipe.data.uri == str(tmp_path / "data/fashion-mnist")
    assert len(shown.stdout.splitlines()) > len(DEFAULTS)
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.toml"]
