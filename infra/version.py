"""A version of a registered model: what its tags say of it, and its files, which are those that were registered.

The SHA-256 of each file is in the version's tags since the version exists; what differs from it is not given out.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from infra.errors import UserError
from infra.exported import file_sha256s
from infra.gate import Decision, Score
from infra.mlflow_client import Tracking, connect, patient, told_in_one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
NAME = r"[A-Za-z0-9_.-]+"
FILES_TAG = "files_sha256"
_MLFLOW_META = "registered_model_meta"  # MLflow may add this file when it downloads


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A registered version."""

    name: str
    number: int
    run_id: str
    tags: Mapping[str, str]
    description: str = field(default="", compare=False)  # what people read in MLflow, and may edit there

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.number}"

    @property
    def score(self) -> Score:
        return Score(
            accuracy=float(self.tags["test_accuracy"]),
            loss=float(self.tags["test_loss"]),
            count=int(self.tags["test_count"]),
            data_digest=self.tags["data_digest"],
        )

    @property
    def export_difference(self) -> float:
        """The largest absolute difference of a probability between the module and what was exported from it."""
        return float(self.tags["export_max_abs_diff"])

    @property
    def decision(self) -> Decision | None:
        """What the gate last said of it, if it was asked."""
        return Decision.from_tags(self.tags)


def verify(tracking: Tracking, version: Version) -> None:
    """Download a version's files and compare them with the hashes in its tags.

    Raises:
        UserError: the files are not those that were registered.
    """
    with verified(patient(connect(tracking)), tracking, version):
        pass


def read_file(tracking: Tracking, version: Version, path: str) -> bytes | None:
    """One of a version's files, checked like all of them; None where it was registered without it."""
    if path not in _registered_files(version):
        return None
    with verified(patient(connect(tracking)), tracking, version, path) as folder:
        return (folder / path).read_bytes()


def find_version(client: MlflowClient, name: str, which: str | int) -> Version | None:
    """The version of this number or alias, if there is one."""
    check_name(name)
    if isinstance(which, str):
        models = client.search_registered_models(f"name = '{name}'")
        which = int(models[0].aliases.get(which, 0)) if models else 0
    found = client.search_model_versions(f"name = '{name}' and version_number = {which}")
    return version_of(found[0]) if found else None


@contextmanager
def verified(client: MlflowClient, tracking: Tracking, version: Version, only: str = "") -> Iterator[Path]:
    """A folder with a version's files, or one of them, which are those that were registered."""
    import mlflow.artifacts

    expected = _registered_files(version)
    with tempfile.TemporaryDirectory(prefix="model-") as scratch:
        with told_in_one_line(tracking):
            source = client.get_model_version_download_uri(version.name, str(version.number))
            where = f"{source.rstrip('/')}/{only}" if only else source
            found = mlflow.artifacts.download_artifacts(where, dst_path=scratch, tracking_uri=tracking.uri)
        if only:
            _verify(version, {only: expected[only]}, Path(scratch))
            yield Path(scratch)
        else:
            _verify(version, expected, Path(found))
            yield Path(found)


def _registered_files(version: Version) -> dict[str, str]:
    """Path -> SHA-256, as the version's tag has them."""
    if FILES_TAG not in version.tags:
        raise UserError(
            f"{version.uri} has no tag {FILES_TAG!r}: this project did not register it, and does not load it"
        )
    files: dict[str, str] = json.loads(version.tags[FILES_TAG])
    return files


def check_files(version: Version, folder: Path) -> None:
    """Raise UserError where the files of a folder are not, one by one, those that were registered as `version`."""
    _verify(version, _registered_files(version), folder)


def _verify(version: Version, expected: dict[str, str], folder: Path) -> None:
    """Refuse files that are not, one by one, those that were registered."""
    found = {path: sha256 for path, sha256 in file_sha256s(folder).items() if path != _MLFLOW_META}
    wrong = sorted(path for path in expected | found if expected.get(path) != found.get(path))
    if wrong:
        raise UserError(
            f"{version.uri} is not what was registered (changed since: {', '.join(wrong)}): register it again"
        )


def version_of(found: ModelVersion) -> Version:
    return Version(
        name=found.name,
        number=int(found.version),
        run_id=found.run_id or "",
        tags=dict(found.tags),
        description=found.description or "",
    )


def check_name(name: str) -> None:
    if not re.fullmatch(NAME, name):
        raise UserError(f"{name!r} cannot name a model: use letters, digits, '.', '_' and '-'")
