"""The alias ``champion`` of a registered model: one process at a time moves it, and only to verified files.

    standing = settle(tracking, "mnist")
    record(tracking, version, decision)
    move(tracking, version, standing, "gate")

    promote(tracking, version)
    roll_back(tracking, "mnist")

`settle` first finishes a killed process's move. `record` stores the decision of `infra.registry.gate` against
`standing.champion`. `move` returns False if another process has moved the alias: settle and decide again. `promote`
moves the alias by hand, even against the gate. `roll_back` returns to the previous champion.

A move always has the same order. It verifies the version's files, writes the entry in the log
(`infra.registry.champion_log`), sets the alias, and reads the log again. A killed process leaves an entry whose alias
is not set; the next process finishes that move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.errors import UserError
from infra.nearest import nearest
from infra.registry.champion_log import ChampionLog, Move, Why, check_log, log_of, now
from infra.registry.gate import VERDICT, Decision
from infra.registry.version import CHAMPION, Version, check_name, find_version, verify
from infra.tracking.client import Tracking, connect, one_line_errors, patient

if TYPE_CHECKING:
    from mlflow import MlflowClient

ROLLED_BACK = "rolled_back"
"""Tag of a version that was taken out of use, with the time. The gate does not promote such a version again."""

_GATE = "**Gate:**"
MOST_RACES = 100
"""Attempts to move an alias that others move, too; each failed attempt means that another writer succeeded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """The present champion, and the moves that led to it."""

    champion: Version | None
    moves: tuple[Move, ...]
    finished: Move | None  # a move of another process, finished just now


def settle(tracking: Tracking, name: str) -> Standing:
    """Return the champion of a model, after finishing a move that was started.

    Raises:
        UserError: MLflow has no such model.
    """
    check_name(name)
    client = patient(connect(tracking))
    with one_line_errors(tracking):
        if not client.search_registered_models(f"name = '{name}'"):
            known = sorted(model.name for model in client.search_registered_models())
            raise UserError(f"MLflow at {tracking.description} has no model {name!r}{nearest(name, known)}")
        moves, finished = _finish_last(client, log_of(client, tracking, name), name)
        return Standing(champion=find_version(client, name, CHAMPION), moves=tuple(moves), finished=finished)


def check_movable(tracking: Tracking, name: str) -> None:
    """Fail before anything is written if the model's log of champions was deleted.

    Raises:
        UserError: the log was deleted and can be restored.
    """
    check_name(name)
    client = patient(connect(tracking))
    with one_line_errors(tracking):
        check_log(client, name)


def champion(tracking: Tracking, name: str) -> Version | None:
    """Return the version that the alias ``champion`` names, or None; change nothing."""
    client = patient(connect(tracking))
    with one_line_errors(tracking):
        return find_version(client, name, CHAMPION)


def record(tracking: Tracking, version: Version, decision: Decision) -> None:
    """Store a decision in a version's tags; the verdict is last, so it never appears with the reasons of another."""
    client, number = patient(connect(tracking)), str(version.number)
    with one_line_errors(tracking):
        if version.decision is not None:
            client.delete_model_version_tag(version.name, number, VERDICT)
        client.update_model_version(version.name, number, described(version.description, decision))
        for key, value in {"gate_time": now(), **decision.tags}.items():
            client.set_model_version_tag(version.name, number, key, value)


def move(tracking: Tracking, version: Version, standing: Standing, why: Why) -> bool:
    """Make a version champion in place of the one in `standing`; return False if the alias was moved since.

    Raises:
        UserError: the version's files differ from the registered ones.
    """
    verify(tracking, version)
    client = patient(connect(tracking))
    with one_line_errors(tracking):
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
    """Make a version champion by hand, whichever version is champion now.

    Raises:
        UserError: the version's files differ from the registered ones.
    """
    for _ in range(MOST_RACES):
        standing = settle(tracking, version.name)
        if _number(standing.champion) == version.number or move(tracking, version, standing, "by hand"):
            return
    raise restless(version.name)


def roll_back(tracking: Tracking, name: str) -> tuple[int | None, Version]:
    """Make the previous champion the champion again.

    Returns:
        The number of the version taken out of use, and the version in use now.

    Raises:
        UserError: there is no previous champion, its version was deleted, its files differ from the registered ones, or
            another process has moved the alias meanwhile.
    """
    standing = settle(tracking, name)
    present, begun = standing.champion, standing.finished
    if present and begun and begun.why == "rollback":  # by a killed or a concurrent command
        return begun.over, present
    number = before(standing)
    if present is None or number is None:
        raise UserError(f"{name!r} has no champion before the present one: nothing to roll back to")
    with one_line_errors(tracking):
        former = find_version(patient(connect(tracking)), name, number)
    if former is None:
        raise UserError(f"models:/{name}/{number}, the champion before, was deleted: name another with --promote")
    if not move(tracking, former, standing, "rollback"):
        raise UserError(f"somebody else has moved models:/{name}@{CHAMPION} meanwhile: look at --history {name}")
    return present.number, former


def before(standing: Standing) -> int | None:
    """Return the number of the previous champion; rolling back twice goes back two champions."""
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
    """Return a version's description that ends with this decision, in place of an earlier decision."""
    said = f"{_GATE} {'champion' if decision.promote else 'not champion'}: {decision.reason}"
    return f"{description.partition(_GATE)[0].rstrip()}\n\n{said}".lstrip()


def restless(name: str) -> UserError:
    """Return the error of a process that lost every race for an alias."""
    return UserError(
        f"models:/{name}@{CHAMPION} was moved {MOST_RACES} times by others meanwhile: look at --history {name}, "
        "and run the same command again"
    )


def _number(version: Version | None) -> int | None:
    return version.number if version else None


def _finish_last(client: MlflowClient, log: ChampionLog, name: str) -> tuple[Sequence[Move], Move | None]:
    """Set the alias to the version of the last entry, unless that is done; return all entries, and the one finished.

    Two processes may do this at once, one of them with an entry that is no longer the last. So the log is read again
    after the alias was set, until there is no newer entry.
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
