"""The alias ``champion`` of a registered model: moved by one process at a time, and only to bytes that were checked.

    standing = settle(tracking, "mnist")               # after finishing what a killed process left undone
    record(tracking, version, decision)                # of infra.gate, against standing.champion
    move(tracking, version, standing, "gate")          # False: somebody else has moved it, so look and decide again

    promote(tracking, version)                         # by hand, whatever the gate thinks of it
    roll_back(tracking, "mnist")                       # to the champion before

The order is always: verify the version's files, write the entry in the log (`infra.champion_log`), set the alias, read
the log again. What a killed process leaves is an entry without its alias, which the next one finishes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.champion_log import ChampionLog, Move, Why, check_log, log_of, now
from infra.errors import UserError
from infra.gate import VERDICT, Decision
from infra.mlflow_client import Tracking, connect, patient, told_in_one_line
from infra.nearest import nearest
from infra.version import CHAMPION, Version, check_name, find_version, verify

if TYPE_CHECKING:
    from mlflow import MlflowClient

ROLLED_BACK = "rolled_back"
"""Tag of a version that was taken out of use, with the time: the gate does not let it in again."""

_GATE = "**Gate:**"
MOST_RACES = 100
"""Attempts to move an alias that others move meanwhile; each lost one means that another writer has won."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Who is champion, and how it came to be."""

    champion: Version | None
    moves: tuple[Move, ...]
    finished: Move | None  # that somebody else began, and that was finished just now


def settle(tracking: Tracking, name: str) -> Standing:
    """Who is champion of a model, after finishing a move that was begun.

    Raises:
        UserError: MLflow has no such model.
    """
    check_name(name)
    client = patient(connect(tracking))
    with told_in_one_line(tracking):
        if not client.search_registered_models(f"name = '{name}'"):
            known = sorted(model.name for model in client.search_registered_models())
            raise UserError(f"MLflow at {tracking.description} has no model {name!r}{nearest(name, known)}")
        moves, finished = _finish_last(client, log_of(client, tracking, name), name)
        return Standing(champion=find_version(client, name, CHAMPION), moves=tuple(moves), finished=finished)


def check_movable(tracking: Tracking, name: str) -> None:
    """Refuse, before anything is written, a model whose log of champions was deleted.

    Raises:
        UserError: the log was deleted and can be restored.
    """
    check_name(name)
    client = patient(connect(tracking))
    with told_in_one_line(tracking):
        check_log(client, name)


def champion(tracking: Tracking, name: str) -> Version | None:
    """The version that the alias ``champion`` names, if there is one; nothing is changed."""
    client = patient(connect(tracking))
    with told_in_one_line(tracking):
        return find_version(client, name, CHAMPION)


def record(tracking: Tracking, version: Version, decision: Decision) -> None:
    """Keep what the gate said in a version's tags: the verdict last, so that it never stands beside other grounds."""
    client, number = patient(connect(tracking)), str(version.number)
    with told_in_one_line(tracking):
        if version.decision is not None:
            client.delete_model_version_tag(version.name, number, VERDICT)
        client.update_model_version(version.name, number, described(version.description, decision))
        for key, value in {"gate_time": now(), **decision.tags}.items():
            client.set_model_version_tag(version.name, number, key, value)


def move(tracking: Tracking, version: Version, standing: Standing, why: Why) -> bool:
    """Make a version champion in place of the standing one; False where the alias has been moved since.

    Raises:
        UserError: the version's files are not those that were registered.
    """
    verify(tracking, version)
    client = patient(connect(tracking))
    with told_in_one_line(tracking):
        over = _number(standing.champion)
        if _number(find_version(client, version.name, CHAMPION)) != over:  # somebody set the alias in MLflow
            return False
        log = log_of(client, tracking, version.name)
        last = standing.moves[-1].number if standing.moves else 0
        if not log.append(last + 1, version=version.number, over=over, why=why):
            return False
        _finish_last(client, log, version.name)
    return True


