"""A version of a registered model: the data in its tags, and its verified files.

The version's tags hold the SHA-256 of each file from the start. A file with another hash is refused.
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
from infra.registry.exported_program import file_sha256s
from infra.registry.gate import FURTHER, Decision, Score
from infra.tracking.client import Tracking, connect, one_line_errors, patient

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
NAME = r"[A-Za-z0-9_.-]+"
FILES_TAG = "files_sha256"
_MLFLOW_META = "registered_model_meta"  # MLflow may add this file to a download


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A registered version."""

    name: str
    number: int
    run_id: str
    tags: Mapping[str, str]
    description: str = field(default="", compare=False)  # text that people read, and may edit, in MLflow

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
            **{name: float(self.tags[f"test_{name}"]) for name in FURTHER if f"test_{name}" in self.tags},
        )

    @property
    def export_difference(self) -> float:
        """Largest absolute difference of a probability between the module and the exported program."""
        return float(self.tags["export_max_abs_diff"])

    @property
    def decision(self) -> Decision | None:
        """The gate's last decision about this version, or None."""
        return Decision.from_tags(self.tags)


def verify(tracking: Tracking, version: Version) -> None:
    """Download a version's files and compare them with the hashes in its tags.

    Raises:
        UserError: a file differs from the registered one.
    """
    with verified(patient(connect(tracking)), tracking, version):
        pass


def read_file(tracking: Tracking, version: Version, path: str) -> bytes | None:
    """Return one verified file of a version; None if the version was registered without it."""
    if path not in _registered_files(version):
        return None
    with verified(patient(connect(tracking)), tracking, version, path) as folder:
        return (folder / path).read_bytes()


def find_version(client: MlflowClient, name: str, which: str | int) -> Version | None:
    """Return the version of this number or alias, or None."""
    check_name(name)
    if isinstance(which, str):
        models = client.search_registered_models(f"name = '{name}'")
        which = int(models[0].aliases.get(which, 0)) if models else 0
    found = client.search_model_versions(f"name = '{name}' and version_number = {which}")
    return version_of(found[0]) if found else None


@contextmanager
def verified(client: MlflowClient, tracking: Tracking, version: Version, only: str = "") -> Iterator[Path]:
    """Yield a folder with the verified files of a version, or with only one of them."""
    import mlflow.artifacts

    expected = _registered_files(version)
    with tempfile.TemporaryDirectory(prefix="model-") as scratch:
        with one_line_errors(tracking):
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
    """Return path -> SHA-256 from the version's tag."""
    if FILES_TAG not in version.tags:
        raise UserError(
            f"{version.uri} has no tag {FILES_TAG!r}: this project did not register it, and does not load it"
        )
    files: dict[str, str] = json.loads(version.tags[FILES_TAG])
    return files


def check_files(version: Version, folder: Path) -> None:
    """Raise UserError if any file of a folder differs from those registered as `version`."""
    _verify(version, _registered_files(version), folder)


def _verify(version: Version, expected: dict[str, str], folder: Path) -> None:
    """Raise UserError if any file differs from the registered ones, is missing, or is new."""
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
