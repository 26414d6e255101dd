"""A classifier as an exported program (``torch.export``) in an MLflow model folder; it runs without this project."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from infra.errors import UserError
from infra.tracking.client import prepare_environment

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import nn

_TOLERANCE = 1e-4  # largest difference between a probability before and after export
_CHECKED_BATCHES = (1, 2, 5)
DESCRIPTION, _REQUEST = "MLmodel", "serving_input_example.json"  # as MLflow names them
_FLAVOR = "pytorch"
_SERVED, _CODE = "served_model.py", "code"
_PROGRAM = "model.pt2"  # in the folder that the description names, as MLflow writes it
_CPU = "cpu"


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestReader:
    """Code that turns the content of a request into images; it is copied into the model.

    `infra.registry.served_model` imports it there.
    """

    module: str  # has `Preprocessing.of(metadata)`, its `read` and `answers`, and the exception `Refused`
    files: Mapping[str, Path]  # the module and its imports, by path below the root of the packages
    requirements: tuple[str, ...]  # pinned packages that these files need


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """A classifier to export."""

    module: nn.Module  # uint8 NxHxWx3 in, probabilities NxK out: preprocessing and softmax inside
    example: NDArray[np.uint8]  # NxHxWx3, N >= 2
    metadata: Mapping[str, Any]  # JSON values
    reader: RequestReader | None = None  # None = the model takes only arrays


@dataclass(frozen=True, slots=True)
class Shapes:
    """The shapes in a program's signature: uint8 images N x `image`, probabilities N x `classes`."""

    image: tuple[int, int, int]
    classes: int

    @classmethod
    def of(cls, folder: Path, what: str) -> Self:
        """Read the shapes of an MLflow model folder.

        Raises:
            UserError: the signature is not that of an image classifier.
        """
        from mlflow.models import Model, ModelSignature

        model = Model.load(str(folder))
        own = model.flavors[_FLAVOR].get("signature")  # a servable model keeps its signature here
        signature = ModelSignature.from_dict(own) if own else model.signature
        try:
            (images,), (probabilities,) = signature.inputs.inputs, signature.outputs.inputs
            (_, height, width, channels), (_, classes) = images.shape, probabilities.shape
        except (AttributeError, TypeError, ValueError):
            raise UserError(f"the signature of {what} is not that of an image classifier: {signature}") from None
        return cls((height, width, channels), classes)

    def check_images(self, images: NDArray[Any]) -> None:
        """Raise UserError if the program does not take this batch."""
        if images.dtype != np.uint8 or images.shape[1:] != self.image:
            expected, found = "x".join(map(str, self.image)), "x".join(map(str, images.shape))
            raise UserError(f"images must be uint8 of N x {expected}, got {images.dtype} of {found}")

    def check_module(self, module: nn.Module, what: str, device: str = _CPU) -> None:
        """Raise UserError if the program does not answer one image in the promised shape."""
        expected = (1, self.classes)
        try:
            found = predict(module, np.zeros((1, *self.image), dtype=np.uint8), device).shape
        except (RuntimeError, AssertionError) as error:  # an exported program guards the shapes it was made for
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"{what} does not take images of {self.image}: {first}") from error
        if found != expected:
            raise UserError(f"{what} answers one image in the shape {found}, its signature promises {expected}")


