"""Savings of early stopping and of searchers: `python benchmarks/tuning.py WORK_FOLDER [PART …]`.

grid    learning-rate schedules and depths on a part of Fashion-MNIST; every point is trained in full.
asha    the same points, trained as a study under ASHA.
replay  searchers over five seeds that replay the grid's recorded curves instead of training. With seeded, ordered data
        a point has the same curve in every study.
alone   six draws of rate and warm-up, each trained in full.
pbt     the same six as a population that resumes from its best weights, with equal compute.
growth  depth that grows in training against full depth from the start, with equal compute, three seeds.

Each part prints a table; results.json has the tables too.
"""

from __future__ import annotations

import argparse
import gzip
import json
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from infra.storage import open_store
from pipelines.tuning.schedulers import build_scheduler
from pipelines.tuning.searchers import propose
from pipelines.tuning.space import Space, load_space
from pipelines.tuning.trial_recipes import StudyPlan
from pipelines.tuning.trials import State, Trial, TrialReport, Trials

_SOURCE = Path("/usr/share/datasets/fashion-mnist")
_IMAGES = {"train": 6000, "t10k": 2000}
_HEAD = {"images-idx3": 16, "labels-idx1": 8}
_ROOT = Path(__file__).resolve().parents[1]
_COMMON = """
recipe = "fashion_mnist"
[set.model]
num_classes = 10
[set.data]
uri = "{work}/data"
source = "{work}/idx"
image_size = 14
train_crop = "center"
eval_resize = 14
ordered = true
[set.optim]
global_batch_size = 64
[set.schedule]
length = {length}
[set.run]
home = "{work}/runs"
num_workers = 1
checkpoint_every_steps = 0
log_every_steps = 1000
"""
_SPACE = """
[space]
"optim.lr_per_256" = {choice = [0.03, 0.12, 0.5, 2.0]}
"schedule.warmup" = {choice = [0.0, 0.6]}
"schedule.shape" = {choice = ["cosine", "constant"]}
"model.depths" = {choice = [[1, 1, 1], [3, 3, 3]]}
"""
_DRAWN = """
[space]
"optim.lr_per_256" = {log_uniform = [0.03, 2.0]}
"schedule.warmup" = {choice = [0.0, 0.6]}
"model.depths" = {choice = [[1, 1, 1]]}
[budget]
trials = 6
reports = 6
"""
_STUDIES = {
    "grid": _SPACE + '[budget]\nreports = 9\n[searcher]\nname = "grid"\n',
    "asha": _SPACE + '[budget]\nreports = 9\n[searcher]\nname = "grid"\n[scheduler]\nname = "asha"\neta = 3\n',
    "alone": _DRAWN,
    "pbt": _DRAWN + '[scheduler]\nname = "pbt"\nquantile = 0.34\n',
    "growth": """
[space]
"run.seed" = {choice = [0, 1, 2]}
[space.growth.settings]
full = {"model.name" = "resnet32"}
"20 until 1/3" = {"model.name" = "resnet32", "curriculum.until" = [2.0], "curriculum.model" = ["resnet20", "resnet32"]}
"20 until 2/3" = {"model.name" = "resnet32", "curriculum.until" = [4.0], "curriculum.model" = ["resnet20", "resnet32"]}
"drop 0.1, ramped" = {"model.name" = "resnet32", "model.drop_path" = 0.1, "schedule.drop_path_ramp" = 3.0}
[budget]
reports = 6
[searcher]
name = "grid"
""",
}
_LENGTH = {"grid": 3, "asha": 3, "alone": 3, "pbt": 3, "growth": 6}
_SEEDS = range(5)
_WHOLE = 10  # full trials: the compute of a replayed study
_SLOTS = 2  # concurrent trials, as on two cores


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the savings of early stopping and of searchers.")
    parser.add_argument("work", type=Path)
    parser.add_argument("parts", nargs="*", default=list(_TABLES))
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    _take_part_of_the_data(work / "idx")
    for part in arguments.parts:
        if part != "replay":
            _run(work, part)
    tables = [_TABLES[part](work) for part in arguments.parts]
    print("\n\n".join(tables))
    (work / "results.json").write_text(json.dumps(dict(zip(arguments.parts, tables, strict=True)), indent=1))


