"""Models as data that any process can open on its device: checkpoints, registered versions, ensembles.

Ray transfers bytes and numbers; no module is pickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from infra.registry.versions import ModelFiles
from pipelines.checkpoint import INPUTS, Checkpoint
from pipelines.evaluation.placement import PortableModel
from pipelines.evaluation.scoring import Predict

if TYPE_CHECKING:
    from pipelines.evaluation.classifier import ServedClassifier


@dataclass(frozen=True, kw_only=True, slots=True)
class RunModel:
    """A run's checkpoint, reduced to the files that inference needs."""

    checkpoint: Checkpoint
    dense_for: int = 0
    """Side of the crop, to score whole images at every position (`resnet_core.evaluation.views.Dense`); 0 = crops."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, *, dense_for: int = 0) -> Self:
        """Keep the weights and `INPUTS` of a checkpoint, and drop its other files."""
        wanted = (checkpoint.weights_name, INPUTS)
        files = {name: data for name, data in checkpoint.files.items() if name in wanted}
        return cls(checkpoint=replace(checkpoint, files=files), dense_for=dense_for)

    def open(self, device: str) -> Predict:
        """Load the classifier on a device, in fp32."""
        return self.classifier(device).predict

    def classifier(self, device: str) -> ServedClassifier:
        """Load the module on a device."""
        from pipelines.evaluation.classifier import ServedClassifier
        from resnet_core.evaluation.views import Dense

        classifier = ServedClassifier.from_checkpoint(self.checkpoint)
        if self.dense_for:
            classifier.model = Dense(classifier.model, self.dense_for, multi_label=classifier.multi_label)
        return classifier.to(device)


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionModel:
    """A registered version."""

    files: ModelFiles

    def open(self, device: str) -> Predict:
        """Load the exported program on a device. Raises UserError as `ModelFiles.open` does."""
        return self.files.open(device).predict


@dataclass(frozen=True, kw_only=True, slots=True)
class Ensemble:
    """Several models that predict as one: the mean of their probabilities."""

    members: tuple[PortableModel, ...]

    def open(self, device: str) -> Predict:
        """Load all members on a device."""
        return ensemble([member.open(device) for member in self.members])


def ensemble(members: Sequence[Predict]) -> Predict:
    """Return a function that averages the probabilities of several models."""

    import torch

    from resnet_core.evaluation.views import mean_probabilities

    def predict(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        mean: npt.NDArray[np.float32] = mean_probabilities(torch.from_numpy(one(images)) for one in members).numpy()
        return mean

    return predict
