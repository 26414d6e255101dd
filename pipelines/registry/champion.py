"""The champion of a model: the default model of commands, and the history of champions."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from infra.errors import UserError
from infra.registry.champion import settle
from infra.registry.versions import CHAMPION, Version
from infra.tracking.client import Tracking, connect, one_line_errors, patient


@dataclass(frozen=True, slots=True)
class _Model:
    name: str
    newest: int  # version number; 0 = none
    has_champion: bool

    def __str__(self) -> str:
        """Return the URI of the model's champion, or of its newest version."""
        return f"models:/{self.name}" + (f"@{CHAMPION}" if self.has_champion else f"/{self.newest} (not champion)")


def chosen_model(tracking: Tracking, uri: str | None) -> str:
    """Return `uri` if it is given, else the champion of the only registered model.

    A second model makes the default ambiguous, even if only one model has a champion. The alias of the intended model
    may have been removed, and the other model would be used in its place.

    Raises:
        UserError: `uri` is not given, and there is no champion or more than one model.
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
    """Return the version that is used and the alias in `uri`, if any: `models:/photos/3 (champion)`."""
    alias = uri.partition("@")[2]
    return f"{version.uri} ({alias})" if alias else version.uri


def history(tracking: Tracking, name: str) -> Table:
    """Return a table of a model's champions: since when, which version, in place of which, and by what."""
    table = Table("when", "champion", "over", "by", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for move in settle(tracking, name).moves:
        over = f"version {move.over}" if move.over else "none"
        table.add_row(move.time, f"version {move.version}", over, move.why)
    return table


def _models(tracking: Tracking) -> list[_Model]:
    """Return the registered models that have a version, those with a champion first."""
    client = patient(connect(tracking))
    with one_line_errors(tracking):
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
