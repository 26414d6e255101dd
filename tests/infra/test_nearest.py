"""What a mistyped name most likely means."""

from __future__ import annotations

import pytest

from infra.nearest import closest, nearest
from resnet_core.config import VARIANTS


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("ResNet50", "resnet50"),
        ("resnet-50", "resnet50"),
        ("RESNET_50_D", "resnet50d"),
        ("resnext50", "resnext50_32x4d"),
        ("wide_resnet50", "wide_resnet50_2"),
        ("resnet21", "resnet20"),
        ("rsenet18", "resnet18"),
        ("densenet", ""),
        ("vgg16", ""),
        ("", ""),
    ],
)
def test_networks(word: str, meant: str) -> None:
    assert closest(word, VARIANTS) == meant


def test_a_word_that_is_a_part_of_one_name() -> None:
    assert closest("smoothing", ["label_smoothing", "momentum"]) == "label_smoothing"
    assert closest("min", ["jitter_min", "side_min"]) == ""  # of two names: neither


def test_hints() -> None:
    assert nearest("photoz", ["photos", "digits"], "models:/") == " (did you mean models:/photos?)"
    assert nearest("x", []) == ""
