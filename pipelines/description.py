"""What a person reads of a run and of a registered version in MLflow: names, curves, descriptions (Markdown)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.curves import Curves
from infra.proportions import CONFIDENCE, Interval, wilson

if TYPE_CHECKING:
    from pipelines.data.manifest import Manifest
    from pipelines.evaluated import Evaluated
    from pipelines.outcome import Outcome
    from pipelines.recipe import Recipe

_TOP = 5  # of top5_accuracy: with as many classes it is always 1
_WAITING = "waiting_for_data/"  # sorts behind test, train and validation


def curves_of(recipe: Recipe, manifest: Manifest) -> Curves:
    """How the run's metrics are shown: accuracies and losses first, nothing that stays constant."""
    several = recipe.run.workers[1] > 1
    return Curves(
        renamed={"data/": _WAITING},
        from_first_value=(_WAITING, "train/data_wait_share"),
        left_out=(
            *(() if several else ("_share_max",)),
            *(() if len(manifest.class_names) > _TOP else ("/top5_accuracy",)),
        ),
    )


def data_name(uri: str) -> str:
    """The name that people know a data set by: that of its folder."""
    return uri.rstrip("/").rpartition("/")[2] or uri


def run_note(recipe: Recipe, manifest: Manifest, outcome: Outcome | None = None) -> str:
    """The description of a run: what, on which data, by which network; once it is over with what came of it."""
    found = ["Under way."]
    if outcome:
        found = ["\n".join(_result(outcome))]
    if outcome and outcome.model:
        state = "champion" if outcome.champion else "not champion"
        found.append(f"Registered as `{outcome.model}`, {state}: {outcome.reason}")
    return "\n\n".join([*found, _facts(recipe, manifest)])


def version_note(recipe: Recipe, manifest: Manifest, evaluated: Evaluated, split: str, step: int) -> str:
    """The description of a version, but for what the gate says of it."""
    found = (
        f"**{split} accuracy {evaluated.score.accuracy:.2%}** ({_bounds(evaluated.accuracy)}, "
        f"{evaluated.score.count:,} images)"
    )
    return f"{found}, checkpoint of step {step:,}\n\n{_facts(recipe, manifest)}"


def _facts(recipe: Recipe, manifest: Manifest) -> str:
    images = ", ".join(f"{count:,} {name}" for name, count in manifest.splits.items())
    start = f", from `{recipe.model.init_from}`" if recipe.model.init_from else ""
    size = recipe.data.image_size
    rows = {
        "Data": f"`{data_name(recipe.data.uri)}`: {images} images, {len(manifest.class_names):,} classes "
        f"(`{recipe.data.uri}`, digest `{manifest.name}`)",
        "Network": f"`{recipe.model.name}` at {size}x{size} pixels{start}",
        "Training": f"recipe `{recipe.name}`, {recipe.schedule.length:g} {recipe.schedule.unit}, "
        f"batches of {recipe.optim.global_batch_size:,}",
    }
    return "\n".join(f"- {name}: {text}" for name, text in rows.items())


def _result(outcome: Outcome) -> list[str]:
    """The accuracy, and which split chose the checkpoint that has it."""
    count = outcome.images
    interval = f" ({_bounds(wilson(round(outcome.accuracy * count), count))}, {count:,} images)" if count else ""
    best = f"of the checkpoint of step {outcome.best_step:,}" if outcome.best_step else ""
    lines = [f"**accuracy {outcome.accuracy:.2%}** {best}{interval}"]
    alone = (outcome.accuracy, count) == (outcome.chosen_accuracy, outcome.chosen_images)  # nothing else was scored
    if alone or outcome.chosen_on == "test":
        return [*lines, f"on the {outcome.chosen_on} split, which also chose the checkpoint"]
    chosen = f"{outcome.chosen_accuracy:.2%} on {outcome.chosen_images:,} images"
    return [*lines, f"on the test split, scored once; the {outcome.chosen_on} split chose the checkpoint ({chosen})"]


def _bounds(interval: Interval) -> str:
    return f"{interval} at {CONFIDENCE:.0%} confidence"
