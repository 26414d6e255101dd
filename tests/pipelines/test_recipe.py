"""Recipes: every shipped one loads, overrides pass one door, the resolved form is itself a recipe."""

from __future__ import annotations

import tomllib

import pytest

from infra.errors import UserError
from pipelines.data.cache import CacheConfig
from pipelines.recipe import RECIPES, build_recipe, load_recipe, parse_overrides


@pytest.mark.parametrize("stem", sorted(path.stem for path in RECIPES.glob("*.toml")))
def test_shipped_recipe_loads_and_its_resolved_form_is_the_same_recipe(stem):
    recipe = load_recipe(stem)
    again = build_recipe(tomllib.loads(recipe.to_toml()))
    assert again == recipe and again.digest == recipe.digest


def test_overrides_reach_their_section_and_change_the_run():
    plain, other = load_recipe("mnist5k"), load_recipe("mnist5k", {"optim.lr_per_256": 0.2, "schedule.length": 3})
    assert other.optim.lr_per_256 == 0.2 and other.schedule.length == 3.0
    assert other.run_name != plain.run_name


def test_where_it_runs_does_not_change_the_run():
    plain = load_recipe("mnist5k")
    moved = load_recipe("mnist5k", {"run.num_workers": 1, "run.home": "s3://b/runs", "data.uri": "s3://b/mnist"})
    assert moved.run_name == plain.run_name


def test_settings_are_toml_and_bare_words_are_strings():
    settings = ["optim.momentum=0.8", "schedule.milestones=[1, 2]", "data.uri=s3://b/p", "augment.flip=true"]
    assert parse_overrides(settings) == {
        "optim.momentum": 0.8,
        "schedule.milestones": [1, 2],
        "data.uri": "s3://b/p",
        "augment.flip": True,
    }


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("optim.momentun", 0.9, "did you mean optim.momentum?"),
        ("optin.momentum", 0.9, "did you mean optim?"),
        ("optim.momentum", "0.9", "optim.momentum: input should be a valid number, got '0.9'"),
        ("run.num_workers", 1.5, "run.num_workers: input should be a valid integer"),
        ("optim.momentum", 2.0, r"optim.momentum must be in \[0, 1\)"),
        ("run.keep_best", 0, "run.keep_best must be at least 1"),
        ("data.max_bad_samples", -1, "data.max_bad_samples must be at least 0, got -1"),
        ("data.cache_gb", 0.0, "data.cache_gb must be above 0, got 0.0"),
        ("model.name", "resnet21", "model.name: input should be 'resnet18'"),
    ],
)
def test_a_key_that_cannot_be_is_refused_by_name(key, value, told):
    with pytest.raises(UserError, match=told):
        load_recipe("mnist5k", {key: value})


def test_what_changes_nothing_in_the_weights_is_no_part_of_the_digest():
    plain = load_recipe("mnist5k")
    kept = {"data.max_bad_samples": 3, "data.cache_dir": "/local/cache", "data.cache_gb": 1.5}
    recipe = load_recipe("mnist5k", kept)
    assert (recipe.digest, recipe.run_name) == (plain.digest, plain.run_name)
    assert (plain.data.cache, recipe.data.cache) == (None, CacheConfig(folder="/local/cache", cap_bytes=1_500_000_000))


def test_an_unknown_recipe_says_which_there_are():
    with pytest.raises(UserError, match=r"no recipe mnist5 \(did you mean mnist5k\?\)"):
        load_recipe("mnist5")


def test_a_setting_without_a_value_is_refused():
    with pytest.raises(UserError, match=r"--set momentum: expected section\.key=value"):
        parse_overrides(["momentum"])