def _take_part_of_the_data(folder: Path) -> None:
    """Write the first images of Fashion-MNIST as IDX files."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in _IMAGES.items():
        for kind, head in _HEAD.items():
            file = folder / f"{split}-{kind}-ubyte.gz"
            if not file.exists():
                content = gzip.decompress((_SOURCE / file.name).read_bytes())
                size = (len(content) - head) // struct.unpack(">I", content[4:8])[0]
                part = content[:4] + struct.pack(">I", count) + content[8 : head + count * size]
                file.write_bytes(gzip.compress(part))


def _plan(work: Path, part: str) -> StudyPlan:
    file = work / f"{part}.toml"
    common = _COMMON.format(work=work, length=_LENGTH[part])
    model = "depths = [1, 1, 1]" if part != "growth" else 'name = "resnet20"'
    common = common.replace("num_classes = 10", f"num_classes = 10\n{model}")
    file.write_text(f'title = "{part}"\n' + common + _STUDIES[part])
    return StudyPlan(load_space(str(file)), {})


def _run(work: Path, part: str) -> None:
    _plan(work, part)
    subprocess.run([sys.executable, str(_ROOT / "pipelines" / "tune.py"), str(work / f"{part}.toml")], check=True)


def _trials(work: Path, part: str) -> list[Trial]:
    return Trials(open_store(str(work / "runs")).sub(f"studies/{part}")).trials


def _asha(work: Path) -> str:
    """Return the table that compares the same points in full and under ASHA."""
    full, early = _trials(work, "grid"), _trials(work, "asha")
    best = max(trial.accuracy for trial in full)
    winner = max((trial for trial in early if trial.state == "finished"), key=lambda trial: trial.accuracy)
    compute = sum(trial.last for trial in early) / sum(trial.last for trial in full)
    same = sum(
        report.accuracy == other.accuracy
        for trial, whole in zip(early, full, strict=True)
        for report, other in zip(trial.reports, whole.reports, strict=False)
    )
    return (
        _table(
            ["", "trials", "in full", "compute", "best accuracy"],
            [
                ["grid", len(full), len(full), "100 %", f"{best:.2%}"],
                [
                    "ASHA",
                    len(early),
                    sum(trial.state == "finished" for trial in early),
                    f"{compute:.0%}",
                    f"{winner.accuracy:.2%}",
                ],
            ],
        )
        + f"\n\n{same} of {sum(len(trial.reports) for trial in early)} reports are equal to the grid's, bit for bit."
    )


def _replay(work: Path) -> str:
    """Return the table of random search and TPE, with and without ASHA, with the compute of ten full trials."""
    plan = _plan(work, "grid")
    full = _trials(work, "grid")
    cap = _WHOLE * plan.space.budget.reports
    rows = []
    for searcher in ("random", "tpe"):
        for scheduler in ("none", "asha"):
            found = [_simulated(plan, full, cap, (searcher, scheduler), seed) for seed in _SEEDS]
            cells = [f"{value:.2%}" for value in found]
            rows.append([searcher, scheduler, f"{fmean(found):.2%} ± {100 * stdev(found):.2f}", *cells])
    return _table(["searcher", "scheduler", "mean", *(f"seed {seed}" for seed in _SEEDS)], rows)


def _simulated(plan: StudyPlan, full: Sequence[Trial], cap: int, names: tuple[str, str], seed: int) -> float:
    """Return the accuracy, after full training, of the winner of a simulated study."""
    values = plan.space.model_dump(mode="json")
    values["searcher"] = {"name": names[0], "seed": seed, "startup": 4}
    values["scheduler"] = {"name": names[1], "eta": 3}
    values["budget"] = {**values["budget"], "trials": 1000}
    space = Space.model_validate_json(json.dumps(values))
    curves = {json.dumps(trial.values, sort_keys=True): trial for trial in full}
    scheduler: Any = build_scheduler(replace(plan, space=space), lambda number, report, draw: draw())
    trials: list[Trial] = []
    running: list[Trial] = []
    spent = 0
    while spent < cap:
        if len(running) < _SLOTS:
            trial = Trial(number=len(trials), values=propose(space, len(trials), trials), compute=1.0)
            scheduler.on_trial_add(None, SimpleNamespace(trial_id=trial.number))
            trials.append(trial)
            running.append(trial)
            continue
        trial = running.pop(0)
        report = curves[json.dumps(trial.values, sort_keys=True)].reports[trial.last]
        trial.reports.append(report)
        spent += 1
        trial.state = _state(scheduler, trial, report, space)
        if not trial.over:
            running.append(trial)
    winner = max(trials, key=lambda trial: (trial.last, trial.accuracy))
    return curves[json.dumps(winner.values, sort_keys=True)].accuracy


def _state(scheduler: Any, trial: Trial, report: TrialReport, space: Space) -> State:
    if report.report >= space.budget.reports:
        return "finished"
    result = {"report": report.report, "accuracy": report.accuracy}
    return (
        "stopped"
        if scheduler.on_trial_result(None, SimpleNamespace(trial_id=trial.number), result) == "STOP"
        else "running"
    )


def _alone(work: Path) -> str:
    return _drawn(_trials(work, "alone"))


def _pbt(work: Path) -> str:
    return _drawn(_trials(work, "pbt"))


def _drawn(trials: list[Trial]) -> str:
    rows = [
        [
            f"{trial.number:03d}",
            f"{trial.accuracy:.2%}",
            " → ".join(
                f"{each['optim.lr_per_256']:.3g}" for each in [trial.values, *(c.values for c in trial.changes)]
            ),
            ", ".join(f"{change.donor:03d} after {change.report}" for change in trial.changes) or "-",
        ]
        for trial in sorted(trials, key=lambda trial: -trial.accuracy)
    ]
    mean = fmean(trial.accuracy for trial in trials)
    return _table(["trial", "accuracy", "peak rate", "resumed from"], rows) + f"\n\nmean {mean:.2%}"


def _growth(work: Path) -> str:
    found: dict[str, list[float]] = {}
    for trial in _trials(work, "growth"):
        found.setdefault(trial.values["growth"], []).append(100 * trial.accuracy)
    rows = [
        [name, f"{fmean(values):.2f} ± {stdev(values):.2f}", ", ".join(f"{value:.2f}" for value in values)]
        for name, values in found.items()
    ]
    return _table(["depth over time", "test accuracy (%)", "seeds 0, 1, 2"], rows)


def _grid(work: Path) -> str:
    rows = [
        [f"{trial.number:03d}", f"{trial.accuracy:.2%}", *map(str, trial.values.values())]
        for trial in sorted(_trials(work, "grid"), key=lambda trial: -trial.accuracy)
    ]
    return _table(["trial", "accuracy", *(key.rpartition(".")[2] for key in _trials(work, "grid")[0].values)], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


_TABLES: dict[str, Callable[[Path], str]] = {
    "grid": _grid,
    "asha": _asha,
    "replay": _replay,
    "alone": _alone,
    "pbt": _pbt,
    "growth": _growth,
}


if __name__ == "__main__":
    main()
