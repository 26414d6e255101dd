"""Versions of a model in MLflow's registry, and the alias ``champion`` that names the one in use.

    version = register(tracking, Candidate(name="mnist", run_id=run_id, module=classifier, example=images_NHWC, ...))
    probabilities_NK = load(tracking, "models:/mnist@champion").predict(images_NHWC)
    files = fetch(tracking, "models:/mnist@champion")  # plain data for processes that cannot reach MLflow.
    probabilities_NK = files.open("cuda:0").predict(images_NHWC)

A version is an exported program (``infra.registry.exported_program``) whose tags hold the SHA-256 of each file. The
program is compared with the module before the upload, and its bytes are checked before they are loaded.
``infra.registry.champion`` moves the alias.
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
from infra.nearest import nearest
from infra.registry.champion_log import log_of
from infra.registry.exported_program import (
    DESCRIPTION,
    Program,
    RequestReader,
    Shapes,
    file_sha256s,
    open_program,
    predict,
    save_program,
)
from infra.registry.gate import FURTHER, Score
from infra.registry.version import (
    CHAMPION,
    FILES_TAG,
    NAME,
    Version,
    check_files,
    check_name,
    find_version,
    verified,
    version_of,
)
from infra.tracking.client import Tracking, connect, one_line_errors, patient

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from numpy.typing import NDArray
    from torch import Tensor, nn

__all__ = ["CHAMPION", "Candidate", "LoadedModel", "ModelFiles", "Version"]
__all__ += ["fetch", "find", "load", "register", "registered"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A model to register, with the properties of its version."""

    name: str  # of the registered model
    run_id: str  # the run that trained the model
    step: int  # of the model's checkpoint
    module: nn.Module  # uint8 NxHxWx3 in, probabilities NxK out: preprocessing and softmax inside
    example: NDArray[np.uint8]  # NxHxWx3, N >= 2, kept as the input example
    score: Score
    checkpoint_sha256: str
    recipe_digest: str
    metadata: Mapping[str, Any] = field(default_factory=dict)  # stored in the model: class names and so on
    tags: Mapping[str, str] = field(default_factory=dict)  # additional tags of the version
    reader: RequestReader | None = None  # lets MLflow's server take image files, too
    files: Mapping[str, bytes] = field(default_factory=dict)  # stored with the program, by path
    description: str = ""  # of the version, for people: Markdown


