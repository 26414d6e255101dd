"""Which registered model a command means where the user names none."""

from __future__ import annotations

from dataclasses import dataclass

from infra.errors import UserError
from infra.mlflow_client import Tracking, connect, patient, told_in_one_line
from infra.registry import CHAMPION, Version


@dataclass(frozen=True, slots=True)
class _Model:
    name: str
    newest: int  # version; 0 where there is none
    has_champion: bool

    def __str__(self) -> str:
        """Its champion, or its newest version."""
        return f"models:/{self.name}" + (f"@{CHAMPION}" if self.has_champion else f"/{self.newest} (not champion)")


def chosen_model(tracking: Tracking, uri: str | None) -> str:
    """The URI itself, or the champion of the only registered model.

    A second model makes it ambiguous, also where only one of them has a champion: the alias of the one that the user
    means may have been removed, and the other model would answer in its place.

    Raises:
        UserError: none was named, and there is no champion or more than one model.
    """
    if uri:
        return uri
    models = _models(tracking)
    champions = [model for model in models if model.has_champion]
    listed = ", ".join(map(str, models))
    if not champions:
        found = f"; there is {listed}" if models else ""
        raise UserError(
            f"MLflow at {tracking.description} has no champion: train one, or name a version with --model{found}"
        )
    if len(models) > 1:
        several = "several champions" if len(champions) > 1 else "several models"
        raise UserError(f"there are {several}, name one with --model: {listed}")
    return str(champions[0])


def described(uri: str, version: Version) -> str:
    """The version that answers, and the alias by which it was found: `models:/photos/3 (champion)`."""
    alias = uri.partition("@")[2]
    return f"{version.uri} ({alias})" if alias else version.uri


def _models(tracking: Tracking) -> list[_Model]:
    """The registered models that have a version, those with a champion first."""
    client = patient(connect(tracking))
    with told_in_one_line(tracking):
        found = [
            _Model(
                name=model.name,
                newest=max((int(version.version) for version in model.latest_versions), default=0),
                has_champion=CHAMPION in model.aliases,
            )
            for model in client.search_registered_models()
        ]
    models = [model for model in found if model.newest or model.has_champion]
    return sorted(models, key=lambda model: (not model.has_champion, model.name))
