"""A study as a user runs it, on a small cluster: what it stops and frees, what MLflow has of it, its winner."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from rich.console import Console

from benchmarks.processes import command_line
from infra.errors import UserError
from infra.storage import open_store
from infra.tracking.tracker import resolve_tracking
from pipelines.checkpoint import RunFolder
from pipelines.config.recipe import load_recipe
from pipelines.training import driver
from pipelines.tuning.recording_scheduler import RecordingScheduler
from pipelines.tuning.report import best
from pipelines.tuning.space import load_space
from pipelines.tuning.study import WINNER, Study, finalize
from pipelines.tuning.trial import TrialJob
from pipelines.tuning.trial_recipes import StudyPlan
from pipelines.tuning.trials import Trial, TrialReport, trial_file
from tests.pipelines.conftest import COLOURS, coloured
from tests.pipelines.tuning.conftest import Spaces
from tests.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]  # not of faults all, but minutes of trials
QUIET = Console(quiet=True)
CPUS = 4.0  # of the cluster


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return coloured(tmp_path_factory.mktemp("colours"), COLOURS, per_class=40).store.uri


@pytest.fixture(scope="module", autouse=True)
def own_mlflow(ray_local: None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", raising=False)
        yield


def mlflow_runs(folder: Path) -> list[Run]:
    client = MlflowClient(resolve_tracking(folder / "runs").uri)
    return list(client.search_runs([each.experiment_id for each in client.search_experiments()]))


def children(folder: Path, parent: str) -> dict[str, Run]:
    """The trials' runs, by trial; each once."""
    found = [run for run in mlflow_runs(folder) if run.data.tags.get("mlflow.parentRunId") == parent]
    trials = [run for run in found if "trial" in run.data.tags]
    assert len({run.data.tags["trial"] for run in trials}) == len(trials)
    return {run.data.tags["trial"]: run for run in trials}


def live_groups() -> int:
    from ray.util import placement_group_table

    return sum(group["state"] != "REMOVED" for group in placement_group_table().values())


