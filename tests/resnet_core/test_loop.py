from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from resnet_core import loop
from resnet_core.augment import normalize
from resnet_core.config import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, OptimConfig, ScheduleConfig
from resnet_core.loop import Evaluation, FitConfig, Intervals, MemoryRecorder, MemorySink, NullRecorder, fit
from resnet_core.models import set_drop_path, set_generator
from resnet_core.schedule import LrSchedule, ramp
from resnet_core.step import Microbatch, RankBatch, StepConfig

TOTAL = 10
OPTIM = OptimConfig(global_batch_size=6, lr_per_256=2.0, ema_decay=0.8)
SCHEDULE = LrSchedule.build(ScheduleConfig(unit="steps", length=TOTAL, warmup=2.0), OPTIM, samples_per_epoch=30)


class Journal:
    """A recorder, a sink, an evaluation and a telemetry that write into one list in the order they are called."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def log(self, step, metrics) -> None:
        self.events.append(f"log {step} {sorted(metrics)}")

    def save(self, state, evaluation) -> None:
        self.events.append(f"save {state.step} {evaluation and evaluation.metrics}")

    def evaluate(self, state) -> Evaluation:
        self.events.append(f"evaluate {state.step}")
        return Evaluation(metrics={"loss": 0.5})

    def telemetry(self) -> dict[str, float]:
        return {"train/images_per_s": 1.0}


def make_run(recorder, sink, **changes) -> FitConfig:
    settings = {
        "schedule": SCHEDULE,
        "intervals": Intervals(
            total_steps=TOTAL, log_every_steps=4, eval_steps=frozenset({5}), checkpoint_every_steps=3
        ),
        "step": StepConfig(augment=AugmentConfig(flip=True)),
        "recorder": recorder,
        "sink": sink,
        "evaluate": lambda state: Evaluation(
            metrics={"loss": float(state.scored_model.fc.weight.detach().square().sum())}
        ),
        "telemetry": dict,
        "seed": 1,
    }
    return FitConfig(**(settings | changes))


@pytest.fixture
def shares(make_batch):
    """shares(first): those of steps first, first + 1, …, as a data stream would yield them."""

    def stream(first: int = 0) -> Iterator[RankBatch]:
        for step in range(first, TOTAL):
            yield RankBatch(microbatches=make_batch(6, seed=step).split(3), count=6)

    return stream


def test_cudnn_does_not_measure_for_steps_that_mix_image_sizes(make_state, make_batch, monkeypatch) -> None:
    wanted: list[bool] = []
    monkeypatch.setattr(loop, "tune_convolutions", wanted.append)
    whole = make_batch(6)
    small = Microbatch(images_BHWC=whole.images_BHWC[:3, :4, :4], labels_B=whole.labels_B[:3])
    shares = [whole.split(3), [small, *whole.split(3)[1:]], whole.split(3)]
    run = make_run(NullRecorder(), MemorySink(), intervals=Intervals(total_steps=3, log_every_steps=0))
    fit(make_state(OPTIM), [RankBatch(microbatches=batches, count=6) for batches in shares], run)
    assert wanted == [True, False, True]


def test_order_of_events(make_state, shares) -> None:
    journal = Journal()
    run = make_run(journal, journal, evaluate=journal.evaluate, telemetry=journal.telemetry)
    state = make_state(OPTIM)
    fit(state, shares(), run)
    training = ["lr", "train/accuracy", "train/images_per_s", "train/loss"]
    evaluated = [f"log 10 {training}", "evaluate 10", "log 10 ['test/loss']", "save 10 {'loss': 0.5}"]
    assert journal.events == [
        *(f"log 3 {training}", "save 3 None"),
        f"log 4 {training}",
        *(f"log 5 {training}", "evaluate 5", "log 5 ['test/loss']", "save 5 {'loss': 0.5}"),
        *(f"log 6 {training}", "save 6 None"),
        f"log 8 {training}",
        *(f"log 9 {training}", "save 9 None"),
        *evaluated,
    ]
    assert state.step == TOTAL


def test_records_are_means_since_the_last_record_with_the_rate_of_their_step(make_state, shares) -> None:
    def losses(log_every: int) -> list[tuple[int, dict[str, float]]]:
        recorder = MemoryRecorder()
        intervals = Intervals(total_steps=TOTAL, log_every_steps=log_every)
        fit(make_state(OPTIM), shares(), make_run(recorder, MemorySink(), intervals=intervals))
        return [(step, metrics) for step, metrics in recorder.points if "lr" in metrics]

    single, by_five = losses(1), losses(5)
    assert [step for step, _ in single] == list(range(1, 11))
    assert [step for step, _ in by_five] == [5, 10]
    assert by_five[0][1]["train/loss"] == pytest.approx(sum(m["train/loss"] for _, m in single[:5]) / 5)
    assert by_five[1][1]["train/loss"] == pytest.approx(sum(m["train/loss"] for _, m in single[5:]) / 5)
    assert [metrics["lr"] for _, metrics in single] == [SCHEDULE(step) for step in range(TOTAL)]


@pytest.mark.parametrize("kill_after", [0, 1, 2, 3])
def test_a_run_resumed_from_any_checkpoint_equals_the_unbroken_one(
    make_state, shares, same_state, kill_after: int
) -> None:
    whole, recorder, sink = make_state(OPTIM), MemoryRecorder(), MemorySink()
    fit(whole, shares(), make_run(recorder, sink))
    step, tensors, _ = sink.saved[kill_after]
    resumed, later_points, later_saves = make_state(OPTIM, seed=42), MemoryRecorder(), MemorySink()
    resumed.load_tensors(tensors)
    resumed.step = step
    fit(resumed, shares(step), make_run(later_points, later_saves))
    same_state(resumed, whole)
    assert later_points.points == [point for point in recorder.points if point[0] > step]
    assert [saved[0] for saved in later_saves.saved] == [saved[0] for saved in sink.saved if saved[0] > step]


@pytest.mark.parametrize("leave_after", [1, 3, 4])
def test_a_run_that_leaves_is_saved_as_it_is_and_goes_on_like_an_unbroken_one(
    make_state, shares, same_state, leave_after: int
) -> None:
    whole, recorder = make_state(OPTIM), MemoryRecorder()
    fit(whole, shares(), make_run(recorder, MemorySink()))
    left, points, sink = make_state(OPTIM), MemoryRecorder(), MemorySink()
    fit(left, shares(), make_run(points, sink, should_stop=lambda step: step == leave_after))
    step, tensors, _ = sink.saved[-1]
    assert (left.step, step, points.points[-1][0]) == (leave_after, leave_after, leave_after)
    resumed = make_state(OPTIM, seed=42)
    resumed.load_tensors(tensors)
    resumed.step = step
    fit(resumed, shares(step), make_run(points, sink))
    same_state(resumed, whole)
    assert {point[0] for point in points.points} == {point[0] for point in recorder.points} | {leave_after}


def test_a_finished_run_does_nothing(make_state, shares, same_state) -> None:
    state, untouched, recorder = make_state(OPTIM), make_state(OPTIM), MemoryRecorder()
    state.step = untouched.step = TOTAL
    fit(state, shares(), make_run(recorder, MemorySink()))
    assert recorder.points == []
    same_state(state, untouched)


def test_no_share_is_taken_that_is_not_trained_on(make_state, shares) -> None:
    taken: list[int] = []

    def endless() -> Iterator[RankBatch]:
        while True:
            taken.append(len(taken))
            yield next(shares())

    fit(make_state(OPTIM), endless(), make_run(NullRecorder(), MemorySink()))
    assert len(taken) == TOTAL


def test_data_that_ends_too_early_is_an_error(make_state, shares) -> None:
    with pytest.raises(RuntimeError, match="the training data ended at step 7 of 10"):
        fit(make_state(OPTIM), shares(3), make_run(NullRecorder(), MemorySink()))


def test_a_broken_loss_stops_the_run_before_it_is_recorded_or_saved(make_state, shares) -> None:
    state, recorder, sink = make_state(OPTIM), MemoryRecorder(), MemorySink()
    with torch.no_grad():
        state.model.fc.bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"train/loss is nan at step 3: lower optim\.lr_per_256"):
        fit(state, shares(), make_run(recorder, sink))
    assert (recorder.points, sink.saved) == ([], [])


def test_a_broken_evaluation_stops_the_run_before_it_is_saved(make_state, shares) -> None:
    sink = MemorySink()
    run = make_run(MemoryRecorder(), sink, evaluate=lambda state: Evaluation(metrics={"loss": float("inf")}))
    with pytest.raises(FloatingPointError, match="test/loss is inf at step 5"):
        fit(make_state(OPTIM), shares(), run)
    assert [step for step, *_ in sink.saved] == [3]


EVERYTHING = OptimConfig(
    optimizer="lamb",
    global_batch_size=6,
    lr_per_256=0.5,
    weight_decay=0.02,
    ema_decay=0.8,
    ema_every=2,
    ema_warmup=True,
)
EVERY_STEP = StepConfig(augment=AugmentConfig(flip=True, mixup_alpha=0.2), clip_norm=1.0, sam_rho=0.1, sam_every=2)


def masked(state, step, generator) -> None:
    set_generator(state.model, generator)
    set_drop_path(state.model, ramp(step, 6))


@pytest.mark.parametrize("kill_after", [0, 1, 2])
def test_resume_is_exact_with_sam_lamb_an_average_mixup_and_random_depth(
    make_state, shares, same_state, kill_after: int
) -> None:
    def state_of(seed: int):
        state = make_state(EVERYTHING, seed=seed)
        state.model.drop_path = 0.3
        state.model.spread_drop_rates()
        return state

    whole, recorder, sink = state_of(0), MemoryRecorder(), MemorySink()
    fit(whole, shares(), make_run(recorder, sink, step=EVERY_STEP, before_step=masked))
    step, tensors, _ = sink.saved[kill_after]
    resumed, later = state_of(42), MemoryRecorder()
    resumed.load_tensors(tensors)
    resumed.step = step
    fit(resumed, shares(step), make_run(later, MemorySink(), step=EVERY_STEP, before_step=masked))
    same_state(resumed, whole)
    assert later.points == [point for point in recorder.points if point[0] > step]


@pytest.mark.parametrize("shape", [{"shape": "plateau", "patience": 0}, {"warmup_until_error": 0.75}])
def test_the_rate_reacts_to_the_records_also_after_a_resume(make_state, shares, shape) -> None:
    config = ScheduleConfig(unit="steps", length=TOTAL, warmup_start_factor=0.5, **({"shape": "constant"} | shape))
    schedule = LrSchedule.build(config, OPTIM, samples_per_epoch=30)
    intervals = Intervals(total_steps=TOTAL, log_every_steps=2, eval_steps=frozenset({2, 4, 6, 8}))
    errors = iter([0.9, 0.5, 0.5, 0.4, 0.3])

    def rates(first: int, history, sink: MemorySink, saved=None):
        state, recorder = make_state(OPTIM), MemoryRecorder()
        if saved:
            state.load_tensors(saved)
            state.step = first
        scored = lambda _: Evaluation(metrics={"accuracy": 1 - next(errors)})  # noqa: E731
        run = make_run(recorder, sink, schedule=schedule, intervals=intervals, evaluate=scored, history=history)
        fit(state, shares(first), run)
        return recorder.points

    sink = MemorySink()
    points = rates(0, [], sink)
    lrs = [metrics["lr"] / OPTIM.peak_lr for _, metrics in points if "lr" in metrics]
    if "warmup_until_error" in shape:
        reached = next(step for step, metrics in points if 1 - metrics.get("train/accuracy", 0.0) < 0.75)
        assert lrs == [0.5 if step <= reached else 1.0 for step in (2, 4, 6, 8, 10)]
        assert reached < TOTAL
    else:
        assert lrs == pytest.approx([1.0, 1.0, 1.0, 0.1, 0.1])
    step, tensors, _ = sink.saved[2]
    errors = iter([0.4, 0.3])
    history = [point for point in points if point[0] <= step]
    assert rates(step, history, MemorySink(), tensors) == [point for point in points if point[0] > step]


def test_the_scored_and_kept_model_has_exact_statistics_at_the_end_and_only_there(
    make_state, shares, make_batch
) -> None:
    asked: list[int] = []
    scored: list[torch.Tensor] = []
    state, sink = make_state(OPTIM), MemorySink()

    def final_batches() -> list[torch.Tensor]:
        asked.append(state.step)
        return [make_batch(6, seed=step).images_BHWC for step in range(4)]

    def evaluate(state) -> Evaluation:
        scored.append(state.scored_model.bn1.running_mean.clone())
        return Evaluation(metrics={"loss": 0.5})

    fit(state, shares(), make_run(NullRecorder(), sink, final_batches=final_batches, evaluate=evaluate))
    assert asked == [TOTAL]
    images = torch.cat(final_batches())
    expected = state.average.model.conv1(normalize(images, IMAGENET_MEAN, IMAGENET_STD)).mean((0, 2, 3))
    torch.testing.assert_close(scored[-1], expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(sink.saved[-1][1]["ema"]["bn1.running_mean"], scored[-1])
    assert torch.equal(sink.saved[-1][1]["model"]["bn1.running_mean"], state.model.bn1.running_mean)
    assert not torch.equal(state.model.bn1.running_mean, scored[-1])


def test_early_stopping_ends_at_the_same_step_also_after_a_resume(make_state, shares, same_state) -> None:
    """The counter is in the records, so a run that resumes between two evaluations counts on."""
    config = ScheduleConfig(unit="steps", length=TOTAL, early_stopping_patience=2)
    schedule = LrSchedule.build(config, OPTIM, samples_per_epoch=30)
    intervals = Intervals(
        total_steps=TOTAL, log_every_steps=2, eval_steps=frozenset({2, 4, 6, 8}), checkpoint_every_steps=1
    )
    accuracies = {2: 0.5, 4: 0.6, 6: 0.6, 8: 0.4, 10: 0.9}
    settings = {
        "schedule": schedule,
        "intervals": intervals,
        "evaluate": lambda state: Evaluation(metrics={"accuracy": accuracies[state.step]}),
    }
    whole, recorder, sink = make_state(OPTIM), MemoryRecorder(), MemorySink()
    fit(whole, shares(), make_run(recorder, sink, **settings))
    assert whole.step == 8
    assert sink.saved[-1][0] == 8 and sink.saved[-1][2] == {"accuracy": 0.4}
    for step, tensors, _ in (sink.saved[4], sink.saved[6], sink.saved[7]):
        resumed, later = make_state(OPTIM, seed=42), MemoryRecorder()
        resumed.load_tensors(tensors)
        resumed.step = step
        history = [point for point in recorder.points if point[0] <= step]
        fit(resumed, shares(step), make_run(later, MemorySink(), history=history, **settings))
        same_state(resumed, whole)
        assert later.points == [point for point in recorder.points if point[0] > step]
