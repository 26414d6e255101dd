"""Which registered model a command means where the user names none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.errors import UserError
from infra.mlflow_client import Tracking, connect, patient, told_in_one_line
from infra.registry import CHAMPION, Version

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel


def chosen_model(tracking: Tracking, uri: str | None) -> str:
    """The URI itself, or the champion of the only registered model.

    A second model makes it ambiguous, also where only one of them has a champion: the alias of the one that the user
    means may have been removed, and the other model would answer in its place.

    Raises:
        UserError: none was named, and there is no champion or more than one model.
    """
    if uri:
        return uri
    client = patient(connect(tracking))
    with told_in_one_line(tracking):
        models = [model for model in client.search_registered_models() if model.aliases or model.latest_versions]
    champions = [model for model in models if CHAMPION in model.aliases]
    if not champions:
        found = f"; there is {_listed(models)}" if models else ""
        raise UserError(
            f"MLflow at {tracking.description} has no champion: train one, or name a version with --model{found}"
        )
    if len(models) > 1:
        several = "several champions" if len(champions) > 1 else "several models"
        raise UserError(f"there are {several}, name one with --model: {_listed(models)}")
    return f"models:/{champions[0].name}@{CHAMPION}"


def described(uri: str, version: Version) -> str:
    """The version that answers, and the alias by which it was found: `models:/photos/3 (champion)`."""
    alias = uri.partition("@")[2]
    return f"{version.uri} ({alias})" if alias else version.uri


def _listed(models: list[RegisteredModel]) -> str:
    """Each model's champion, or its newest version."""
    return ", ".join(sorted(map(_shown, models), key=lambda shown: (f"@{CHAMPION}" not in shown, shown)))


def _shown(model: RegisteredModel) -> str:
    if CHAMPION in model.aliases:
        return f"models:/{model.name}@{CHAMPION}"
    newest = max((int(version.version) for version in model.latest_versions), default=0)
    return f"models:/{model.name}/{newest} (not champion)"
