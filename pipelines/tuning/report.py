"""Results of a study in its folder and in MLflow: the table of trials, its JSON, the figures."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from infra.storage import Store
from infra.tracking.tracker import MetricPoint, Tracker
from pipelines.tuning.trial_recipes import StudyPlan
from pipelines.tuning.trials import Trial, Trials

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE, RESULTS = "table.md", "results.json"
_NOTE_CHARS = 5000  # limit of MLflow's tags in all versions


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials, best first: fully trained ones by accuracy, then the others by their last report."""
    return sorted(trials, key=lambda trial: (trial.state == "finished", trial.last, trial.accuracy), reverse=True)


def best(trials: Sequence[Trial]) -> Trial | None:
    """Return the most accurate fully trained trial, else the one with most reports; None without any report."""
    known = [trial for trial in ranked(trials) if trial.reports]
    return known[0] if known else None


def spent_share(plan: StudyPlan, trials: Sequence[Trial]) -> float:
    """Return the compute spent as a share of the compute of all trials in full."""
    whole = sum(trial.compute for trial in trials)
    return sum(trial.spent(plan.space.budget.reports) for trial in trials) / whole if whole else 0.0


def to_markdown(plan: StudyPlan, trials: Sequence[Trial]) -> str:
    """Return the title, a row per trial (the best first), and a caption with the cost."""
    keys, reports = list(plan.space.space), plan.space.budget.reports
    header = ["trial", "state", "compute", "accuracy", *(key.rpartition(".")[2] for key in keys)]
    rule = ["---", "---", "---:", "---:", *(["---:"] * len(keys))]
    rows = [
        [
            f"{trial.number:03d}",
            trial.state,
            f"{trial.last / reports:.0%}",
            f"{trial.accuracy:.2%}" if trial.reports else "-",
            *(str(trial.present[key]) for key in keys),
        ]
        for trial in ranked(trials)
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rows))
    return f"# {plan.space.title}\n\n{table}\n\n{_caption(plan, trials)}\n"


def _caption(plan: StudyPlan, trials: Sequence[Trial]) -> str:
    states = {state: sum(trial.state == state for trial in trials) for state in ("finished", "stopped", "failed")}
    counts = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    failed = [trial for trial in trials if trial.state == "failed"]
    if failed:
        counts += f" (trial {failed[0].number:03d}: {failed[0].reason})"
    return (
        f"{len(trials)} trials: {counts}. They used {spent_share(plan, trials):.0%} of the compute of all trials in "
        "full. Accuracy: at each trial's last report; compute: the share of the whole trial that was run."
    )


def to_json(plan: StudyPlan, trials: Sequence[Trial]) -> str:
    content = {
        "space": plan.space.model_dump(mode="json"),
        "spent_share": spent_share(plan, trials),
        "trials": [asdict(trial) for trial in trials],
    }
    return json.dumps(content, indent=1) + "\n"


def figures(plan: StudyPlan, trials: Sequence[Trial]) -> dict[str, Figure]:
    """Return the figures by name: parallel coordinates, accuracy over each key, accuracy over compute."""
    from infra.plots import tuning as study_plots

    points = [
        study_plots.Point(
            values={key.rpartition(".")[2]: trial.present[key] for key in plan.space.space},
            score=100 * trial.accuracy,
            share=trial.last / plan.space.budget.reports,
            curve=[(each.report / plan.space.budget.reports, 100 * each.accuracy) for each in trial.reports],
            name=f"{trial.number:03d}",
        )
        for trial in trials
        if trial.reports
    ]
    if not points:
        return {}
    logarithmic = {
        key.rpartition(".")[2] for key, distribution in plan.space.space.items() if distribution.kind == "log_uniform"
    }
    return {
        "parallel": study_plots.parallel_coordinates(points, logarithmic),
        "responses": study_plots.responses(points, logarithmic),
        "curves": study_plots.curves(points),
    }


def write_report(plan: StudyPlan, ledger: Trials, store: Store) -> None:
    """Write figures and table to the study's folder, the JSON last."""
    for name, figure in figures(plan, ledger.trials).items():
        image = io.BytesIO()
        figure.savefig(image, format="png")
        store.write(f"{name}.png", image.getvalue())
    store.write(TABLE, to_markdown(plan, ledger.trials).encode())
    store.write(RESULTS, to_json(plan, ledger.trials).encode())


def publish(plan: StudyPlan, ledger: Trials, store: Store, tracker: Tracker) -> None:
    """Send table and figures to the study's MLflow run, with the winner as tags."""
    table = to_markdown(plan, ledger.trials)
    tags: dict[str, Any] = {"mlflow.note.content": table[:_NOTE_CHARS]}
    metrics = {"spent_share": spent_share(plan, ledger.trials), "trials": float(len(ledger))}
    winner = best(ledger.trials)
    if winner:
        tags |= {"best.trial": f"{winner.number:03d}", "best.accuracy": f"{winner.accuracy:.4f}"}
        tags |= {f"best.{key}": str(value) for key, value in winner.present.items()}
        metrics["best/accuracy"] = winner.accuracy
    tracker.tag(tags)
    tracker.text(TABLE, table)
    tracker.text(RESULTS, to_json(plan, ledger.trials))
    for name in ("parallel", "responses", "curves"):
        if store.exists(f"{name}.png"):
            tracker.artifact(f"plots/{name}.png", store.read(f"{name}.png"))
    tracker.log(MetricPoint(step=ledger.next_place, time_ms=time.time_ns() // 1_000_000, metrics=metrics))


def listing(plan: StudyPlan, known: Trials) -> Table:
    """Return a table of the trials and their states, the best first."""
    keys, space = list(plan.space.space), plan.space
    heads = ["trial", "state", "reports", "accuracy", *(key.rpartition(".")[2] for key in keys)]
    table = Table(*heads, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for trial in ranked(known.trials):
        values = [str(trial.present[key]) for key in keys]
        reports = f"{trial.last}/{space.budget.reports}"
        table.add_row(
            f"{trial.number:03d}", trial.state, reports, f"{trial.accuracy:.2%}" if trial.reports else "-", *values
        )
    planned = space.trials - len(known)
    if planned:
        table.add_row("…", "not begun", f"{planned} trials")
    return table