class LoadedModel:
    """A registered version, ready to predict on a device."""

    def __init__(self, version: Version, folder: Path, device: str = "cpu") -> None:
        """Load the program from a folder of verified files, and run it once.

        Raises:
            UserError: the program does not answer in the shapes that its signature promises.
        """
        self._module, self.metadata = open_program(folder, device)
        self.version = version
        self.shapes = Shapes.of(folder, version.uri)
        self.shapes.check_module(self._module, version.uri, device)
        self._device = device

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights and buffers of the program by name, in CPU memory."""
        return {name: tensor.detach().cpu() for name, tensor in self._module.state_dict().items()}

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the probabilities NxK of uint8 images NxHxWx3, at the size that the model was exported for.

        Raises:
            UserError: the images are of another size or type.
        """
        self.shapes.check_images(images)
        return predict(self._module, images, self._device)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFiles:
    """A registered version as plain data, for processes that cannot reach MLflow."""

    version: Version
    files: Mapping[str, bytes] = field(repr=False)  # by path below the model's folder

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata that was registered with the model: class names, the crop, and so on."""
        import yaml

        return dict(yaml.safe_load(self.files[DESCRIPTION]).get("metadata") or {})

    def open(self, device: str = "cpu") -> LoadedModel:
        """Load the model on a device, after checking the hashes of its files again.

        Raises:
            UserError: the files were changed, or the program does not answer in the promised shapes.
        """
        with tempfile.TemporaryDirectory(prefix="model-") as scratch:
            for path, content in self.files.items():
                file = Path(scratch, path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            check_files(self.version, Path(scratch))
            return LoadedModel(self.version, Path(scratch), device)


def registered(tracking: Tracking, *, name: str, run_id: str, checkpoint_sha256: str) -> Version | None:
    """Return the version that was registered from a checkpoint of a run, or None."""
    check_name(name)
    client = patient(connect(tracking))
    with one_line_errors(tracking):
        for found in client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
            if found.tags.get("checkpoint_sha256") == checkpoint_sha256:
                return version_of(found)
    return None


def register(tracking: Tracking, candidate: Candidate) -> Version:
    """Export, load back, compare, upload, and create a version; return the existing one if the checkpoint has one.

    Raises:
        UserError: MLflow is not reachable or refuses.
        RuntimeError: the exported program does not answer like the module (largest difference above 1e-4).
    """
    existing = registered(
        tracking,
        name=candidate.name,
        run_id=candidate.run_id,
        checkpoint_sha256=candidate.checkpoint_sha256,
    )
    if existing is not None:
        return existing
    client = patient(connect(tracking))
    with tempfile.TemporaryDirectory(prefix="model-") as scratch:
        folder = Path(scratch, "model")
        with one_line_errors(tracking):
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
            for path, content in candidate.files.items():
                (folder / path).write_bytes(content)
            with one_line_errors(tracking):
                client.log_model_artifacts(logged.model_id, str(folder))
                client.finalize_logged_model(logged.model_id, "READY")
        except BaseException:
            with suppress(Exception):  # the first error matters more than this one
                client.finalize_logged_model(logged.model_id, "FAILED")
            raise
        tags = _tags(candidate) | {
            "export_max_abs_diff": f"{difference:.3g}",
            FILES_TAG: json.dumps(file_sha256s(folder)),
        }
    with one_line_errors(tracking):
        _link(client, candidate, logged.model_id)
        return _create_version(client, tracking, candidate, logged, tags)


def find(tracking: Tracking, uri: str) -> Version:
    """Return the version that models:/NAME@ALIAS or models:/NAME/VERSION names now; raise UserError without one."""
    return _resolve(patient(connect(tracking)), tracking, uri)


def fetch(tracking: Tracking, uri: str) -> ModelFiles:
    """Download the version that a URI names now.

    Raises:
        UserError: there is no such model, alias or version, or its files differ from the registered ones.
    """
    client = patient(connect(tracking))
    version = _resolve(client, tracking, uri)
    with verified(client, tracking, version) as folder:
        found = (file for file in folder.rglob("*") if file.is_file())
        files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in found}
    return ModelFiles(version=version, files=files)


def load(tracking: Tracking, uri: str) -> LoadedModel:
    """Load the model at ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` on the CPU.

    Raises:
        UserError: there is no such model, alias or version; its files differ from the registered ones; or the program
            does not answer in the shapes of its signature.
    """
    client = patient(connect(tracking))
    version = _resolve(client, tracking, uri)
    with verified(client, tracking, version) as folder:
        return LoadedModel(version, folder)


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
        **{f"test_{name}": repr(value) for name in FURTHER if (value := getattr(candidate.score, name)) is not None},
    }


def _link(client: MlflowClient, candidate: Candidate, model_id: str) -> None:
    """Show the model under its run, with the run's metrics at the model's step.

    The points keep their time, so that the run, which has the points already, does not get them twice.
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


def _create_version(
    client: MlflowClient, tracking: Tracking, candidate: Candidate, logged: LoggedModel, tags: dict[str, str]
) -> Version:
    """Create the version and its tags in one transaction; concurrent callers get different numbers."""
    log_of(client, tracking, candidate.name)  # creates the registered model if necessary
    # Use the location: MLflow looks up models:/<model id> at the process-wide tracking URI, which may be different.
    created = client.create_model_version(
        candidate.name,
        logged.artifact_location,
        candidate.run_id,
        tags,
        description=candidate.description or None,
        model_id=logged.model_id,
    )
    return version_of(created)


def _resolve(client: MlflowClient, tracking: Tracking, uri: str) -> Version:
    parts = re.fullmatch(rf"models:/({NAME})(?:@([\w-]+)|/(\d+))", uri)
    if parts is None:
        raise UserError(f"{uri!r} is not a registered model: give models:/NAME@{CHAMPION} or models:/NAME/VERSION")
    name, alias, number = parts.groups()
    with one_line_errors(tracking):
        found = find_version(client, name, alias or int(number))
        if found is not None:
            return found
        known = sorted(model.name for model in client.search_registered_models())
    if name not in known:
        hint = f"{nearest(name, known)}; it has: {', '.join(known) or 'none'}"
        raise UserError(f"MLflow at {tracking.description} has no model {name!r}{hint}")
    which = f"alias {alias!r}" if alias else f"version {number}"
    raise UserError(f"the model {name!r} at {tracking.description} has no {which}")
