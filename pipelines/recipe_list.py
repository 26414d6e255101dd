"""The shipped recipes as `train.py --list` shows them."""

from __future__ import annotations

import itertools
import re

from pipelines.paths import shown
from pipelines.recipe import RECIPES, load_recipe, shipped_recipes


def listing() -> str:
    """Return a line per recipe: name, network, data set, and the first sentence of its file."""
    rows = [("recipe", "network", "data", "about")]
    for name in shipped_recipes():
        recipe = load_recipe(name)
        rows.append((name, recipe.model.name, shown(recipe.data.uri), _about(name)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _about(name: str) -> str:
    lines = (RECIPES / f"{name}.toml").read_text().splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    text = re.sub(r" \([^)]*\)", "", " ".join(line.lstrip("# ") for line in comment))
    return re.split(r"(?<=[^.])\.(?: |$)", text, maxsplit=1)[0]
