"""The gate between a challenger and the champion of the model registry: a paired comparison on the same images.

    decide(Paired(wins=31, losses=12, count=1000), champion="models:/mnist/3", margin=0.01)

The gate promotes a challenger under two conditions (docs/decisions/0016-the-gate.md). Its accuracy is not below the
champion's. The images are enough to rule out, at 95 % confidence, that the challenger is worse by the margin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, NamedTuple, Self, get_args

from infra.proportions import CONFIDENCE, Paired, Resampled

OverClasses = Literal["balanced_accuracy", "macro_f1"]
"""Measures in which every class has the same weight."""
Measure = Literal["accuracy", OverClasses, "mean_average_precision"]
OVER_CLASSES = get_args(OverClasses)
MEAN_AVERAGE_PRECISION: Literal["mean_average_precision"] = "mean_average_precision"
"""Measure of multi-label data sets."""
FURTHER = (*OVER_CLASSES, MEAN_AVERAGE_PRECISION)
"""Measures of a score that may be unknown."""
MARGIN = 0.01
"""Accuracy, 0 to 1: the default of the recipe's run.gate_margin."""


class Rule(NamedTuple):
    """What the gate asks of a challenger."""

    margin: float = MARGIN  # loss of the measure that the images must rule out, 0 to 1
    measure: Measure = "accuracy"


VERDICT = "gate_decision"
"""Tag with the decision: promote the challenger, or keep the champion."""
_PROMOTE, _KEEP = "promote", "keep"


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """The score of a model on a whole split."""

    accuracy: float  # top-1, 0 to 1
    loss: float  # mean over the samples
    count: int  # samples
    data_digest: str  # of the data set's manifest
    balanced_accuracy: float | None = None  # mean recall of the classes, 0 to 1; None in old versions
    macro_f1: float | None = None  # mean over classes, 0 to 1
    mean_average_precision: float | None = None  # of a multi-label data set, 0 to 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """The gate's decision and its reason."""

    promote: bool
    reason: str
    champion: str = ""  # URI of the version that the challenger was compared with, if any
    margin: float | None = None
    paired: Paired | None = None
    resampled: Resampled | None = None  # None = the measure is the accuracy, and `paired` decided

    @property
    def tags(self) -> dict[str, str]:
        """Tags that store the decision; the verdict is last, so that a version with a verdict has all tags."""
        reasons = {"gate_reason": self.reason, "gate_champion": self.champion}
        if self.margin is not None:
            reasons["gate_margin"] = repr(self.margin)
        if self.paired is not None:
            reasons |= {
                "gate_images": str(self.paired.count),
                "gate_wins": str(self.paired.wins),
                "gate_losses": str(self.paired.losses),
                "gate_difference": f"{self.paired.difference:.6f}",
                "gate_lower_bound": f"{self.paired.lower_bound():.6f}",
                "gate_p_value": f"{self.paired.p_value:.6g}",
            }
        if self.resampled is not None:
            reasons |= {
                "gate_measure": self.resampled.measure,
                "gate_images": str(self.resampled.count),
                "gate_difference": repr(self.resampled.difference),
                "gate_lower_bound": repr(self.resampled.bound),
            }
        return {**reasons, VERDICT: _PROMOTE if self.promote else _KEEP}

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Self | None:
        """Return the decision in a version's tags, or None."""
        if VERDICT not in tags:
            return None
        counted = {name: tags.get(f"gate_{name}") for name in ("wins", "losses", "images")}
        wins, losses, count = counted.values()
        return cls(
            promote=tags[VERDICT] == _PROMOTE,
            reason=tags["gate_reason"],
            champion=tags["gate_champion"],
            margin=float(tags["gate_margin"]) if "gate_margin" in tags else None,
            paired=Paired(wins=int(wins), losses=int(losses), count=int(count)) if wins and losses and count else None,
            resampled=_resampled(tags),
        )


