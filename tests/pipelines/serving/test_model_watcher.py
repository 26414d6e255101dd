"""A served model follows its alias, and never to something that is not what was registered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infra.errors import UserError
from infra.registry.versions import find, load
from infra.tracking.client import connect
from pipelines.serving.model_watcher import ModelWatcher, Served
from pipelines.serving.models import FromMlflow
from tests.pipelines.conftest import SIZE
from tests.pipelines.registered import Registry

IMAGES = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)


def test_the_alias_is_followed_and_what_answers_is_kept(registry: Registry) -> None:
    first = registry.champion_is(registry.first)
    following = ModelWatcher(FromMlflow(tracking=registry.tracking, uri=registry.uri))
    assert not following.refresh()
    kept = following.now
    second = registry.champion_is(registry.second)
    assert following.refresh()
    assert (kept.version.number, following.now.version.number) == (1, 2)
    np.testing.assert_array_equal(kept.predict(IMAGES), first.predict(IMAGES))
    np.testing.assert_array_equal(following.now.predict(IMAGES), second.predict(IMAGES))
    assert not following.refresh()


def test_a_version_without_an_alias_stays(registry: Registry) -> None:
    following = ModelWatcher(FromMlflow(tracking=registry.tracking, uri=registry.first.uri))
    registry.champion_is(registry.second)
    assert not following.refresh()
    assert following.now.version.uri == registry.first.uri == find(registry.tracking, registry.first.uri).uri


def test_a_version_whose_bytes_changed_does_not_take_over(registry: Registry) -> None:
    registry.champion_is(registry.first)
    following = ModelWatcher(FromMlflow(tracking=registry.tracking, uri=registry.uri))
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
    assert following.now.version.uri == registry.first.uri
    assert following.refresh()


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"image_size": SIZE + 1}, f"takes {SIZE}x{SIZE}x3, but its metadata say {SIZE + 1}x{SIZE + 1}x3"),
        ({"class_names": ["azure", "lime"]}, "returns 3 probabilities, but its metadata name 2 classes"),
    ],
)
def test_a_model_that_is_not_what_it_says_is_refused(registry: Registry, about: dict[str, object], reason: str) -> None:
    model = load(registry.tracking, registry.first.uri)
    model.metadata = {**model.metadata, **about}
    with pytest.raises(UserError, match=f"models:/served/1 {reason}"):
        Served.of(model)
