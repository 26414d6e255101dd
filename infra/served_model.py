"""What `mlflow models serve -m models:/NAME@champion --env-manager local` and `mlflow.pyfunc.load_model` answer with.

This file is copied into each registered model and run from there (MLflow's "models from code"), where this project need
not be installed: it imports nothing of ours but the model's own copy of what reads requests (`exported.RequestReader`).
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


class Refusal(MlflowException):
    """A request that gets an HTTP status and the reason."""

    def __init__(self, reason: str, status: int) -> None:
        self._reason, self._status = reason, status
        super().__init__(reason, INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        return self._reason

    @message.setter
    def message(self, text: str) -> None:
        """MLflow would put all that was sent before the reason."""

    def get_http_status_code(self) -> int:
        return self._status


class ServedModel(PythonModel):
    """Images, as arrays, files or base64 text, to the probabilities of their classes.

    The model has no signature for this flavor: MLflow would refuse arrays beside named columns before they get here.
    """

    def load_context(self, context: PythonModelContext) -> None:
        import mlflow.pytorch

        os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
        folder = Path(context.artifacts["model"])
        model = Model.load(str(folder))
        flavor = model.flavors[FLAVOR_NAME]
        _check(folder, flavor["files_sha256"])
        self._reader = importlib.import_module(flavor["reader"])
        self._pictures = self._reader.Pictures.of(model.metadata)
        self._program = mlflow.pytorch.load_model(str(folder))
        # one thread: forward passes side by side, each with a team of threads, would fight for the same cores
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """A row for each image: class, probability, and probabilities by the names of the classes.

        Args:
            context: of MLflow.
            model_input: an array N x H x W x 3, or H x W x 3 for one image; a list of images, or of `{"image": IMAGE}`;
                a table or a dictionary with a column `image`. IMAGE is an array, the bytes of a file, or its base64.
            params: none.
        """
        try:
            images = self._pictures.read(images_of(model_input))
        except self._reader.Refused as refused:
            raise Refusal(str(refused), refused.status) from None
        probabilities = self._thread.submit(self._probabilities, images).result()
        answers: list[dict[str, Any]] = self._pictures.answers(probabilities)
        return answers

    def _probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            found: NDArray[np.float32] = self._program(torch.from_numpy(images)).float().numpy()
        return found


def images_of(model_input: Any) -> list[Any]:
    """The images in whatever MLflow hands on. Raises `Refusal` where there are none to be found."""
    if isinstance(model_input, dict | pd.DataFrame):
        return list(_column(model_input))
    if isinstance(model_input, str | bytes) or getattr(model_input, "ndim", 0) == _ONE_IMAGE:
        return [model_input]
    try:
        images = list(model_input)
    except TypeError:
        raise Refusal(f"{_EXPECTED}, got {type(model_input).__name__}", _MALFORMED) from None
    return [_column(image) if isinstance(image, dict) else image for image in images]


def _column(named: Any) -> Any:
    if COLUMN not in named:
        found = ", ".join(map(str, named)) or "none"
        raise Refusal(f"{_EXPECTED}, got columns {found}", _MALFORMED)
    return named[COLUMN]


def _check(folder: Path, expected: dict[str, str]) -> None:
    """Refuse to start with files that are not those that were written beside this one."""
    for path, sha256 in expected.items():
        file = folder / path
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
            raise MlflowException(f"{path} is not what was registered: register the model again")


set_model(ServedModel())
