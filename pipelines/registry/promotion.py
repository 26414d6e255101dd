"""Compare a registered version with the champion, image by image, and promote it if the gate says so.

Every version keeps its predictions for the split that it was registered with (`predictions.parquet`). They are hashed
like its other files, so a comparison on the same data set reads two small files. A champion that was registered with
another data set is scored on the challenger's data set.
"""

from __future__ import annotations

from typing import NamedTuple

from infra.registry.champion import MOST_RACES, ROLLED_BACK, move, record, restless, settle
from infra.registry.gate import Decision, Rule
from infra.registry.version import Version, read_file
from infra.registry.versions import fetch
from infra.tracking.client import Tracking
from pipelines.cli.next_command import command, database_option
from pipelines.config.crop import CropConfig
from pipelines.evaluation.model_source import VersionModel
from pipelines.evaluation.placement import HERE, InferencePlacement
from pipelines.evaluation.scoring import EvalData
from pipelines.evaluation.task import Answers, task_of

PREDICTIONS = "predictions.parquet"
SPLIT_TAG = "split"


def challenge(
    tracking: Tracking,
    version: Version,
    predictions: Answers,
    data: EvalData,
    *,
    rule: Rule,
    placement: InferencePlacement = HERE,
) -> Decision:
    """Let the gate decide on a version, store the decision in its tags, and move the alias if the gate says so.

    `predictions` are those of the version for the whole split of `data`. `placement` says where to score a champion
    that was registered with other data. If somebody else promotes a version meanwhile, the gate compares again, with
    the new champion. A move of the alias that a killed process has begun is finished first.

    Raises:
        UserError: MLflow is unreachable or refuses, or a version's files are not those that were registered.
    """
    for _ in range(MOST_RACES):
        standing = settle(tracking, version.name)
        present = standing.champion
        if present and present.number == version.number:
            return present.decision or Decision(promote=True, reason="it is the champion already")
        decision = _decide(tracking, version, present, _GateInputs(predictions, data, rule, placement))
        record(tracking, version, decision)
        if not decision.promote or move(tracking, version, standing, "gate"):
            return decision
    raise restless(version.name)


class _GateInputs(NamedTuple):
    predictions: Answers  # the challenger's
    data: EvalData
    rule: Rule
    placement: InferencePlacement


def _decide(tracking: Tracking, version: Version, present: Version | None, inputs: _GateInputs) -> Decision:
    predictions, data, rule, placement = inputs
    if when := version.tags.get(ROLLED_BACK):
        promote_command = command(
            "register", "--promote", version.name, str(version.number), *database_option(tracking)
        )
        return Decision(promote=False, reason=f"it was rolled back at {when}; to promote it anyway: {promote_command}")
    if present is None:
        return Decision(promote=True, reason="there is no champion yet", margin=rule.margin)
    champion_predictions = _recorded(tracking, present, data) or _scored_anew(tracking, present, data, placement)
    if champion_predictions is None:
        reason = f"the champion {present.uri} has other classes: register under another name"
        return Decision(promote=False, reason=reason, champion=present.uri)
    task = task_of(multi_label=data.manifest.multi_label)
    return task.decide(predictions, champion_predictions, present.uri, rule, data)


def _recorded(tracking: Tracking, version: Version, data: EvalData) -> Answers | None:
    """Return a version's stored predictions if they are for this split of this data set, else None."""
    if (version.tags.get("data_digest"), version.tags.get(SPLIT_TAG)) != (data.manifest.digest, data.split):
        return None
    content = read_file(tracking, version, PREDICTIONS)
    return task_of(multi_label=data.manifest.multi_label).read(content) if content else None


def _scored_anew(tracking: Tracking, version: Version, data: EvalData, placement: InferencePlacement) -> Answers | None:
    """Return a version's predictions for data that it was not registered with; None if its classes differ."""
    files = fetch(tracking, version.uri)
    if tuple(files.metadata["class_names"]) != data.manifest.class_names:
        return None
    crop = CropConfig.of_shown(files.metadata)
    shown = EvalData(store=data.store, manifest=data.manifest, crop=crop, split=data.split)
    return (
        task_of(multi_label=data.manifest.multi_label).evaluate(placement, VersionModel(files=files), shown).predictions
    )
