"""Which registered model a command means where the user names none."""

from __future__ import annotations

from infra.errors import UserError
from infra.mlflow_client import Tracking, connect, patient, told_in_one_line
from infra.registry import CHAMPION


def chosen_model(tracking: Tracking, uri: str | None) -> str:
    """The URI itself, or that of the only champion there is.

    Raises:
        UserError: none was named, and there is no champion or more than one.
    """
    if uri:
        return uri
    client = patient(connect(tracking))
    with told_in_one_line(tracking):
        models = client.search_registered_models()
    champions = sorted(f"models:/{model.name}@{CHAMPION}" for model in models if CHAMPION in model.aliases)
    if not champions:
        raise UserError(f"MLflow at {tracking.description} has no champion: train one, or name a version with --model")
    if len(champions) > 1:
        raise UserError(f"there are several champions, name one with --model: {', '.join(champions)}")
    return champions[0]
