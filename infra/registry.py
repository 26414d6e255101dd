"""Versions of a model in MLflow's registry, and the alias ``champion`` that names the one in use.

    version = register(tracking, Candidate(name="mnist", run_id=run_id, module=classifier, example=images_NHWC, ...))
    promote(tracking, version)                                    # if infra.gate says so
    probabilities_NK = load(tracking, "models:/mnist@champion").predict(images_NHWC)

A version is an exported program (``infra.exported``) with the SHA-256 of each of its files in its tags. It is compared
with the module before it is uploaded, and its bytes are checked before they are loaded.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import UserError
from infra.exported import Program, RequestReader, file_sha256s, open_program, predict, save_program
from infra.gate import Score
from infra.mlflow_client import Tracking, connect, told_in_one_line

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion
    from numpy.typing import NDArray
    from torch import nn

CHAMPION = "champion"

_FILES_TAG = "files_sha256"
_MLFLOW_META = "registered_model_meta"  # MLflow may add this file when it downloads
_NAME = r"[A-Za-z0-9_.-]+"


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A model to register, with what its version will say about it."""

    name: str  # of the registered model
    run_id: str  # the run that trained it
    step: int  # of the checkpoint it comes from
    module: nn.Module  # uint8 NxHxWx3 in, probabilities NxK out: preprocessing and softmax inside
    example: NDArray[np.uint8]  # NxHxWx3, N >= 2, kept as the input example
    score: Score
    checkpoint_sha256: str
    recipe_digest: str
    metadata: Mapping[str, Any] = field(default_factory=dict)  # kept in the model's file: class names and the like
    tags: Mapping[str, str] = field(default_factory=dict)  # further tags of the version
    reader: RequestReader | None = None  # lets MLflow's server answer to image files, too


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A registered version."""

    name: str
    number: int
    run_id: str
    tags: Mapping[str, str]

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


class LoadedModel:
    """A registered version, ready to predict on the CPU."""

    def __init__(self, version: Version, module: nn.Module, metadata: Mapping[str, Any]) -> None:
        self.version = version
        self.metadata = metadata
        self._module = module

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities NxK of uint8 images NxHxWx3, at the size that the model was exported for."""
        return predict(self._module, images)


def register(tracking: Tracking, candidate: Candidate) -> Version:
    """Export, load back, compare, upload, and create a version; the version that exists if this checkpoint has one.

    Raises:
        UserError: MLflow is not reachable or refuses.
        RuntimeError: the exported program does not answer like the module (largest difference above 1e-4).
    """
    client = connect(tracking)
    with told_in_one_line(tracking):
        existing = _version_of(client, candidate)
    if existing is not None:
        return existing
    with tempfile.TemporaryDirectory(prefix="model-") as scratch:
        folder = Path(scratch, "model")
        with told_in_one_line(tracking):
            logged = client.create_logged_model(
                client.get_run(candidate.run_id).info.experiment_id,
                name=candidate.name,
                source_run_id=candidate.run_id,
                model_type="image-classifier",
                tags=dict(candidate.tags),
            )
        try:
            program = Program(
                module=candidate.module,
                example=candidate.example,
                metadata=candidate.metadata,
                reader=candidate.reader,
            )
            difference = save_program(program, folder, run_id=candidate.run_id, model_id=logged.model_id)
            with told_in_one_line(tracking):
                client.log_model_artifacts(logged.model_id, str(folder))
                client.finalize_logged_model(logged.model_id, "READY")
        except BaseException:
            with suppress(Exception):  # what went wrong matters more than that MLflow cannot be told
                client.finalize_logged_model(logged.model_id, "FAILED")
            raise
        tags = _tags(candidate) | {
            "export_max_abs_diff": f"{difference:.3g}",
            _FILES_TAG: json.dumps(file_sha256s(folder)),
        }
    with told_in_one_line(tracking):
        _link(client, candidate, logged.model_id)
        return _create_version(client, candidate, logged, tags)


def champion(tracking: Tracking, name: str) -> Version | None:
    """The version that the alias ``champion`` names, if there is one."""
    client = connect(tracking)
    with told_in_one_line(tracking):
        return _by_alias(client, name, CHAMPION)


def promote(tracking: Tracking, version: Version) -> None:
    """Let the alias ``champion`` name this version."""
    client = connect(tracking)
    with told_in_one_line(tracking):
        client.set_registered_model_alias(version.name, CHAMPION, str(version.number))


def find(tracking: Tracking, uri: str) -> Version:
    """The version that models:/NAME@ALIAS or models:/NAME/VERSION names now. Raises UserError where there is none."""
    return _resolve(connect(tracking), tracking, uri)


def load(tracking: Tracking, uri: str) -> LoadedModel:
    """The model at ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.

    Raises:
        UserError: no such model, alias or version, or its files are not those that were registered.
    """
    client = connect(tracking)
    version = _resolve(client, tracking, uri)
    expected = _registered_files(version)
    with tempfile.TemporaryDirectory(prefix="model-") as scratch:
        with told_in_one_line(tracking):
            folder = _download(client, tracking, version, scratch)
        _verify(version, expected, folder)
        module, metadata = open_program(folder)
        return LoadedModel(version, module, metadata)


