"""A registered version before the gate: compared with the champion image by image, and promoted if the gate says so.

Every version keeps its answers to the split that it was registered with (`predictions.parquet`, hashed like the rest of
its files), so that a comparison on the same data set reads two small files. A champion that was registered with another
data set is scored on the challenger's.
"""

from __future__ import annotations

from typing import NamedTuple

from infra.champion import MOST_RACES, ROLLED_BACK, move, record, restless, settle
from infra.gate import Decision, decide
from infra.mlflow_client import Tracking
from infra.registry import fetch
from infra.version import Version, read_file
from pipelines.comparison import Comparison
from pipelines.data.decode import CropConfig
from pipelines.data.predictions import Predictions
from pipelines.evaluated import evaluate
from pipelines.inference import HERE, Choice
from pipelines.model_source import VersionModel
from pipelines.next_command import command, database_option
from pipelines.scoring import EvalData

PREDICTIONS = "predictions.parquet"
SPLIT_TAG = "split"


def challenge(
    tracking: Tracking,
    version: Version,
    answers: Predictions,
    data: EvalData,
    *,
    margin: float,
    choice: Choice = HERE,
) -> Decision:
    """Let the gate decide on a version, keep what it says in the version's tags, and move the alias if it says so.

    `answers` are the version's to the whole split of `data`; `choice` says where a champion is scored on it that was
    registered with other data. Somebody else's promotion in the meantime means another
    comparison, with that champion; what a killed process left half-done is finished first.

    Raises:
        UserError: MLflow is not reachable or refuses, or a version's files are not those that were registered.
    """
    for _ in range(MOST_RACES):
        standing = settle(tracking, version.name)
        present = standing.champion
        if present and present.number == version.number:
            return present.decision or Decision(promote=True, reason="it is the champion already")
        decision = _decide(tracking, version, present, _Contest(answers, data, margin, choice))
        record(tracking, version, decision)
        if not decision.promote or move(tracking, version, standing, "gate"):
            return decision
    raise restless(version.name)


class _Contest(NamedTuple):
    answers: Predictions  # of the challenger
    data: EvalData
    margin: float
    choice: Choice


def _decide(tracking: Tracking, version: Version, present: Version | None, contest: _Contest) -> Decision:
    answers, data, margin, choice = contest
    if when := version.tags.get(ROLLED_BACK):
        again = command("register", "--promote", version.name, str(version.number), *database_option(tracking))
        return Decision(promote=False, reason=f"it was rolled back at {when}; to use it all the same: {again}")
    if present is None:
        return Decision(promote=True, reason="there is no champion yet", margin=margin)
    theirs = _recorded(tracking, present, data) or _scored_anew(tracking, present, data, choice)
    if theirs is None:
        reason = f"the champion {present.uri} knows other classes: register under another name"
        return Decision(promote=False, reason=reason, champion=present.uri)
    comparison = Comparison(new=answers, old=theirs, class_names=data.manifest.class_names)
    return decide(comparison.paired, champion=present.uri, margin=margin, split=data.split)


def _recorded(tracking: Tracking, version: Version, data: EvalData) -> Predictions | None:
    """A version's own answers, if they are to the same split of the same data set."""
    if (version.tags.get("data_digest"), version.tags.get(SPLIT_TAG)) != (data.manifest.digest, data.split):
        return None
    content = read_file(tracking, version, PREDICTIONS)
    return Predictions.from_parquet(content) if content else None


def _scored_anew(tracking: Tracking, version: Version, data: EvalData, choice: Choice) -> Predictions | None:
    """A version's answers to data that it was not registered with; None where its classes are others."""
    files = fetch(tracking, version.uri)
    if tuple(files.metadata["class_names"]) != data.manifest.class_names:
        return None
    crop = CropConfig.of_shown(files.metadata)
    shown = EvalData(store=data.store, manifest=data.manifest, crop=crop, split=data.split)
    return evaluate(choice, VersionModel(files=files), shown).predictions
