"""What a suite keeps of a finished run: its errors, its curves, its layers' responses. Measured once, then a JSON file.

All of it is of the run's last checkpoint, not of its best: no split has chosen anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

import infra.cluster
from infra.records import Record
from infra.storage import Store, open_store
from pipelines.budget import multiply_adds
from pipelines.checkpoint import Checkpoint, RunFolder
from pipelines.data.manifest import load_manifest
from pipelines.inference import KEY, Choice, On, choose, compute
from pipelines.model_source import Ensemble, RunModel
from pipelines.outcome import Outcome
from pipelines.recipe import Recipe
from pipelines.scoring import EvalData, SplitScore, ViewName, Views, score_blocks, score_model
from pipelines.suite import Entry, Measure, Suite
from pipelines.suite_plan import SuiteRun
from pipelines.targets import Request, Target, open_targets
from resnet_core.reaction import HeldOut
from resnet_core.schedule import total_samples

_VIEWS: dict[Measure, ViewName] = {
    "train_error": "centre",
    "test_error": "centre",
    "test_top5_error": "centre",
    "ten_crop_error": "ten_crop",
    "ten_crop_top5_error": "ten_crop",
    "multi_scale_error": "multi_scale",
    "multi_scale_top5_error": "multi_scale",
}
_RECORDED: dict[Measure, str] = {"test_error": "test/accuracy", "test_top5_error": "test/top5_accuracy"}
TRAIN_ERROR: Measure = "train_error"
_RATE = "train/images_per_second"
_RESPONSE_IMAGES = 1000  # beyond these, a deviation over images, channels and pixels no longer moves by a percent
_RESPONSE_BATCH = 100

Warn = Callable[[str], None]
Curve = list[tuple[int, float]]
"""(step, error in percent)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One run as tables and figures need it; or one ensemble, which has errors only."""

    entry: str
    name: str  # of the run's folder; of an ensemble, its entry's
    run_ids: tuple[str, ...]  # of MLflow; an ensemble has its members'
    errors: dict[str, float]  # by measure, percent
    multiply_adds: int = 0  # of one image's forward pass
    images: int = 0  # that training saw, repetitions counted
    images_per_second: float = 0.0  # in training, the median of the records
    train_curve: Curve = field(default_factory=list)  # as recorded: augmented images, while the weights change
    test_curve: Curve = field(default_factory=list)
    curve_split: HeldOut = "test"  # that `test_curve` is of
    responses: list[tuple[str, float]] = field(default_factory=list)  # (layer, standard deviation), in order
    seed: int = 0
    asked: dict[str, Any]  # what decides the rest

    @classmethod
    def from_json(cls, text: bytes) -> Measured:
        content = json.loads(text)
        pairs = {key: [tuple(pair) for pair in content[key]] for key in ("train_curve", "test_curve", "responses")}
        return cls(**{**content, **pairs, "run_ids": tuple(content["run_ids"])})

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()


Finished = tuple[SuiteRun, Outcome]


def kept(suite: Suite, entry: Entry, name: str, runs: Sequence[Finished], store: Store) -> Measured | None:
    """What the suite's folder `store` holds under `name`, where it was measured on these runs and as the suite asks."""
    try:
        found = Measured.from_json(store.read(_file(name)))
    except FileNotFoundError:
        return None
    return found if found.asked == _asked(suite, entry, runs) else None


def measure_run(suite: Suite, run: Finished, store: Store, warn: Warn) -> Measured:
    """Measure a finished run, and keep it in the suite's folder.

    Raises:
        UserError: its last checkpoint or its data are gone or damaged.
    """
    from pipelines.serving_model import recipe_of

    (planned, outcome), entry = run, run[0].entry
    infra.cluster.connect(min_cpus=1)
    _share_cores(planned)
    checkpoint = RunFolder(open_store(planned.uri)).load(outcome.step)
    records, recipe = checkpoint.records, recipe_of(checkpoint)
    recorded = {measure: key for measure, key in _RECORDED.items() if key in checkpoint.metrics}
    errors = {m: _percent(checkpoint.metrics[key]) for m, key in recorded.items() if m in suite.measures}
    return _keep(
        store,
        Measured(
            entry=entry.name,
            name=planned.name,
            run_ids=(outcome.run_id,),
            seed=planned.seed,
            errors=errors | _scored(suite, [run], set(suite.measures) - set(errors), warn),
            multiply_adds=multiply_adds(recipe),
            images=_images(recipe),
            images_per_second=median(point.metrics[_RATE] for point in records if _RATE in point.metrics),
            train_curve=_curve(records, "train/accuracy"),
            test_curve=_curve(records, f"{recipe.data.held_out}/accuracy"),
            curve_split=recipe.data.held_out,
            responses=_responses(run, checkpoint, warn) if _drawn(suite, entry) else [],
            asked=_asked(suite, entry, [run]),
        ),
    )