def save_program(program: Program, folder: Path, *, run_id: str, model_id: str) -> float:
    """Write the MLflow model to ``folder``, load it back, and return the largest difference of a probability.

    The module itself stays unchanged. The exported program runs on the CPU with any batch size; `open_program` can move
    it to another device.

    Raises:
        ValueError: the example has fewer than two images.
        RuntimeError: the largest difference is above 1e-4.
    """
    import mlflow.pytorch
    import torch
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    example = np.array(program.example)
    if len(example) < 2:  # noqa: PLR2004 - torch.export makes a constant of a batch of one
        raise ValueError(f"example needs at least 2 images, or the batch size would be fixed; got {len(example)}")
    module = copy.deepcopy(program.module).cpu().eval()
    classes = predict(module, example).shape[1]
    further = program.reader.requirements if program.reader else ()
    mlflow.pytorch.save_model(
        module,
        str(folder),
        mlflow_model=Model(run_id=run_id, model_id=model_id, metadata=dict(program.metadata)),
        serialization_format="pt2",
        input_example=example,
        signature=ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, *example.shape[1:]))]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, classes))]),
        ),
        pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", f"numpy=={np.__version__}", *further],
    )
    if program.reader:
        _make_servable(folder, program.reader, example)
    exported, _ = open_program(folder)
    batches = [example[np.arange(size) % len(example)] for size in _CHECKED_BATCHES]
    difference = max(float(np.abs(predict(exported, batch) - predict(module, batch)).max()) for batch in batches)
    if not difference <= _TOLERANCE:
        raise RuntimeError(f"the exported model's probabilities differ by {difference:.3g} from the module's")
    return difference


def open_program(folder: Path, device: str = _CPU) -> tuple[nn.Module, dict[str, Any]]:
    """Return the program on a device, and its metadata; MLflow refuses a program that holds a pickle."""
    prepare_environment()
    import mlflow.pytorch
    from mlflow.models import Model

    description = Model.load(str(folder))
    module = mlflow.pytorch.load_model(str(folder))  # refuses pickles
    if device != _CPU:
        module = _program_on(folder / description.flavors[_FLAVOR]["model_data"] / _PROGRAM, device)
    return module, dict(description.metadata or {})


def _program_on(file: Path, device: str) -> nn.Module:
    """Load a checked program again and move it.

    The module that MLflow returns cannot move: its graph names the device of the export in assertions and new tensors.
    """
    import torch

    return moved(torch.export.load(file), device)


def moved(program: torch.export.ExportedProgram, device: str) -> nn.Module:
    """Return the program as a module whose weights, constants and operations are on `device`."""
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(program, device).module()


def _make_servable(folder: Path, reader: RequestReader, example: NDArray[np.uint8]) -> None:
    """Add a second flavor that answers requests on servers; the first flavor stays the bare program."""
    import mlflow.pyfunc
    from mlflow.models import Model

    from infra.registry import served_model

    shutil.copyfile(served_model.__file__, folder / _SERVED)
    for path, source in reader.files.items():
        (folder / _CODE / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / _CODE / path)
    request = {"instances": [{served_model.COLUMN: image.tolist()} for image in example[:1]]}
    (folder / _REQUEST).write_text(json.dumps(request))
    model = Model.load(str(folder))
    environment = model.flavors[mlflow.pyfunc.FLAVOR_NAME]["env"]
    mlflow.pyfunc.add_to_model(
        model,
        loader_module="mlflow.pyfunc.model",
        code=_CODE,
        model_code_path=_SERVED,
        conda_env=environment["conda"],
        python_env=environment["virtualenv"],
        artifacts={"model": {"path": "."}},
        reader=reader.module,
        files_sha256={path: sha256 for path, sha256 in file_sha256s(folder).items() if path != DESCRIPTION},
    )
    model.flavors[_FLAVOR]["signature"] = model.signature.to_dict()
    model.signature = None  # no schema of MLflow allows arrays, files and base64 together
    model.save(str(folder / DESCRIPTION))


def predict(module: nn.Module, images: NDArray[np.uint8], device: str = _CPU) -> NDArray[np.float32]:
    """Return the probabilities NxK of images NxHxWx3; the module is on `device`."""
    import torch

    with torch.inference_mode():
        probabilities: NDArray[np.float32] = module(torch.tensor(images, device=device)).float().cpu().numpy()
    return probabilities


def file_sha256s(folder: Path) -> dict[str, str]:
    """Return path -> SHA-256 of every file below ``folder``, except bytecode that Python writes when a server runs."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.parent.name != "__pycache__")
    return {file.relative_to(folder).as_posix(): _sha256(file) for file in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
