"""The alias goes where it was sent, from wherever a process was killed, and back again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.registry.champion import (
    ROLLED_BACK,
    Standing,
    before,
    champion,
    check_movable,
    move,
    promote,
    roll_back,
    settle,
)
from infra.registry.champion_log import LOG_TAG, Move, Why, log_of
from infra.registry.exported_program import file_sha256s
from infra.registry.version import FILES_TAG, Version, find_version, version_of
from infra.tracking.client import Tracking, connect
from tests.processes import KILLED, exit_codes, kill_at

NAME = "digits"


def files_of(tracking: Tracking, number: int) -> Path:
    return Path(tracking.uri.removeprefix("sqlite:///")).parent / f"files-{number}"


def made(tracking: Tracking, number: int) -> Version:
    """A version without a model in it: what is promoted is bytes."""
    client = connect(tracking)
    log_of(client, tracking, NAME)
    folder = files_of(tracking, number)
    folder.mkdir()
    (folder / "model.bin").write_bytes(bytes([number]))
    tags = {FILES_TAG: json.dumps(file_sha256s(folder))}
    version = version_of(client.create_model_version(NAME, str(folder), tags=tags))
    assert version.number == number
    return version


@pytest.fixture
def versions(tracking: Tracking) -> list[Version]:
    return [made(tracking, number) for number in (1, 2, 3)]


def numbered(tracking: Tracking, number: int) -> Version:
    found = find_version(connect(tracking), NAME, number)
    assert found is not None
    return found


def present(tracking: Tracking) -> int | None:
    found = champion(tracking, NAME)
    return found.number if found else None


def test_promotions_are_logged_and_undone_one_by_one(tracking: Tracking, versions: list[Version]) -> None:
    for version in versions:
        promote(tracking, version)
        promote(tracking, version)  # is nothing
    assert [(entry.version, entry.over, entry.why) for entry in settle(tracking, NAME).moves] == [
        (1, None, "by hand"),
        (2, 1, "by hand"),
        (3, 2, "by hand"),
    ]
    assert [roll_back(tracking, NAME)[0], present(tracking)] == [3, 2]
    assert [roll_back(tracking, NAME)[0], present(tracking)] == [2, 1]
    with pytest.raises(UserError, match="'digits' has no champion before the present one"):
        roll_back(tracking, NAME)
    out = [ROLLED_BACK in numbered(tracking, number).tags for number in (1, 2, 3)]
    assert out == [False, True, True]
    promote(tracking, versions[1])
    assert ROLLED_BACK not in numbered(tracking, 2).tags
    assert roll_back(tracking, NAME)[1].number == 1


def test_an_alias_set_in_mlflow_counts(tracking: Tracking, versions: list[Version]) -> None:
    promote(tracking, versions[0])
    standing = settle(tracking, NAME)
    connect(tracking).set_registered_model_alias(NAME, "champion", "2")
    assert not move(tracking, versions[2], standing, "gate")  # decided against version 1
    assert present(tracking) == 2
    promote(tracking, versions[2])
    assert roll_back(tracking, NAME)[1].number == 2


def test_a_move_decided_against_who_is_champion_no_more_is_refused(tracking: Tracking, versions: list[Version]) -> None:
    promote(tracking, versions[0])
    first, second = settle(tracking, NAME), settle(tracking, NAME)
    assert move(tracking, versions[1], first, "gate")
    assert not move(tracking, versions[2], second, "gate")
    assert present(tracking) == 2


def test_changed_bytes_do_not_become_champion(tracking: Tracking, versions: list[Version]) -> None:
    for version in versions[:2]:
        promote(tracking, version)
    for number in (1, 3):
        (files_of(tracking, number) / "model.bin").write_bytes(b"other")
    with pytest.raises(UserError, match=r"models:/digits/3 is not what was registered \(changed since: model.bin\)"):
        promote(tracking, versions[2])
    with pytest.raises(UserError, match=r"models:/digits/1 is not what was registered"):
        roll_back(tracking, NAME)
    assert present(tracking) == 2
    assert ROLLED_BACK not in numbered(tracking, 2).tags


def test_a_deleted_version_is_not_rolled_back_to(tracking: Tracking, versions: list[Version]) -> None:
    for version in versions[:2]:
        promote(tracking, version)
    connect(tracking).delete_model_version(NAME, "1")
    with pytest.raises(UserError, match="models:/digits/1, the champion before, was deleted: name another"):
        roll_back(tracking, NAME)


def test_a_model_that_is_not_there_is_not_created(tracking: Tracking) -> None:
    with pytest.raises(UserError, match="has no model 'digit'"):
        roll_back(tracking, "digit")
    assert connect(tracking).search_registered_models() == []


def test_a_model_that_is_not_there_is_answered_with_the_nearest(tracking: Tracking, versions: list[Version]) -> None:
    with pytest.raises(UserError, match=r"has no model 'Digit' \(did you mean digits\?\)"):
        roll_back(tracking, "Digit")


def test_a_model_made_in_mlflow_gets_a_log(tracking: Tracking) -> None:
    client = connect(tracking)
    client.create_registered_model(NAME)
    client.create_model_version(NAME, "/somewhere")
    client.set_registered_model_alias(NAME, "champion", "1")
    settle(tracking, NAME)
    assert present(tracking) == 1
    assert LOG_TAG in client.get_registered_model(NAME).tags
    assert before(settle(tracking, NAME)) is None


def line(*entries: tuple[int, int | None, Why]) -> int | None:
    moves = tuple(
        Move(number=place, version=version, over=over, why=why, time="", done=True)
        for place, (version, over, why) in enumerate(entries, start=1)
    )
    last = Version(name=NAME, number=entries[-1][0], run_id="", tags={})
    return before(Standing(champion=last, moves=moves, finished=None))


def test_who_was_champion_before() -> None:
    assert line((1, None, "gate")) is None
    assert line((1, None, "gate"), (2, 1, "gate"), (5, 2, "gate")) == 2
    assert line((1, None, "gate"), (2, 1, "gate"), (5, 2, "gate"), (2, 5, "rollback")) == 1
    assert line((1, None, "gate"), (2, 1, "gate"), (1, 2, "rollback"), (6, 1, "gate")) == 1
    assert line((4, 3, "gate")) == 3  # 3 was set in MLflow
    assert line((1, None, "gate"), (4, 3, "gate"), (3, 4, "rollback")) == 1


def act(tracking: Tracking, what: str, point: str) -> None:
    if point:
        kill_at(point)
    if what == "promote":
        promote(tracking, numbered(tracking, 3))
    else:
        roll_back(tracking, NAME)


def run(tracking: Tracking, what: str, point: str = "") -> int | None:
    return exit_codes(act, [(tracking, what, point)])[0]


POINTS = ["log_param before 1", "log_param after 1", "set_registered_model_alias before 1"]
POINTS += ["set_registered_model_alias after 1", "log_param before 2"]


@pytest.mark.faults
@pytest.mark.parametrize("point", POINTS)
def test_the_same_command_finishes_what_was_killed(tracking: Tracking, versions: list[Version], point: str) -> None:
    for version in versions[:2]:
        promote(tracking, version)
    assert run(tracking, "promote", point) == KILLED
    assert present(tracking) == (2 if "alias after" not in point and point != "log_param before 2" else 3)
    assert run(tracking, "promote") == 0
    assert present(tracking) == 3
    assert run(tracking, "roll back", point) == KILLED
    assert run(tracking, "roll back") == 0
    assert present(tracking) == 2  # not 1: the second command finished the first
    standing = settle(tracking, NAME)
    assert standing.finished is None
    assert [entry.why for entry in standing.moves] == ["by hand", "by hand", "by hand", "rollback"]


@pytest.mark.faults
def test_eight_processes_move_it_one_after_another(tracking: Tracking) -> None:
    for number in range(1, 9):
        made(tracking, number)
    assert exit_codes(promote_number, [(tracking, number) for number in range(1, 9)]) == [0] * 8
    moves = settle(tracking, NAME).moves
    assert sorted(entry.version for entry in moves) == list(range(1, 9))
    assert [entry.over for entry in moves] == [None, *(entry.version for entry in moves[:-1])]  # none lost
    assert present(tracking) == moves[-1].version


def promote_number(tracking: Tracking, number: int) -> None:
    promote(tracking, numbered(tracking, number))


def champions_log(tracking: Tracking) -> str:
    return str(connect(tracking).get_registered_model(NAME).tags[LOG_TAG])


def test_a_deleted_log_is_told_and_nothing_is_written(tracking: Tracking, versions: list[Version]) -> None:
    for version in versions[:2]:
        promote(tracking, version)
    client, run_id = connect(tracking), champions_log(tracking)
    standing = settle(tracking, NAME)
    client.delete_run(run_id)
    told = rf"run {run_id} \(log of champions of 'digits'\) was deleted: `mlflow runs restore --run-id {run_id}`"
    for act_on_it in (
        lambda: promote(tracking, versions[2]),
        lambda: roll_back(tracking, NAME),
        lambda: move(tracking, versions[2], standing, "gate"),
        lambda: check_movable(tracking, NAME),
    ):
        with pytest.raises(UserError, match=told):
            act_on_it()
    assert present(tracking) == 2
    assert ROLLED_BACK not in numbered(tracking, 2).tags
    client.restore_run(run_id)
    promote(tracking, versions[2])
    assert [entry.version for entry in settle(tracking, NAME).moves] == [1, 2, 3]


def test_a_log_that_is_deleted_while_it_is_written(
    tracking: Tracking, versions: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reading and writing: the refused write is not taken for a lost race."""
    promote(tracking, versions[0])
    log = log_of(connect(tracking), tracking, NAME)
    connect(tracking).delete_run(log.run_id)
    monkeypatch.setattr("infra.registry.champion.log_of", lambda *_: log)
    with pytest.raises(UserError, match="must be in the 'active' state"):
        promote(tracking, versions[1])
    assert present(tracking) == 1


