"""The model that `mlflow models serve -m models:/NAME@champion --env-manager local` serves.

`mlflow.pyfunc.load_model` loads it, too. This file is copied into each registered model and runs from there (MLflow's
"models from code"), without an installation of this project. From this project it imports only the model's own copy of
the code that reads requests (`exported_program.RequestReader`).
"""

from __future__ import annotations

import hashlib
import importlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model, set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import FLAVOR_NAME
from mlflow.pyfunc.model import PythonModel, PythonModelContext

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COLUMN = "image"
_ONE_IMAGE = 3  # dimensions
_MALFORMED = 400  # HTTP status
_EXPECTED = (
    "send an array of uint8 images N x H x W x 3, a list of images, or a table or dictionaries with a column 'image'"
)


class RefusedRequest(MlflowException):
    """A refused request, with an HTTP status and the reason."""

    def __init__(self, reason: str, status: int) -> None:
        self._reason, self._status = reason, status
        super().__init__(reason, INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        return self._reason

    @message.setter
    def message(self, text: str) -> None:
        """Ignore the new text: MLflow would put the whole request before the reason."""

    def get_http_status_code(self) -> int:
        return self._status


class ServedModel(PythonModel):
    """A classifier of images, given as arrays, files or base64 text.

    This flavor has no signature: with one, MLflow would refuse either arrays or named columns before they get here.
    """

    def load_context(self, context: PythonModelContext) -> None:
        import mlflow.pytorch

        os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
        folder = Path(context.artifacts["model"])
        model = Model.load(str(folder))
        flavor = model.flavors[FLAVOR_NAME]
        _check(folder, flavor["files_sha256"])
        self._reader = importlib.import_module(flavor["reader"])
        self._preprocessing = self._reader.Preprocessing.of(model.metadata)
        self._program = mlflow.pytorch.load_model(str(folder))
        # one thread: concurrent forward passes, each with several threads, would compete for the same cores
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return a row for each image: class, probability, and probabilities by class name.

        Args:
            context: unused.
            model_input: an array N x H x W x 3, or H x W x 3 for one image; a list of images, or of `{"image": IMAGE}`;
                a table or a dictionary with a column `image`. IMAGE is an array, the bytes of a file, or its base64.
            params: unused.
        """
        try:
            images = self._preprocessing.read(images_of(model_input))
        except self._reader.Refused as refused:
            raise RefusedRequest(str(refused), refused.status) from None
        probabilities = self._thread.submit(self._probabilities, images).result()
        answers: list[dict[str, Any]] = self._preprocessing.answers(probabilities)
        return answers

    def _probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            found: NDArray[np.float32] = self._program(torch.from_numpy(images)).float().numpy()
        return found


def images_of(model_input: Any) -> list[Any]:
    """Return the images in the input that MLflow passes; raise `RefusedRequest` if it holds none."""
    if isinstance(model_input, dict | pd.DataFrame):
        return list(_column(model_input))
    if isinstance(model_input, str | bytes) or getattr(model_input, "ndim", 0) == _ONE_IMAGE:
        return [model_input]
    try:
        images = list(model_input)
    except TypeError:
        raise RefusedRequest(f"{_EXPECTED}, got {type(model_input).__name__}", _MALFORMED) from None
    return [_column(image) if isinstance(image, dict) else image for image in images]


def _column(named: Any) -> Any:
    if COLUMN not in named:
        found = ", ".join(map(str, named)) or "none"
        raise RefusedRequest(f"{_EXPECTED}, got columns {found}", _MALFORMED)
    return named[COLUMN]


def _check(folder: Path, expected: dict[str, str]) -> None:
    """Raise an error if a file of the model differs from the registered one."""
    for path, sha256 in expected.items():
        file = folder / path
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
            raise MlflowException(f"{path} is not what was registered: register the model again")


set_model(ServedModel())