def _tags(candidate: Candidate) -> dict[str, str]:
    return {
        **candidate.tags,
        "checkpoint_sha256": candidate.checkpoint_sha256,
        "checkpoint_step": str(candidate.step),
        "recipe_digest": candidate.recipe_digest,
        "data_digest": candidate.score.data_digest,
        "test_accuracy": repr(candidate.score.accuracy),
        "test_loss": repr(candidate.score.loss),
        "test_count": str(candidate.score.count),
    }


def _link(client: MlflowClient, candidate: Candidate, model_id: str) -> None:
    """Show the model under its run, with the metrics that the run has of the model's step.

    Those points keep their time, so that the run, which has them already, does not get them twice.
    """
    from mlflow.entities import LoggedModelOutput, Metric

    client.log_outputs(candidate.run_id, [LoggedModelOutput(model_id, candidate.step)])
    points = [
        Metric(key, point.value, point.timestamp, point.step, model_id=model_id, run_id=candidate.run_id)
        for key in client.get_run(candidate.run_id).data.metrics
        for point in client.get_metric_history(candidate.run_id, key)
        if point.step == candidate.step
    ]
    if points:
        client.log_batch(candidate.run_id, metrics=points)


def _version_of(client: MlflowClient, candidate: Candidate) -> Version | None:
    _check_name(candidate.name)
    same_run = f"name = '{candidate.name}' and run_id = '{candidate.run_id}'"
    for found in client.search_model_versions(same_run):
        if found.tags.get("checkpoint_sha256") == candidate.checkpoint_sha256:
            return _version(found)
    return None


def _create_version(client: MlflowClient, candidate: Candidate, logged: LoggedModel, tags: dict[str, str]) -> Version:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(candidate.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # By its location: MLflow looks up models:/<model id> at the process-wide tracking URI, which may be another.
    created = client.create_model_version(
        candidate.name, logged.artifact_location, candidate.run_id, tags, model_id=logged.model_id
    )
    return _version(created)


def _resolve(client: MlflowClient, tracking: Tracking, uri: str) -> Version:
    parts = re.fullmatch(rf"models:/({_NAME})(?:@([\w-]+)|/(\d+))", uri)
    if parts is None:
        raise UserError(f"{uri!r} is not a registered model: give models:/NAME@{CHAMPION} or models:/NAME/VERSION")
    name, alias, number = parts.groups()
    with told_in_one_line(tracking):
        found = _by_alias(client, name, alias) if alias else _by_number(client, name, number)
        if found is not None:
            return found
        known = sorted(model.name for model in client.search_registered_models())
    if name not in known:
        raise UserError(f"MLflow at {tracking.description} has no model {name!r}; it has: {', '.join(known) or 'none'}")
    which = f"alias {alias!r}" if alias else f"version {number}"
    raise UserError(f"the model {name!r} at {tracking.description} has no {which}")


def _by_alias(client: MlflowClient, name: str, alias: str) -> Version | None:
    _check_name(name)
    models = client.search_registered_models(f"name = '{name}'")
    number = models[0].aliases.get(alias) if models else None
    return _by_number(client, name, number) if number else None


def _by_number(client: MlflowClient, name: str, number: str) -> Version | None:
    found = client.search_model_versions(f"name = '{name}' and version_number = {number}")
    return _version(found[0]) if found else None


def _version(found: ModelVersion) -> Version:
    return Version(name=found.name, number=int(found.version), run_id=found.run_id or "", tags=dict(found.tags))


def _check_name(name: str) -> None:
    if not re.fullmatch(_NAME, name):
        raise UserError(f"{name!r} cannot name a model: use letters, digits, '.', '_' and '-'")


def _download(client: MlflowClient, tracking: Tracking, version: Version, scratch: str) -> Path:
    import mlflow.artifacts

    source = client.get_model_version_download_uri(version.name, str(version.number))
    return Path(mlflow.artifacts.download_artifacts(source, dst_path=scratch, tracking_uri=tracking.uri))


def _registered_files(version: Version) -> dict[str, str]:
    """Path -> SHA-256, as the version's tag has them."""
    if _FILES_TAG not in version.tags:
        raise UserError(
            f"{version.uri} has no tag {_FILES_TAG!r}: this project did not register it, and does not load it"
        )
    files: dict[str, str] = json.loads(version.tags[_FILES_TAG])
    return files


def _verify(version: Version, expected: dict[str, str], folder: Path) -> None:
    """Refuse files that are not, one by one, those that were registered."""
    found = {path: sha256 for path, sha256 in file_sha256s(folder).items() if path != _MLFLOW_META}
    wrong = sorted(path for path in expected | found if expected.get(path) != found.get(path))
    if wrong:
        raise UserError(
            f"{version.uri} is not what was registered (changed since: {', '.join(wrong)}): register it again"
        )
