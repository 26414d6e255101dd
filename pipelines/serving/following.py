"""A registered model that follows its alias: what that names next is loaded, verified and tried, then takes over."""

from __future__ import annotations

from dataclasses import dataclass

from infra.errors import UserError
from infra.registry import LoadedModel, Version
from pipelines.scoring import Predict
from pipelines.serving.models import Models
from pipelines.serving.pictures import Pictures


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A version that is ready to answer: a request keeps the one that it began with until it has its answer."""

    version: Version
    pictures: Pictures
    predict: Predict

    @classmethod
    def of(cls, model: LoadedModel) -> Served:
        """Check a model, which has answered once when it was loaded, against what its metadata say.

        Raises:
            UserError: the model is not what its metadata say.
        """
        pictures = Pictures.of(model.metadata)
        side, classes = pictures.crop.image_size, len(pictures.class_names)
        if model.shapes.image != (side, side, 3):
            taken = "x".join(map(str, model.shapes.image))
            raise UserError(f"{model.version.uri} takes {taken} and says that it takes {side}x{side}x3")
        if model.shapes.classes != classes:
            raise UserError(f"{model.version.uri} answers {model.shapes.classes} numbers and names {classes} classes")
        return cls(version=model.version, pictures=pictures, predict=model.predict)


class Following:
    """What a URI with an alias names now. `now` is replaced as a whole, so that readers need no lock."""

    def __init__(self, models: Models, device: str = "cpu") -> None:
        """Load the present version on a device.

        Raises:
            UserError: there is no such model, it is not what was registered, or it cannot be loaded.
        """
        self._models, self._device = models, device
        self.now = self._open(models.find())

    def refresh(self) -> bool:
        """Ask what the URI names, and change over to it if that is another version.

        Returns:
            Whether it was.

        Raises:
            UserError: MLflow does not answer, or that version cannot be loaded; the present one stays.
        """
        version = self._models.find()
        if version.number == self.now.version.number:
            return False
        self.now = self._open(version)
        return True

    def _open(self, version: Version) -> Served:
        return Served.of(self._models.fetch(version).open(self._device))
