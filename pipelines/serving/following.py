"""A registered model that follows its alias: what that names next is loaded, verified and tried, then takes over."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infra.errors import UserError
from infra.mlflow_client import Tracking
from infra.registry import Version, find, load
from pipelines.scoring import Predict
from pipelines.serving.pictures import Pictures


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A version that is ready to answer: a request keeps the one that it began with until it has its answer."""

    version: Version
    pictures: Pictures
    predict: Predict

    @classmethod
    def open(cls, tracking: Tracking, uri: str) -> Served:
        """Load a version and let it answer once.

        Raises:
            UserError: it is not there, not what was registered, or does not answer as it says.
        """
        model = load(tracking, uri)
        pictures = Pictures.of(model.metadata)
        side, classes = pictures.crop.image_size, len(pictures.class_names)
        try:
            _, answers = model.predict(np.zeros((2, side, side, 3), dtype=np.uint8)).shape
        except (RuntimeError, AssertionError) as error:  # how an exported program refuses another shape
            raise UserError(f"{model.version.uri} does not take the {side}x{side}x3 that it says") from error
        if answers != classes:
            raise UserError(f"{model.version.uri} answers with {answers} numbers and names {classes} classes")
        return cls(version=model.version, pictures=pictures, predict=model.predict)


class Following:
    """What a URI with an alias names now. `now` is replaced as a whole, so that readers need no lock."""

    def __init__(self, tracking: Tracking, uri: str) -> None:
        """Raises UserError: there is no such model, or it cannot be loaded."""
        self._tracking, self._uri = tracking, uri
        self.now = Served.open(tracking, uri)

    def refresh(self) -> bool:
        """Ask what the URI names, and change over to it if that is another version.

        Returns:
            Whether it was.

        Raises:
            UserError: MLflow does not answer, or that version cannot be loaded; the present one stays.
        """
        version = find(self._tracking, self._uri)
        if version.number == self.now.version.number:
            return False
        self.now = Served.open(self._tracking, version.uri)
        return True
