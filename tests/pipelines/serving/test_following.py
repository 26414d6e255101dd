"""A served model follows its alias, and never to something that is not what was registered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infra.errors import UserError
from infra.mlflow_client import connect
from infra.registry import find
from pipelines.serving.following import Following

from ..conftest import SIZE
from ..registered import Registry

IMAGES = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)


def test_the_alias_is_followed_and_what_answers_is_kept(registry: Registry) -> None:
    first = registry.champion_is(registry.first)
    following = Following(registry.tracking, registry.uri)
    assert not following.refresh()
    kept = following.now
    second = registry.champion_is(registry.second)
    assert following.refresh()
    assert (kept.version.number, following.now.version.number) == (1, 2)
    np.testing.assert_array_equal(kept.probabilities(IMAGES), first.predict(IMAGES))
    np.testing.assert_array_equal(following.now.probabilities(IMAGES), second.predict(IMAGES))
    assert not following.refresh()


def test_a_version_without_an_alias_stays(registry: Registry) -> None:
    following = Following(registry.tracking, registry.first.uri)
    registry.champion_is(registry.second)
    assert not following.refresh()
    assert following.now.version == registry.first == find(registry.tracking, registry.first.uri)


def test_a_version_whose_bytes_changed_does_not_take_over(registry: Registry) -> None:
    registry.champion_is(registry.first)
    following = Following(registry.tracking, registry.uri)
    registry.champion_is(registry.second)
    uri = connect(registry.tracking).get_model_version_download_uri("served", "2")
    program = Path(uri.removeprefix("file://")) / "data/model.pt2"
    data = program.read_bytes()
    program.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    try:
        with pytest.raises(UserError, match=r"models:/served/2 is not what was registered \(changed since: data/model"):
            following.refresh()
    finally:
        program.write_bytes(data)
    assert following.now.version == registry.first
    assert following.refresh()


def test_an_image_of_another_size_is_no_crash(registry: Registry) -> None:
    following = Following(registry.tracking, registry.first.uri)
    with pytest.raises(UserError, match="models:/served/1 was not exported for images of 17x16x3"):
        following.now.probabilities(np.zeros((2, SIZE + 1, SIZE, 3), np.uint8))
