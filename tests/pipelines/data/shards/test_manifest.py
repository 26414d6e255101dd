from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.storage import LocalStore
from pipelines.data.shards.manifest import Manifest, check_shards, load_manifest
from tests.pipelines.data.conftest import layout_only

MANIFEST = layout_only([[3, 2], [4]], test=[[2]])


def test_round_trip_keeps_content_digest_and_text() -> None:
    text = MANIFEST.to_json()
    again = Manifest.from_json(text)
    assert again == MANIFEST
    assert again.to_json() == text
    assert (again.name, len(again.name)) == (MANIFEST.digest[:16], 16)
    assert (again.total_rows, again.total_bytes, again.split_start("test")) == (11, 3000, 9)
    assert [shard.path for shard in again.shards_of("train")] == ["train-00000.parquet", "train-00001.parquet"]


def test_order_of_splits_survives_although_json_keys_are_sorted() -> None:
    assert list(Manifest.from_json(MANIFEST.to_json()).splits) == ["train", "test"]


@pytest.mark.parametrize(
    "replaced", [('"rows":5', '"rows":6'), ('"a","b"', '"b","a"'), ("2222", "2223"), ('["test",2]', '["test",1]')]
)
def test_any_edit_is_found(replaced: tuple[str, str]) -> None:
    text = MANIFEST.to_json()
    edited = text.replace(*replaced)
    assert edited != text
    with pytest.raises(UserError, match=f"was edited: .* {MANIFEST.name}: restore it or prepare again"):
        Manifest.from_json(edited)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a manifest of resnet-ray"),
        ("[]", "is not a manifest of resnet-ray"),
        ('{"format_version": 1}', "is not a manifest of resnet-ray"),
        (
            MANIFEST.to_json().replace('"format_version": 1', '"format_version": 2'),
            "has format version 2; this code reads 1",
        ),
    ],
)
def test_what_is_no_manifest_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Manifest.from_json(text)


def test_missing_manifest_says_to_prepare(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"no manifest\.json in {tmp_path}: is it prepared\? run prepare\.py"):
        load_manifest(LocalStore(uri=str(tmp_path)))


def test_listing_is_compared_with_the_manifest(tmp_path: Path) -> None:
    store = LocalStore(uri=str(tmp_path))
    for shard in MANIFEST.shards:
        store.write(shard.path, bytes(shard.bytes))
    store.write("of-somebody-else.parquet", b"")
    assert check_shards(store, MANIFEST) == ["of-somebody-else.parquet"]
    store.write("train-00001.parquet", bytes(999))
    with pytest.raises(UserError, match=r"shard train-00001\.parquet in .* has 999 bytes, the manifest says 1,000"):
        check_shards(store, MANIFEST)
    store.delete("train-00001.parquet")
    with pytest.raises(UserError, match=r"shard train-00001\.parquet is missing in"):
        check_shards(store, MANIFEST)


def test_another_layout_of_the_same_json_is_the_same_manifest() -> None:
    assert Manifest.from_json(json.dumps(json.loads(MANIFEST.to_json()), indent=2)) == MANIFEST


def test_a_cut_list_of_shards_is_refused() -> None:
    head, _, _ = MANIFEST.to_json().partition("]\n}")
    with pytest.raises(UserError, match="is not a manifest of resnet-ray"):
        Manifest.from_json(head)


def test_data_tasks_map_the_shards_and_copy_next_to_nothing() -> None:
    """Ray unpickles what a task needs for each task: columns stay where they are, in shared memory."""
    manifest = layout_only([[58] * 22] * 1000)
    buffers: list[pickle.PickleBuffer] = []
    copied = pickle.dumps(manifest, protocol=5, buffer_callback=buffers.append)
    assert len(copied) < 2000
    assert sum(buffer.raw().nbytes for buffer in buffers) == manifest.columns.nbytes
    assert manifest.columns.nbytes < 60 * 22_000
    assert pickle.loads(copied, buffers=buffers) == manifest


def test_shards_are_a_sequence() -> None:
    shards = MANIFEST.shards
    assert [shard.rows for shard in shards[1:]] == [4, 2]
    assert (shards[-1].split, shards[-1].groups[0].rows, len(shards)) == ("test", 2, 3)
    assert shards[0].groups[1:] == shards[0].groups[-1:]
    with pytest.raises(IndexError):
        shards[3]
    assert [column.tolist() for column in MANIFEST.columns.groups_of("train")] == [[0, 0, 1], [0, 1, 0], [3, 2, 4]]


def test_text_is_one_shard_a_line_and_plain_json() -> None:
    text = MANIFEST.to_json()
    assert sum('"path"' in line for line in text.splitlines()) == 3
    assert json.loads(text)["digest"] == MANIFEST.digest