def test_a_deleted_experiment_of_logs_is_named(tracking: Tracking, versions: list[Version]) -> None:
    client = connect(tracking)
    experiment = client.get_run(champions_log(tracking)).info.experiment_id
    client.delete_experiment(experiment)
    with pytest.raises(UserError, match=f"deleted: `mlflow experiments restore --experiment-id {experiment}`"):
        promote(tracking, versions[0])
    client.restore_experiment(experiment)
    promote(tracking, versions[0])
    assert present(tracking) == 1


def test_after_gc_a_new_log_begins_from_the_alias(tracking: Tracking, versions: list[Version]) -> None:
    promote(tracking, versions[0])
    client, run_id = connect(tracking), champions_log(tracking)
    client.delete_run(run_id)
    client._tracking_client.store._hard_delete_run(run_id)  # as `mlflow gc` does
    promote(tracking, versions[1])
    assert champions_log(tracking) != run_id
    assert [(entry.version, entry.over) for entry in settle(tracking, NAME).moves] == [(2, 1)]
    assert roll_back(tracking, NAME)[1].number == 1


def test_an_older_log_stays_where_it_is(tracking: Tracking) -> None:
    """In the experiment `champions`, where logs were kept before."""
    client = connect(tracking)
    run_id = client.create_run(client.create_experiment("champions"), run_name=NAME).info.run_id
    client.create_registered_model(NAME, tags={LOG_TAG: run_id})
    promote(tracking, made(tracking, 1))
    assert champions_log(tracking) == run_id
    assert [experiment.name for experiment in client.search_experiments()] == ["champions", "Default"]


def test_a_prompt_of_the_same_name(tracking: Tracking) -> None:
    client = connect(tracking)
    client.register_prompt(NAME, template="Name the digit")
    with pytest.raises(UserError, match="'digits' is the name of a prompt in MLflow: register under another name"):
        log_of(client, tracking, NAME)


def test_who_loses_every_race_gives_up(
    tracking: Tracking, versions: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.registry.champion.MOST_RACES", 3)
    monkeypatch.setattr("infra.registry.champion_log.ChampionLog.append", lambda *_, **__: False)
    with pytest.raises(UserError, match="models:/digits@champion was moved 3 times by others meanwhile"):
        promote(tracking, versions[0])
