"""What MLflow draws of a run: names that sort what matters first, and no flat lines."""

from __future__ import annotations

from infra.tracking.client import Tracking, connect
from infra.tracking.curves import CurveNames
from infra.tracking.metric_point import MetricPoint
from infra.tracking.tracker import RunInfo, Tracker

CURVES = CurveNames(
    renamed={"data/": "waiting_for_data/"},
    from_first_value=("waiting_for_data/",),
    left_out=("_share_max", "/top5_accuracy"),
)


def record(step: int, **metrics: float) -> MetricPoint:
    return MetricPoint(
        step=step, time_ms=1000 * step, metrics={key.replace("__", "/"): value for key, value in metrics.items()}
    )


def histories(tracking: Tracking, run_id: str) -> dict[str, list[tuple[int, float]]]:
    client = connect(tracking)
    keys = client.get_run(run_id).data.metrics
    return {key: [(point.step, point.value) for point in client.get_metric_history(run_id, key)] for key in keys}


def start(tracking: Tracking, run_id: str | None = None, curves: CurveNames = CURVES) -> Tracker:
    info = RunInfo(experiment="digits", name="demo", run_id=run_id, curves=curves)
    return Tracker.start(tracking, info, warn=print)


def test_names_and_first_values(tracking: Tracking) -> None:
    tracker = start(tracking)
    tracker.log(record(1, train__loss=0.0, data__read_share=0.0, data__retries=0.0, data__read_share_max=0.5))
    tracker.log(record(2, train__loss=0.1, data__read_share=0.2, data__retries=0.0, test__top5_accuracy=1.0))
    tracker.log(record(3, train__loss=0.2, data__read_share=0.0, data__retries=0.0, test__accuracy=0.0))
    assert tracker.finish("FINISHED", timeout_s=30)
    assert histories(tracking, tracker.run_id) == {
        "train/loss": [(1, 0.0), (2, 0.1), (3, 0.2)],
        "waiting_for_data/read_share": [(2, 0.2), (3, 0.0)],
        "test/accuracy": [(3, 0.0)],  # a zero that says something
    }


def test_a_run_that_an_older_version_began(tracking: Tracking) -> None:
    """Its checkpoint's records are replayed, as always: the new names get the whole history, the old ones end."""
    before = [record(1, data__read_share=0.1, train__loss=0.5), record(2, data__read_share=0.2, train__loss=0.4)]
    first = start(tracking, curves=CurveNames())
    for each in before:
        first.log(each)
    assert first.finish("KILLED", timeout_s=30)
    second = start(tracking, first.run_id)
    for each in [*before, record(3, data__read_share=0.3, train__loss=0.3)]:
        second.log(each)
    assert second.finish("FINISHED", timeout_s=30)
    assert histories(tracking, first.run_id) == {
        "train/loss": [(1, 0.5), (2, 0.4), (3, 0.3)],
        "data/read_share": [(1, 0.1), (2, 0.2)],
        "waiting_for_data/read_share": [(1, 0.1), (2, 0.2), (3, 0.3)],
    }


def test_a_zero_after_a_restart_is_drawn_where_there_is_a_curve(tracking: Tracking) -> None:
    first = start(tracking)
    first.log(record(1, data__retries=2.0))
    assert first.finish("KILLED", timeout_s=30)
    second = start(tracking, first.run_id)
    second.log(record(2, data__retries=0.0))
    assert second.finish("FINISHED", timeout_s=30)
    assert histories(tracking, first.run_id) == {"waiting_for_data/retries": [(1, 2.0), (2, 0.0)]}


def test_experiments_open_as_model_training(tracking: Tracking) -> None:
    """Also one that is there already, and a log of champions says what it is."""
    client = connect(tracking)
    client.create_experiment("digits")
    info = RunInfo(experiment="other", experiment_note="what it is for", name="demo")
    for tracker in (start(tracking), Tracker.start(tracking, info, warn=print)):
        assert tracker.finish("FINISHED", timeout_s=30)
        tags = client.get_experiment(tracker.experiment_id).tags
        assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert tags["mlflow.note.content"] == "what it is for"
