"""What a study found: the table of trials, its JSON, the figures; in the study's folder and in MLflow."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from infra.storage import Store
from infra.tracking import Record, Tracker
from pipelines.tuning.ledger import Ledger, Trial
from pipelines.tuning.plan import Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE, RESULTS = "table.md", "results.json"
_NOTE_CHARS = 5000  # that MLflow's tags hold, in all versions


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Those trained in full first, by accuracy; then by how far they came."""
    return sorted(trials, key=lambda trial: (trial.state == "finished", trial.last, trial.accuracy), reverse=True)


def best(trials: Sequence[Trial]) -> Trial | None:
    """The most accurate of those trained in full, else of those that came furthest; None where nothing was reported."""
    known = [trial for trial in ranked(trials) if trial.reports]
    return known[0] if known else None


def spent_share(plan: Plan, trials: Sequence[Trial]) -> float:
    """Of what all of the study's trials in full would have computed."""
    whole = sum(trial.compute for trial in trials)
    return sum(trial.spent(plan.space.budget.reports) for trial in trials) / whole if whole else 0.0


def to_markdown(plan: Plan, trials: Sequence[Trial]) -> str:
    """The title, what it cost, and a row per trial, the best first."""
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


def _caption(plan: Plan, trials: Sequence[Trial]) -> str:
    states = {state: sum(trial.state == state for trial in trials) for state in ("finished", "stopped", "failed")}
    counts = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    failed = [trial for trial in trials if trial.state == "failed"]
    if failed:
        counts += f" (trial {failed[0].number:03d}: {failed[0].reason})"
    return (
        f"{len(trials)} trials: {counts}. They computed {spent_share(plan, trials):.0%} of what all of them in full "
        "would have. Accuracy: of each trial's last report; compute: its share of the whole trial."
    )


def to_json(plan: Plan, trials: Sequence[Trial]) -> str:
    content = {
        "space": plan.space.model_dump(mode="json"),
        "spent_share": spent_share(plan, trials),
        "trials": [asdict(trial) for trial in trials],
    }
    return json.dumps(content, indent=1) + "\n"


def figures(plan: Plan, trials: Sequence[Trial]) -> dict[str, Figure]:
    """By name: parallel coordinates, accuracy over each key, accuracy over compute."""
    from infra import study_plots

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


def write_report(plan: Plan, ledger: Ledger, store: Store) -> None:
    """Figures and table, the JSON last."""
    for name, figure in figures(plan, ledger.trials).items():
        image = io.BytesIO()
        figure.savefig(image, format="png")
        store.write(f"{name}.png", image.getvalue())
    store.write(TABLE, to_markdown(plan, ledger.trials).encode())
    store.write(RESULTS, to_json(plan, ledger.trials).encode())


def publish(plan: Plan, ledger: Ledger, store: Store, tracker: Tracker) -> None:
    """The same to the study's run in MLflow, with the winner as tags."""
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
    tracker.log(Record(step=ledger.next_place, time_ms=time.time_ns() // 1_000_000, metrics=metrics))
