"""Studies as a user runs them, on one small cluster: early stops, what they free, restarts, the winner."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from rich.console import Console

from infra.errors import UserError
from infra.tracking import resolve_tracking
from pipelines import driver
from pipelines.checkpoint import RunFolder
from pipelines.recipe import load_recipe
from pipelines.tuning.finalize import WINNER, finalize
from pipelines.tuning.plan import Plan
from pipelines.tuning.report import best
from pipelines.tuning.space import load_space
from pipelines.tuning.study import Study
from tests.pipelines.conftest import COLOURS, coloured
from tests.pipelines.tuning.conftest import Spaces

ASHA = '[scheduler]\nname = "asha"\neta = 4'
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return coloured(tmp_path_factory.mktemp("colours"), COLOURS, per_class=20).store.uri


@pytest.fixture(autouse=True)
def own_mlflow(monkeypatch: pytest.MonkeyPatch, ray_local: None) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", raising=False)


def mlflow_runs(folder: Path) -> list[Run]:
    client = MlflowClient(resolve_tracking(folder / "runs").uri)
    return list(client.search_runs([each.experiment_id for each in client.search_experiments()]))


def children(folder: Path, parent: str) -> dict[str, Run]:
    """By trial; each once."""
    found = [run for run in mlflow_runs(folder) if run.data.tags.get("mlflow.parentRunId") == parent]
    trials = {run.data.tags["trial"]: run for run in found if "trial" in run.data.tags}
    assert len(trials) == len([run for run in found if "trial" in run.data.tags])
    return trials


@pytest.fixture
def sampled() -> Iterator[list[dict[str, float]]]:
    """What the cluster has free, ten times a second."""
    import ray

    samples: list[dict[str, float]] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.1):
            samples.append(ray.available_resources())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    yield samples
    done.set()
    thread.join()


def live_groups() -> int:
    from ray.util import placement_group_table

    return sum(group["state"] != "REMOVED" for group in placement_group_table().values())


def settled(expected: float) -> float:
    """CPUs that are free, given half a minute to be as many as expected."""
    import ray

    for _ in range(300):
        free = float(ray.available_resources().get("CPU", 0))
        if free == expected and live_groups() == 0:
            break
        time.sleep(0.1)
    return free


def test_a_stopped_trial_frees_its_workers(
    tmp_path: Path, data: str, sampled: list[dict[str, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two Train workers' worth of trials at once; the second of each pair is far behind, and stopped."""
    before = settled(4.0)
    plan = Spaces(tmp_path, data, workers=1).plan(
        ASHA + '\n[searcher]\nname = "grid"', **{"trials = 4": "", "[[1, 1, 1], [2, 1, 1]]": "[[1, 1, 1]]"}
    )
    study = Study(plan, QUIET)
    run_id = study.run()
    states = [trial.state for trial in study.ledger.trials]
    assert len(states) == 3 and "stopped" in states and "finished" in states
    assert before == settled(4.0) == 4.0
    assert min(each.get("CPU", 0.0) for each in sampled) <= 2.0  # two workers at work
    found = children(tmp_path, run_id)
    assert {number: run.data.tags["state"] for number, run in found.items()} == {
        f"{trial.number:03d}": {"stopped": "stopped early", "finished": "finished"}[trial.state]
        for trial in study.ledger.trials
    }
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    for trial in study.ledger.trials:
        assert [each.report for each in trial.reports] == list(range(1, trial.last + 1))
        assert trial.last == (4 if trial.state == "finished" else 1)


class PowerCut(Exception):
    pass


def test_a_restart_runs_nothing_twice(tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spaces = Spaces(tmp_path, data)
    plan = spaces.plan(ASHA)
    study = Study(plan, QUIET)
    kept = study.ledger.keep

    def cut(trial: object) -> None:
        kept(trial)  # type: ignore[arg-type]
        if sum(each.over for each in study.ledger.trials) == 2:
            raise PowerCut

    monkeypatch.setattr(study.ledger, "keep", cut)
    with pytest.raises(Exception):  # noqa: B017 - whatever Tune makes of it
        study.run()
    over = {each.number: each for each in Study(plan, QUIET).ledger.trials if each.over}
    files = {
        path: path.read_bytes() for number in over for path in (tmp_path / "runs").glob(f"study-{number:03d}/run.json")
    }
    assert len(over) >= 2
    again = Study(plan, QUIET)
    run_id = again.run()
    assert [trial.number for trial in again.ledger.trials] == [0, 1, 2, 3]
    assert all(trial.over for trial in again.ledger.trials)
    assert {number: again.ledger.trials[number] for number in over} == over
    assert {path: path.read_bytes() for path in files} == files
    assert set(children(tmp_path, run_id)) == {"000", "001", "002", "003"}
    assert len([run for run in mlflow_runs(tmp_path) if "mlflow.parentRunId" not in run.data.tags]) == 1
    places = sorted(report.place for trial in again.ledger.trials for report in trial.reports)
    assert places == list(range(len(places)))
    _finalized(again, run_id, tmp_path)


def _finalized(study: Study, run_id: str, folder: Path) -> None:
    """The recipe file, as train.py reads it, gives the study's accuracy again."""
    winner = best(study.ledger.trials)
    assert winner is not None
    finalize(study, winner, run_id)
    recipe = load_recipe(folder / "runs/studies/study" / WINNER)
    assert recipe.name == "study-winner"
    assert driver.train(recipe, QUIET).accuracy == winner.accuracy


def test_a_population_moves_weights(tmp_path: Path, data: str) -> None:
    """The first checkpoint of a trial that changed places is the donor's, but for the recipe."""
    more = '[scheduler]\nname = "pbt"\nquantile = 0.5\nresample = 0.0'
    plan = Spaces(tmp_path, data).plan(more, **{"trials = 4": "trials = 2", "reports = 4": "reports = 2"})
    study = Study(plan, QUIET)
    run_id = study.run()
    assert [trial.state for trial in study.ledger.trials] == ["finished", "finished"]
    (changed,) = [trial for trial in study.ledger.trials if trial.changes]
    (change,) = changed.changes
    assert change.donor == 1 - changed.number and change.report == 1
    rate = study.ledger.trials[change.donor].values["optim.lr_per_256"]
    assert change.values["optim.lr_per_256"] in (pytest.approx(0.8 * rate), pytest.approx(min(4.0, 1.2 * rate)))
    runs = tmp_path / "runs"
    forked = RunFolder(open_run(runs / f"study-{changed.number:03d}-1")).load(change.step)
    donor = RunFolder(open_run(runs / f"study-{change.donor:03d}")).load(change.step)
    same = {name for name in donor.files if forked.files[name] == donor.files[name]}
    assert set(donor.files) - same == {"recipe.toml"}
    assert forked.recipe["optim.lr_per_256"] == change.values["optim.lr_per_256"]
    assert set(children(tmp_path, run_id)) == {"000", "001"}


def open_run(path: Path):  # type: ignore[no-untyped-def]
    from infra.storage import open_store

    return open_store(str(path))


def test_a_study_goes_on_with_its_own_space_only(tmp_path: Path, data: str) -> None:
    spaces = Spaces(tmp_path, data)
    (tmp_path / "runs/studies/study").mkdir(parents=True)
    state = {"key": "k", "run_id": "", "digest": "another", "delivered": ""}
    (tmp_path / "runs/studies/study/study.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"study study in .* began with another space or recipe"):
        Study(Plan(load_space(str(spaces.write())), {}), QUIET)
