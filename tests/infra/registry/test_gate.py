"""The gate lets in what is no worse, says why, and its tags say the same."""

from __future__ import annotations

import pytest

from infra.proportions import Paired
from infra.registry.gate import Decision, decide

CHAMPION = "models:/digits/3"


@pytest.mark.parametrize(
    ("wins", "losses", "count", "promote", "reason"),
    [
        (
            31,
            12,
            1000,
            True,
            f"as accurate as {CHAMPION} or better: +1.90 points on 1,000 test images, at least +0.8 at ",
        ),
        (0, 0, 1000, True, f"as accurate as {CHAMPION} or better: +0.00 points"),
        (40, 40, 10_000, True, f"as accurate as {CHAMPION} or better: +0.00 points"),
        (
            40,
            41,
            10_000,
            False,
            f"less accurate than {CHAMPION}: -0.01 points on 10,000 test images (40 images only the new",
        ),
        (
            60,
            60,
            1000,
            False,
            "1,000 test images are too few to rule out a loss of 1 point (measured +0.0, could be -1.8",
        ),
        (1, 0, 30, False, "30 test images are too few to rule out a loss of 1 point (measured +3.3, could be "),
    ],
)
def test_the_rule(wins: int, losses: int, count: int, promote: bool, reason: str) -> None:
    decision = decide(Paired(wins=wins, losses=losses, count=count), champion=CHAMPION)
    assert decision.promote is promote
    assert decision.reason.startswith(reason)


def test_the_reason_has_all_that_one_needs_to_disagree() -> None:
    assert decide(Paired(wins=60, losses=60, count=1000), champion=CHAMPION).reason == (
        "1,000 test images are too few to rule out a loss of 1 point (measured +0.0, could be -1.8 at 95% confidence; "
        "60 images only the new model gets right, 60 only models:/digits/3; p = 1)"
    )


def test_a_wider_margin_asks_for_less() -> None:
    paired = Paired(wins=60, losses=60, count=1000)
    assert [decide(paired, champion=CHAMPION, margin=margin).promote for margin in (0.01, 0.02, 1.0)] == [
        False,
        True,
        True,
    ]
    worse = Paired(wins=59, losses=60, count=1000)
    assert not decide(worse, champion=CHAMPION, margin=1.0).promote


def test_a_version_s_tags_give_the_decision_back() -> None:
    decision = decide(Paired(wins=31, losses=0, count=1000), champion=CHAMPION, margin=0.005)
    tags = decision.tags
    assert list(tags)[-1] == "gate_decision"
    assert {key: tags[f"gate_{key}"] for key in ("decision", "champion", "margin", "wins", "losses", "images")} == {
        "decision": "promote",
        "champion": CHAMPION,
        "margin": "0.005",
        "wins": "31",
        "losses": "0",
        "images": "1000",
    }
    assert float(tags["gate_difference"]) == pytest.approx(0.031)
    assert float(tags["gate_p_value"]) == pytest.approx(2 * 0.5**31, rel=1e-5)
    assert Decision.from_tags(tags) == decision
    first = Decision(promote=True, reason="there is no champion yet", margin=0.01)
    assert Decision.from_tags(first.tags) == first
    assert Decision.from_tags({"test_accuracy": "0.9"}) is None
