"""Recipes: every shipped one loads, overrides pass one door, the resolved form is itself a recipe."""

from __future__ import annotations

import tomllib

import pytest

from infra.errors import UserError
from pipelines.config.recipe import RECIPES, build_recipe, load_recipe, parse_overrides
from pipelines.config.sections import CacheConfig


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
        ("model.name", "resnet21", "model.name: must be one of 39 names .*, got .resnet21. .did you mean resnet20?."),
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


ONE_VALUE = "BatchNorm needs two values per channel, and a worker would pass one image at a time"


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"optim.global_batch_size": 2, "run.num_workers": 2}, "raise optim.global_batch_size to 4 or more"),
        ({"optim.global_batch_size": 1, "run.num_workers": 0}, "raise optim.global_batch_size to 2 or more"),
        ({"optim.global_batch_size": 3, "run.num_workers": [1, 2]}, "raise optim.global_batch_size to 4 or more"),
        ({"optim.global_batch_size": 4, "compute.microbatch_size": 1}, "raise compute.microbatch_size to 2 or more"),
        ({"optim.global_batch_size": 3, "compute.microbatch_size": 2}, "raise compute.microbatch_size to 2 or more"),
        ({"schedule.length": 0.1, "schedule.warmup": 0}, "raise optim.global_batch_size to 2 or more"),
    ],
    ids=["an image for each worker", "an image", "the smaller share", "microbatches of one", "the odd one", "one step"],
)
def test_one_image_with_one_position_has_no_variance(settings, remedy):
    small = {"data.uri": "data", "model.name": "resnet18", "data.image_size": 32, "data.eval_resize": 32}
    recipe = build_recipe({}, {**small, "schedule.length": 2, **settings})
    with pytest.raises(UserError, match=f"{ONE_VALUE}.* in resnet18 are 1 x 1 at 32 pixels: {remedy}, .* above 32"):
        recipe.check_batch_norm(10)
    larger = {**recipe.flat(), "data.image_size": 33, "data.eval_resize": 33}
    build_recipe({}, larger).check_batch_norm(10)


def test_a_phase_of_small_images_is_looked_at_too():
    phases = {"curriculum.until": [1], "curriculum.image_size": [32, 64], "data.image_size": 64, "data.eval_resize": 64}
    settings = {"data.uri": "data", "model.name": "resnet18", "optim.global_batch_size": 1, "schedule.length": 2}
    with pytest.raises(UserError, match="1 x 1 at 32 pixels"):
        build_recipe({}, {**settings, **phases}).check_batch_norm(10)


def test_exact_statistics_and_early_stopping_exclude_each_other() -> None:
    recipe = load_recipe("my_images", {"optim.exact_bn_images": 64, "schedule.early_stopping_patience": 2})
    with pytest.raises(UserError, match=r"optim\.exact_bn_images must be 0 with schedule\.early_stopping_patience"):
        recipe.check_early_stopping()