def promote(tracking: Tracking, version: Version) -> None:
    """Make a version champion by hand, whoever is it now.

    Raises:
        UserError: the version's files are not those that were registered.
    """
    for _ in range(MOST_RACES):
        standing = settle(tracking, version.name)
        if _number(standing.champion) == version.number or move(tracking, version, standing, "by hand"):
            return
    raise restless(version.name)


def roll_back(tracking: Tracking, name: str) -> tuple[int | None, Version]:
    """Make the champion before champion again; returns (number of the one taken out of use, the one in use now).

    Raises:
        UserError: there was no champion before, its version was deleted, its files are not those registered, or
            somebody else has moved the alias meanwhile.
    """
    standing = settle(tracking, name)
    present, begun = standing.champion, standing.finished
    if present and begun and begun.why == "rollback":  # a killed command's, or one that runs beside this
        return begun.over, present
    number = before(standing)
    if present is None or number is None:
        raise UserError(f"{name!r} has no champion before the present one: nothing to roll back to")
    with told_in_one_line(tracking):
        former = find_version(patient(connect(tracking)), name, number)
    if former is None:
        raise UserError(f"models:/{name}/{number}, the champion before, was deleted: name another with --promote")
    if not move(tracking, former, standing, "rollback"):
        raise UserError(f"somebody else has moved models:/{name}@{CHAMPION} meanwhile: look at --history {name}")
    return present.number, former


def before(standing: Standing) -> int | None:
    """The number of the champion before the present one; rolling back twice goes back two."""
    line: list[int] = []
    for entry in standing.moves:
        if entry.over is not None and line[-1:] != [entry.over]:  # set in MLflow, past the log
            line.append(entry.over)
        if entry.why == "rollback":
            line.pop()
        if line[-1:] != [entry.version]:
            line.append(entry.version)
    if standing.champion and line[-1:] != [standing.champion.number]:
        line.append(standing.champion.number)
    return line[-2] if len(line) > 1 else None


def described(description: str, decision: Decision) -> str:
    """A version's description with what the gate says at its end, in the place of what it said before."""
    said = f"{_GATE} {'champion' if decision.promote else 'not champion'}: {decision.reason}"
    return f"{description.partition(_GATE)[0].rstrip()}\n\n{said}".lstrip()


def restless(name: str) -> UserError:
    """What to tell who lost every race for an alias."""
    return UserError(
        f"models:/{name}@{CHAMPION} was moved {MOST_RACES} times by others meanwhile: look at --history {name}, "
        "and run the same command again"
    )


def _number(version: Version | None) -> int | None:
    return version.number if version else None


def _finish_last(client: MlflowClient, log: ChampionLog, name: str) -> tuple[Sequence[Move], Move | None]:
    """Let the alias stand where the last entry says, unless that was done before; all entries, and the one finished.

    Two may do this at once, and one of them with an entry that is no longer the last: hence the log is read again
    after the alias was set, until nothing has come after it.
    """
    applied: Move | None = None
    for _ in range(MOST_RACES):
        moves = log.moves()
        last = moves[-1] if moves else None
        if last is None or (applied and applied.number == last.number) or (applied is None and last.done):
            return moves, applied
        _apply(client, name, last)
        log.finish(last)
        applied = last
    raise restless(name)


def _apply(client: MlflowClient, name: str, move: Move) -> None:
    version = find_version(client, name, move.version)
    if version is None:  # deleted meanwhile
        return
    if move.why == "rollback" and move.over is not None and find_version(client, name, move.over):
        client.set_model_version_tag(name, str(move.over), ROLLED_BACK, move.time)
    if move.why == "by hand" and ROLLED_BACK in version.tags:
        client.delete_model_version_tag(name, str(move.version), ROLLED_BACK)
    client.set_registered_model_alias(name, CHAMPION, str(move.version))