def decide(
    paired: Paired | None,
    *,
    champion: str,
    margin: float = MARGIN,
    split: str = "test",
    resampled: Resampled | None = None,
) -> Decision:
    """Decide whether the challenger (`new`) replaces the champion (`old`) with this URI.

    Args:
        paired: the two models on the same images; None for multi-label images, which are not right or wrong.
        champion: URI of the champion.
        margin: loss that the images must rule out, 0 to 1.
        split: name of the images in the reason.
        resampled: the difference of the measure to decide by; None = the accuracy, from `paired`.
    """
    if resampled is not None:
        return _decided(resampled, paired, champion, margin, split)
    assert paired is not None
    behind, risk = paired.difference < 0, paired.lower_bound() <= -margin
    images = f"{paired.count:,} {split} images"
    measured, bound = points(paired.difference), short_points(paired.lower_bound())
    counted = (
        f"{paired.wins:,} images only the new model gets right, {paired.losses:,} only {champion}; "
        f"p = {paired.p_value:.2g}"
    )
    if behind:
        reason = f"less accurate than {champion}: {measured} on {images} ({counted})"
    elif risk:
        loss = _counted_points(margin)
        reason = (
            f"{images} are too few to rule out a loss of {loss} (measured {short_points(paired.difference)}, could be "
            f"{bound} at {CONFIDENCE:.0%} confidence; {counted})"
        )
    else:
        reason = (
            f"as accurate as {champion} or better: {measured} on {images}, at least {bound} at {CONFIDENCE:.0%} "
            f"confidence ({counted})"
        )
    return Decision(promote=not (behind or risk), reason=reason, champion=champion, margin=margin, paired=paired)


def _decided(found: Resampled, paired: Paired | None, champion: str, margin: float, split: str) -> Decision:
    """Apply the rule of `decide` to another measure than the accuracy."""
    behind, risk = found.difference < 0, found.bound <= -margin
    name, images = found.measure.replace("_", " "), f"{found.count:,} {split} images"
    measured, bound = points(found.difference), short_points(found.bound)
    if behind:
        reason = f"lower {name} than {champion}: {measured} on {images}"
    elif risk:
        reason = (
            f"{images} are too few to rule out a loss of {_counted_points(margin)} of {name} (measured "
            f"{short_points(found.difference)}, could be {bound} at {CONFIDENCE:.0%} confidence)"
        )
    else:
        reason = (
            f"{name} as high as that of {champion} or higher: {measured} on {images}, at least {bound} at "
            f"{CONFIDENCE:.0%} confidence"
        )
    promote = not (behind or risk)
    return Decision(promote=promote, reason=reason, champion=champion, margin=margin, paired=paired, resampled=found)


def _resampled(tags: Mapping[str, str]) -> Resampled | None:
    if "gate_measure" not in tags:
        return None
    difference, bound = float(tags["gate_difference"]), float(tags["gate_lower_bound"])
    count = int(tags["gate_images"])
    return Resampled(measure=tags["gate_measure"], difference=difference, bound=bound, count=count)


def least_images(margin: float = MARGIN, differing: float = 0.0) -> int:
    """Return how many images can show that a model as accurate as the champion is not worse by the margin.

    Args:
        margin: accuracy, 0 to 1.
        differing: share of the images that one of the two models gets right and the other wrong.
    """
    z = NormalDist().inv_cdf(CONFIDENCE)
    return math.ceil(max(z * z * (1 - margin) / margin, z * z * differing / margin**2))


def points(share: float) -> str:
    """Return a difference of accuracies as text, in points."""
    return f"{100 * share:+.2f} points"


def short_points(share: float) -> str:
    """Return a difference in points without the unit, with one digit, or as many as a nonzero value needs."""
    shown = f"{100 * share:+.1f}"
    return f"{100 * share:+.2g}" if float(shown) == 0 and share else shown


def _counted_points(share: float) -> str:
    return "1 point" if share == 0.01 else f"{100 * share:g} points"  # noqa: PLR2004 - what one point is
