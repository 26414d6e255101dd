"""Which recipe goes with which data set: the one that prepare names, and those that take their own data only."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from infra.errors import UserError
from pipelines.data.manifest import Manifest
from pipelines.data.sources.mnist5k import MNIST5K, NAME
from pipelines.next_command import command, setting
from pipelines.paths import shown
from pipelines.recipe import RECIPES, Recipe, data_name, load_recipe

if TYPE_CHECKING:
    from infra.storage import Store

PHOTOGRAPHS, SMALL_IMAGES = "my_images", "my_small_images"
_SMALL_PX = 40
_LOOKED_AT = 16


def train_command(store: Store, manifest: Manifest, uri: str) -> str:
    """The command that trains a shipped recipe that fits the data set at `uri`."""
    own = _recipe_of(manifest)
    if own:
        moved = [] if _same_place(own.data.uri, uri) else setting("data.uri", uri)
        return command("train", own.name, *moved)
    named = [*setting("data.uri", uri), *setting("run.register_as", data_name(uri))]
    sides = shorter_sides(store, manifest)
    if not sides or max(sides) > _SMALL_PX:
        return command("train", PHOTOGRAPHS, *named)
    return command("train", SMALL_IMAGES, *named, *_small_settings(manifest, max(sides)))


def check_own_data(recipe: Recipe, store: Store, manifest: Manifest) -> None:
    """UserError where the recipe says what its data set is prepared from, and this one was prepared from another."""
    if recipe.data.source and not _made_from(manifest, recipe.data.source):
        raise UserError(
            f"recipe {recipe.name} is for the data set that is prepared from {recipe.data.source}, and "
            f"{shown(recipe.data.uri)} holds another ({manifest.source}): train that with "
            f"`{train_command(store, manifest, shown(recipe.data.uri))}`"
        )


def shorter_sides(store: Store, manifest: Manifest, split: str = "train") -> Sequence[int]:
    """Pixels of the shorter sides of some of the split's stored images; none where these cannot be read."""
    from PIL import Image, UnidentifiedImageError

    from pipelines.data.read import read_rows

    if manifest.stored.form == "raw":
        return [manifest.stored.size]
    shards = manifest.shards_of(split) or list(manifest.shards)
    sides = []
    for image in read_rows(store, shards[0], [0])["image"][:_LOOKED_AT] if shards else ():
        try:
            with Image.open(io.BytesIO(image.as_py())) as picture:
                sides.append(min(picture.size))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError):
            continue
    return sides


def _small_settings(manifest: Manifest, side: int) -> list[str]:
    """What small images of this side need beside the recipe; grey ones are digits or letters more often than not."""
    wanted = {} if side == load_recipe(SMALL_IMAGES).data.image_size else {"image_size": side, "eval_resize": side}
    sizes = [part for key, value in wanted.items() for part in ("--set", f"data.{key}={value}")]
    return [*sizes, *(["--set", "augment.flip=false"] if manifest.stored.channels == 1 else [])]


def _recipe_of(manifest: Manifest) -> Recipe | None:
    """The shipped recipe that this data set belongs to."""
    for file in sorted(RECIPES.glob("*.toml")):
        recipe = load_recipe(file.stem)
        if recipe.data.source and _made_from(manifest, recipe.data.source):
            return recipe
    return None


def _made_from(manifest: Manifest, source: str) -> bool:
    """Whether the manifest's description of its source is one of `source`: it holds the folder's name."""
    if source == MNIST5K:
        return manifest.source.startswith(NAME)
    return re.search(rf"(^|\W){re.escape(data_name(source))}($|\W)", manifest.source) is not None


def _same_place(uri: str, other: str) -> bool:
    return os.path.abspath(uri) == os.path.abspath(other)
