"""Priorities of spot types in an autoscaler's file; with Ray's own autoscaler: tests/cluster/test_autoscaling.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.spot import Spot

SPOT = {"InstanceType": "g6.4xlarge", "InstanceMarketOptions": {"MarketType": "spot"}}
FILE: dict[str, Any] = {
    "cluster_name": "resnet-ray",
    "available_node_types": {
        "spot": {"priority": 2, "node_config": SPOT},
        "on-demand": {"priority": 1, "node_config": {"InstanceType": "g6.4xlarge"}},
        "ingest": {"node_config": SPOT},
    },
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "bootstrap.yaml"
    made.write_text(json.dumps(FILE))
    made.chmod(0o600)
    return made


def priorities(file: Path) -> dict[str, int]:
    types = yaml.safe_load(file.read_text())["available_node_types"]
    return {name: kind.get("priority", 0) for name, kind in types.items()}


def test_a_spot_type_that_is_not_to_be_had_comes_last_for_a_while(file: Path) -> None:
    spot = Spot(file=file, again_s=600)
    assert spot.hear({}, now=1000) == []
    assert spot.hear({"spot": 1000.0, "on-demand": 1000.0}, now=1001) == ["spot is unavailable"]
    assert priorities(file) == {"spot": -1, "on-demand": 1, "ingest": 0}  # on demand has nothing in its place
    assert spot.hear({"spot": 1300.0}, now=1301) == []
    assert spot.hear({"spot": 1300.0}, now=1899) == []
    assert spot.hear({}, now=1900) == ["spot is tried again"]
    assert yaml.safe_load(file.read_text()) == FILE
    assert file.stat().st_mode & 0o777 == 0o600


def test_nothing_else_in_the_file_changes_and_in_the_end_nothing_has(file: Path) -> None:
    spot = Spot(file=file)
    spot.hear({"spot": 5.0, "ingest": 5.0}, now=6)
    lowered = yaml.safe_load(file.read_text())
    for kind in lowered["available_node_types"].values():
        kind.pop("priority", None)
    assert lowered["available_node_types"] == {
        name: {"node_config": kind["node_config"]} for name, kind in FILE["available_node_types"].items()
    }
    spot.restore()
    assert priorities(file) == {"spot": 2, "on-demand": 1, "ingest": 0}


def test_a_file_that_was_written_anew_without_the_type_is_left_as_it_is(file: Path) -> None:
    spot = Spot(file=file)
    spot.hear({"spot": 5.0}, now=6)
    other = {"available_node_types": {"on-demand": {"node_config": {}}}}
    file.write_text(json.dumps(other))
    spot.hear({"spot": 7.0}, now=8)
    spot.restore()
    assert yaml.safe_load(file.read_text()) == other


def test_a_priority_that_was_set_anew_stays(file: Path) -> None:
    """`ray up` writes the file while the process that watched over the old one is still there."""
    spot = Spot(file=file)
    spot.hear({"spot": 5.0}, now=6)
    changed = {**FILE, "available_node_types": {name: {**kind} for name, kind in FILE["available_node_types"].items()}}
    changed["available_node_types"]["spot"]["priority"] = 0
    file.write_text(json.dumps(changed))
    spot.restore()
    assert priorities(file)["spot"] == 0
    again = Spot(file=file)
    again.hear({"spot": 7.0}, now=8)
    assert priorities(file)["spot"] == -1
    again.restore()
    assert priorities(file)["spot"] == 0
