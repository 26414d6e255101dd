"""The gate between a challenger and the champion of the model registry: a paired comparison on the same images.

    decide(Paired(wins=31, losses=12, count=1000), champion="models:/mnist/3", margin=0.01)

The rule has two halves (docs/decisions/0016-the-gate.md): the challenger is not below the champion in accuracy, and the
images are enough to rule out, at 95 % confidence, that it is worse by the margin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Self

from infra.proportions import CONFIDENCE, Paired

MARGIN = 0.01
"""Of accuracy: the default of the recipe's run.gate_margin."""
VERDICT = "gate_decision"
"""The tag that says whether to promote or to keep the champion."""
_PROMOTE, _KEEP = "promote", "keep"


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What a model scored on a whole split."""

    accuracy: float  # top-1, 0 to 1
    loss: float  # mean over the samples
    count: int  # samples
    data_digest: str  # of the data set's manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What the gate says, and on what grounds."""

    promote: bool
    reason: str
    champion: str = ""  # URI of the version that it was compared with, if any
    margin: float | None = None
    paired: Paired | None = None

    @property
    def tags(self) -> dict[str, str]:
        """What a version keeps of it; the verdict is the last, so that who finds it finds all of one decision."""
        grounds = {"gate_reason": self.reason, "gate_champion": self.champion}
        if self.margin is not None:
            grounds["gate_margin"] = repr(self.margin)
        if self.paired is not None:
            grounds |= {
                "gate_images": str(self.paired.count),
                "gate_wins": str(self.paired.wins),
                "gate_losses": str(self.paired.losses),
                "gate_difference": f"{self.paired.difference:.6f}",
                "gate_lower_bound": f"{self.paired.lower_bound():.6f}",
                "gate_p_value": f"{self.paired.p_value:.6g}",
            }
        return {**grounds, VERDICT: _PROMOTE if self.promote else _KEEP}

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Self | None:
        """The decision that a version's tags hold, if they hold one."""
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
        )


def decide(paired: Paired, *, champion: str, margin: float = MARGIN, split: str = "test") -> Decision:
    """Promote a challenger (`new`) over the champion (`old`) whose URI is given.

    `split` names the images in the reason.
    """
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


def least_images(margin: float = MARGIN, differing: float = 0.0) -> int:
    """How many images show that a model as accurate as the champion is not worse by the margin.

    Args:
        margin: of accuracy.
        differing: share of the images that one of the two models gets right and the other wrong.
    """
    z = NormalDist().inv_cdf(CONFIDENCE)
    return math.ceil(max(z * z * (1 - margin) / margin, z * z * differing / margin**2))


def points(share: float) -> str:
    """A difference of accuracies as people say it."""
    return f"{100 * share:+.2f} points"


def short_points(share: float) -> str:
    """The same without its unit and with one digit, or as many as it takes not to be zero."""
    shown = f"{100 * share:+.1f}"
    return f"{100 * share:+.2g}" if float(shown) == 0 and share else shown


def _counted_points(share: float) -> str:
    return "1 point" if share == 0.01 else f"{100 * share:g} points"  # noqa: PLR2004 - what one point is