def train_processes() -> dict[int, str]:
    """Workers, controllers and cleaners of Ray Train that this test's Ray has, by process."""
    kinds = ("ray::RayTrain", "ray::TrainController", "ray::PlacementGroup")
    running = {each.pid: command_line(each) for each in psutil.Process().children(recursive=True)}
    return {pid: name for pid, name in running.items() if name.startswith(kinds)}


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A study that has ended, and what the cluster had free meanwhile."""

    study: Study
    run_id: str
    folder: Path
    before: float
    least: float
    others: dict[int, str]  # Ray Train's processes of before: of runs that another test's exception still holds


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, data: str) -> Watched:
    """Three trials, two at once; the second is stopped at its first report."""
    import ray

    folder = tmp_path_factory.mktemp("study")
    plan = Spaces(folder, data).plan(**{"trials = 4": "trials = 3", "reports = 4": "reports = 2"})
    study = Study(plan, QUIET)
    samples: list[float] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.1):
            samples.append(float(ray.available_resources().get("CPU", 0)))

    before, others = float(ray.available_resources()["CPU"]), train_processes()
    thread = threading.Thread(target=sample, daemon=True)
    fed = RecordingScheduler._forward

    def stop_the_second(journal: RecordingScheduler, controller: object, stand: object, report: TrialReport) -> str:
        fed(journal, controller, stand, report)
        return "STOP" if getattr(stand, "trial_id", "") == "00001" else "CONTINUE"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecordingScheduler, "_forward", stop_the_second)
        thread.start()
        run_id = study.run()
    wait_until(lambda: (float(ray.available_resources().get("CPU", 0)), live_groups()) == (CPUS, 0), what="end of all")
    done.set()
    thread.join()
    return Watched(
        study=study,
        run_id=run_id,
        folder=folder,
        before=before,
        least=min(samples),
        others=others,
    )


def test_a_stopped_trial_ends_and_the_others_do_not(watched: Watched) -> None:
    trials = watched.study.ledger.trials
    assert [(trial.state, trial.last) for trial in trials] == [("finished", 2), ("stopped", 1), ("finished", 2)]
    places = sorted(report.place for trial in trials for report in trial.reports)
    assert places == [0, 1, 2, 3, 4]
    table = (watched.folder / "runs/studies/study/table.md").read_text()
    assert "They used 83% of the compute of all trials in full." in table
    for name in ("parallel.png", "responses.png", "curves.png", "results.json"):
        assert (watched.folder / "runs/studies/study" / name).stat().st_size > 0


def test_it_frees_its_workers_and_their_placement_group(watched: Watched) -> None:
    """Two workers hold two of four CPUs; the third trial can only have begun on those of the one that was stopped.

    That all CPUs and placement groups are free in the end, the fixture waits for.
    """
    assert watched.before == CPUS
    assert watched.least <= CPUS - 2
    wait_until(lambda: not train_processes().items() - watched.others.items(), what="end of Ray Train's processes")


def test_mlflow_has_one_run_per_trial_below_the_study_s(watched: Watched) -> None:
    found = children(watched.folder, watched.run_id)
    states = {number: (run.data.tags["state"], run.info.status) for number, run in found.items()}
    finished, stopped = ("finished", "FINISHED"), ("stopped early", "FINISHED")
    assert states == {"000": finished, "001": stopped, "002": finished}
    client = MlflowClient(resolve_tracking(watched.folder / "runs").uri)
    for trial in watched.study.ledger.trials:
        run = found[f"{trial.number:03d}"]
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "test/accuracy")]
        reported = [report.step for report in trial.reports]
        assert steps[: len(reported)] == reported  # a stopped one may have trained on until it was gone
        assert run.data.params["optim.lr_per_256"] == str(trial.values["optim.lr_per_256"])
    parent = client.get_run(watched.run_id)
    winner = best(watched.study.ledger.trials)
    assert winner is not None and parent.data.tags["best.trial"] == f"{winner.number:03d}"
    names = {each.path for each in client.list_artifacts(watched.run_id, "plots")}
    assert names == {"plots/parallel.png", "plots/responses.png", "plots/curves.png"}


def test_a_finished_study_does_nothing(watched: Watched) -> None:
    files = {path: path.stat().st_mtime_ns for path in (watched.folder / "runs").rglob("*.json")}
    assert Study(watched.study.plan, QUIET).run() == watched.run_id
    assert {path: path.stat().st_mtime_ns for path in (watched.folder / "runs").rglob("*.json")} == files


def test_a_study_goes_on_with_its_own_space_only(tmp_path: Path, data: str) -> None:
    spaces = Spaces(tmp_path, data)
    (tmp_path / "runs/studies/study").mkdir(parents=True)
    state = {"key": "k", "run_id": "", "digest": "another", "delivered": ""}
    (tmp_path / "runs/studies/study/study.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"study study in .* began with another space or recipe"):
        Study(StudyPlan(load_space(str(spaces.write())), {}), QUIET)


def test_the_winner_s_recipe_gives_its_accuracy_again(watched: Watched) -> None:
    winner = best(watched.study.ledger.trials)
    assert winner is not None
    finalize(watched.study, winner, watched.run_id)
    recipe = load_recipe(watched.folder / "runs/studies/study" / WINNER, {"run.home": str(watched.folder / "again")})
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
    assert (change.donor, change.report) == (1 - changed.number, 1)
    rate = study.ledger.trials[change.donor].values["optim.lr_per_256"]
    assert change.values["optim.lr_per_256"] in (pytest.approx(0.8 * rate), pytest.approx(min(4.0, 1.2 * rate)))
    home = open_store(str(tmp_path / "runs"))
    forked = RunFolder(home.sub(f"study-{changed.number:03d}-1")).load(change.step)
    donor = RunFolder(home.sub(f"study-{change.donor:03d}")).load(change.step)
    assert {name for name in donor.files if forked.files[name] != donor.files[name]} == {"recipe.toml"}
    assert forked.recipe["optim.lr_per_256"] == change.values["optim.lr_per_256"]
    ended = RunFolder(home.sub(f"study-{changed.number:03d}-1")).newest(pytest.fail)
    assert ended is not None and ended.step == changed.reports[-1].step > change.step
    assert set(children(tmp_path, run_id)) == {"000", "001"}


HYPERBAND = '[scheduler]\nname = "hyperband"\neta = 2'


def test_hyperband_pauses_and_ends(tmp_path: Path, data: str) -> None:
    study = Study(Spaces(tmp_path, data).plan(HYPERBAND, **{"trials = 4": "trials = 5"}), QUIET)
    study.run()
    assert all(trial.state in ("finished", "stopped") for trial in study.ledger.trials)
    assert len(study.ledger) == 5


SMALL = {"trials = 4": "trials = 3", "reports = 4": "reports = 2"}
TWO = SMALL | {"reports = 4": "reports = 2\nequal_compute = false"}
OTHERS = {
    "median": ('[scheduler]\nname = "median"', SMALL),
    "pb2": ('[scheduler]\nname = "pb2"\nquantile = 0.34', SMALL),
    "two objectives": ('[searcher]\nname = "tpe"\nstartup = 1\nobjectives = ["accuracy", "compute"]', TWO),
}


def without_training(job: TrialJob) -> Callable[[dict[str, Any]], None]:
    """Trials that report an accuracy of their learning rate: a process each, but without workers."""

    def trial(config: dict[str, Any]) -> None:
        from ray import tune

        own = Trial.from_json(json.loads(open_store(job.study_uri).read(trial_file(config["number"]))))
        rate = float(own.present["optim.lr_per_256"])
        for report in range(1 if job.repeats else own.last + 1, job.plan.space.budget.reports + 1):
            tune.report({"report": report, "step": report, "accuracy": report / (3 + rate), "loss": rate})

    return trial


@pytest.mark.parametrize(("more", "changes"), OTHERS.values(), ids=OTHERS)
def test_a_study_ends_under(
    more: str, changes: dict[str, str], tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.tuning.study._trainable", without_training)
    study = Study(Spaces(tmp_path, data).plan(more, **changes), QUIET)
    study.run()
    trials = study.ledger.trials
    assert [trial.state in ("finished", "stopped") for trial in trials] == [True] * 3
    assert best(trials) is not None
    for change in (change for trial in trials for change in trial.changes):
        assert 0.1 <= change.values["optim.lr_per_256"] <= 4.0  # the space's ends
