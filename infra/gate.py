"""The gate between a challenger and the champion of the model registry: a comparison on the same data, nothing else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What a model scored on a whole split."""

    accuracy: float  # top-1, 0 to 1
    loss: float  # mean over the samples
    count: int  # samples
    data_digest: str  # of the data set's manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What the gate says."""

    promote: bool
    reason: str


def decide(challenger: Score, champion: Score | None) -> Decision:
    """The gate: a challenger that is not worse than the champion, on the same data, takes its place.

    Raises:
        ValueError: the scores are of different data; score the champion on the challenger's data first.
    """
    if champion is None:
        return Decision(promote=True, reason="there is no champion yet")
    if champion.data_digest != challenger.data_digest:
        raise ValueError("champion: scored on other data than the challenger; the two cannot be compared")
    promote = challenger.accuracy >= champion.accuracy
    verdict = "is not worse than" if promote else "is worse than"
    return Decision(
        promote=promote,
        reason=f"accuracy {challenger.accuracy:.4f} {verdict} the champion's {champion.accuracy:.4f} "
        f"on the same {challenger.count:,} images",
    )