def measure_ensemble(suite: Suite, entry: Entry, runs: Sequence[Finished], store: Store, warn: Warn) -> Measured:
    """Score finished runs as one model, and keep that in the suite's folder. UserError as in `measure_run`."""
    infra.cluster.connect(min_cpus=1)
    _share_cores(runs[0][0])
    return _keep(
        store,
        Measured(
            entry=entry.name,
            name=entry.name,
            run_ids=tuple(outcome.run_id for _, outcome in runs),
            errors=_scored(suite, runs, set(suite.measures), warn),
            asked=_asked(suite, entry, runs),
        ),
    )


def _share_cores(run: SuiteRun) -> None:
    """As many threads as a worker has: data tasks need cores beside them, as they do in training."""
    import torch

    if run.recipe.compute.threads_per_worker:
        torch.set_num_threads(run.recipe.compute.threads_per_worker)


def _asked(suite: Suite, entry: Entry, runs: Sequence[Finished]) -> dict[str, Any]:
    return {
        "runs": [[run.name, outcome.run_id, outcome.step] for run, outcome in runs],
        "measures": sorted(suite.measures),
        "train_images": suite.train_images,
        "responses": _drawn(suite, entry),
    }


def _drawn(suite: Suite, entry: Entry) -> bool:
    return any(entry.name in figure.entries for figure in suite.responses)


def _scored(suite: Suite, runs: Sequence[Finished], measures: set[Measure], warn: Warn) -> dict[str, float]:
    """Errors by measure; each split and each way of looking at it is gone through once."""
    errors: dict[str, float] = {}
    for training, views in sorted({(measure == TRAIN_ERROR, _VIEWS[measure]) for measure in measures}):
        targets = [_target(run, views, warn, training=training) for run in runs]
        score = _score(targets, suite, _choice(runs[0]), training=training)
        for measure in measures:
            if (measure == TRAIN_ERROR, _VIEWS[measure]) == (training, views):
                errors[measure] = _percent(score.top5_accuracy if "top5" in measure else score.accuracy)
    return errors


def _score(targets: Sequence[Target], suite: Suite, choice: Choice, *, training: bool) -> SplitScore:
    data = targets[0].data
    if training and suite.train_images:
        data = _part(data, suite.train_images)
    return compute(choice, _score_of, Ensemble(members=tuple(target.model for target in targets)), data)


def _score_of(on: On, model: Ensemble, data: EvalData) -> SplitScore:
    return score_model(model.open(on.device), on.fed(data), on.limit)


def _choice(run: Finished) -> Choice:
    """A GPU where the run was to have one and the cluster has one."""
    return choose("auto" if run[0].recipe.run.use_gpu else False, setting=KEY)


def _target(run: Finished, views: ViewName, warn: Warn, *, training: bool = False) -> Target:
    planned, outcome = run
    split = planned.recipe.data.train_split if training else planned.recipe.data.test_split
    request = Request(targets=(planned.uri,), steps=(outcome.step,), split=split, views=Views(name=views))
    (target,) = open_targets(request, warn)
    return target


def _part(data: EvalData, images: int) -> EvalData:
    """About so many images of a split: its first ones, which `prepare` has shuffled."""
    return replace(data, world_size=max(1, data.manifest.splits[data.split] // images))


def _responses(run: Finished, checkpoint: Checkpoint, warn: Warn) -> list[tuple[str, float]]:
    """By layer, on images that the network was not trained on."""
    data = _part(_target(run, "centre", warn).data, _RESPONSE_IMAGES)
    return compute(_choice(run), _responses_of, RunModel.of(checkpoint), data)


def _responses_of(on: On, model: RunModel, data: EvalData) -> list[tuple[str, float]]:
    import torch

    from resnet_core.evaluation.diagnostics import response_deviations

    classifier = model.classifier(on.device)
    batches = (
        torch.tensor(block["image"][begin : begin + _RESPONSE_BATCH], device=on.device)
        for block in score_blocks(on.fed(data))
        for begin in range(0, len(block["image"]), _RESPONSE_BATCH)
    )
    deviations = response_deviations(classifier, batches)  # the classifier normalizes, as in training
    return [(layer.removeprefix("model."), deviation) for layer, deviation in deviations]


def _images(recipe: Recipe) -> int:
    samples = load_manifest(open_store(recipe.data.uri)).splits[recipe.data.train_split]
    return total_samples(recipe.schedule, samples, recipe.optim.global_batch_size)


def _curve(records: Sequence[Record], key: str) -> Curve:
    return [(record.step, _percent(record.metrics[key])) for record in records if key in record.metrics]


def _percent(accuracy: float) -> float:
    return 100 * (1 - accuracy)


def _file(name: str) -> str:
    return f"measured/{name}.json"


def _keep(store: Store, measured: Measured) -> Measured:
    store.write(_file(measured.name), measured.to_json())
    return measured
