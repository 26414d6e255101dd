"""The line of a run under way: from its first second to its last step, in a terminal and in a log."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from infra.tracking.metric_point import MetricPoint
from pipelines.training import progress as progress_line
from pipelines.training.messages import Event, MetricMessage, StepProgress
from pipelines.training.progress import ProgressLine


def line_to(file: io.StringIO, *, terminal: bool = False, first_step: int = 0) -> ProgressLine:
    console = Console(file=file, force_terminal=terminal, width=200, markup=False, highlight=False)
    return ProgressLine(
        console=console, total_steps=30, steps_per_epoch=10.0, global_batch_size=4, first_step=first_step
    )


def recorded(step: int) -> MetricMessage:
    metrics = {"train/loss": 0.5, "train/images_per_second": 8.0}
    return MetricMessage(record=MetricPoint(step=step, time_ms=0, metrics=metrics))


@pytest.mark.parametrize("terminal", [False, True])
def test_the_last_line_is_at_the_end(terminal: bool) -> None:
    file = io.StringIO()
    with line_to(file, terminal=terminal) as line:
        line.show(StepProgress(step=29, images_per_second=8.0))
        line.show(recorded(30))
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue()).replace("\r", "\n").strip().splitlines()[-1]
    assert last == "epoch 3/3  step 30/30  loss 0.5000  8 images/s"


def test_a_run_that_stops_on_the_way_ends_without_a_line_of_its_own() -> None:
    file = io.StringIO()
    with line_to(file) as line:
        line.show(StepProgress(step=12, images_per_second=8.0))
    assert "30/30" not in file.getvalue()
    assert line.line() == "epoch 1.20/3  step 12/30  8 images/s  0:09 left"


def test_while_the_workers_start_the_line_says_for_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress_line.time, "monotonic", lambda: now)
    file = io.StringIO()
    with line_to(file, first_step=20) as line:
        now = 114.0
        assert line.line() == "starting the workers  0:14"
        line.tick()
        assert file.getvalue() == ""  # a log has it now and then only
        now = 140.0
        line.tick()
        line.tick()
        assert file.getvalue() == "starting the workers  0:40\n"
        line.show(Event(text="training on 2 worker(s)"))
        line.show(StepProgress(step=20, images_per_second=8.0))
        assert line.line().startswith("epoch 2.00/3  step 20/30")  # where it goes on, not at 0
        now = 200.0
        line.tick()
    assert file.getvalue().count("starting the workers") == 1


def test_a_line_is_printed_as_it_is_in_a_terminal() -> None:
    file = io.StringIO()
    with line_to(file, terminal=True) as line:
        line.show(Event(text="ignored: [old]/x.parquet"))
    assert "ignored: [old]/x.parquet" in file.getvalue()
