"""A registered model that follows its alias: a new version is loaded, verified and tried, and then takes over."""

from __future__ import annotations

from dataclasses import dataclass

from infra.errors import UserError
from infra.registry.versions import LoadedModel, Version
from pipelines.evaluation.scoring import Predict
from pipelines.serving.models import Models
from pipelines.serving.preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A version that is ready to answer. A request keeps the version that it started with."""

    version: Version
    preprocessing: Preprocessing
    predict: Predict

    @classmethod
    def of(cls, model: LoadedModel) -> Served:
        """Check a loaded model against its metadata. The model has run once when it was loaded.

        Raises:
            UserError: the model's shapes differ from its metadata.
        """
        preprocessing = Preprocessing.of(model.metadata)
        side, classes = preprocessing.crop.image_size, len(preprocessing.class_names)
        if model.shapes.image != (side, side, 3):
            taken = "x".join(map(str, model.shapes.image))
            raise UserError(
                f"{model.version.uri} takes {taken}, but its metadata say {side}x{side}x3: register it again"
            )
        if model.shapes.classes != classes:
            raise UserError(
                f"{model.version.uri} returns {model.shapes.classes} probabilities, but its metadata name {classes} "
                "classes: register it again"
            )
        return cls(version=model.version, preprocessing=preprocessing, predict=model.predict)


class ModelWatcher:
    """The version that a URI names now. `now` is replaced as a whole, so readers need no lock."""

    def __init__(self, models: Models, device: str = "cpu") -> None:
        """Load the current version on a device.

        Raises:
            UserError: there is no such model, it is not what was registered, or it cannot be loaded.
        """
        self._models, self._device = models, device
        self.now = self._open(models.find())

    def refresh(self) -> bool:
        """Look up the version that the URI names, and switch to it if it is another one.

        Returns:
            True if the version has changed.

        Raises:
            UserError: MLflow does not answer, or the new version cannot be loaded. The current version stays.
        """
        version = self._models.find()
        if version.number == self.now.version.number:
            return False
        self.now = self._open(version)
        return True

    def _open(self, version: Version) -> Served:
        return Served.of(self._models.fetch(version).open(self._device))
