"""Measurements of a finished run: errors, curves and layer responses. They are made once and kept as a JSON file.

All of them use the run's last checkpoint, not its best: no split has selected it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

import infra.cluster
from infra.storage import Store, open_store
from infra.tracking.metric_point import MetricPoint
from pipelines.checkpoint import Checkpoint, RunFolder
from pipelines.config.compute_budget import multiply_adds
from pipelines.config.recipe import Recipe
from pipelines.data.shards.manifest import load_manifest
from pipelines.evaluation import TASK_MODULES
from pipelines.evaluation.model_source import Ensemble, RunModel
from pipelines.evaluation.models import Request, Target, open_targets
from pipelines.evaluation.placement import KEY, InferencePlacement, Resources, choose, compute
from pipelines.evaluation.scoring import EvalCrops, EvalData, SplitScore, ViewName, score_blocks, score_model
from pipelines.reproduction.plan import SuiteRun
from pipelines.reproduction.spec import Entry, Measure, Suite
from pipelines.training.result import Outcome
from resnet_core.plateau import HeldOut
from resnet_core.schedule import total_samples

_CROPS: dict[Measure, ViewName] = {
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
_RESPONSE_IMAGES = 1000  # with more, a deviation over images, channels and pixels changes by less than a percent
_RESPONSE_BATCH = 100

Warn = Callable[[str], None]
Curve = list[tuple[int, float]]
"""(step, error in percent)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurements:
    """Measurements of one run, or of one ensemble, which has errors only."""

    entry: str
    name: str  # the run's folder; for an ensemble, its entry
    run_ids: tuple[str, ...]  # in MLflow; for an ensemble, those of its members
    errors: dict[str, float]  # by measure, percent
    multiply_adds: int = 0  # of one image's forward pass
    images: int = 0  # seen in training, repetitions included
    images_per_second: float = 0.0  # in training, median of the records
    train_curve: Curve = field(default_factory=list)  # as logged: on augmented images, while the weights change
    test_curve: Curve = field(default_factory=list)
    curve_split: HeldOut = "test"  # split of `test_curve`
    responses: list[tuple[str, float]] = field(default_factory=list)  # (layer, standard deviation), in order
    seed: int = 0
    asked: dict[str, Any]  # everything that decides the other fields

    @classmethod
    def from_json(cls, text: bytes) -> Measurements:
        content = json.loads(text)
        pairs = {key: [tuple(pair) for pair in content[key]] for key in ("train_curve", "test_curve", "responses")}
        return cls(**{**content, **pairs, "run_ids": tuple(content["run_ids"])})

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()


Finished = tuple[SuiteRun, Outcome]


def kept(suite: Suite, entry: Entry, name: str, runs: Sequence[Finished], store: Store) -> Measurements | None:
    """Return stored measurements of `name`; None if there are none for these runs and the suite's settings."""
    try:
        found = Measurements.from_json(store.read(_file(name)))
    except FileNotFoundError:
        return None
    return found if found.asked == _asked(suite, entry, runs) else None


def measure_run(suite: Suite, run: Finished, store: Store, warn: Warn) -> Measurements:
    """Measure a finished run, and store the measurements in the suite's folder.

    Raises:
        UserError: the run's last checkpoint or its data set is missing or damaged.
    """
    from pipelines.evaluation.run_checkpoint import recipe_of

    (planned, outcome), entry = run, run[0].entry
    infra.cluster.connect(min_cpus=1, modules=TASK_MODULES)
    _share_cores(planned)
    checkpoint = RunFolder(open_store(planned.uri)).load(outcome.step)
    records, recipe = checkpoint.records, recipe_of(checkpoint)
    recorded = {measure: key for measure, key in _RECORDED.items() if key in checkpoint.metrics}
    errors = {m: _percent(checkpoint.metrics[key]) for m, key in recorded.items() if m in suite.measures}
    return _keep(
        store,
        Measurements(
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


def measure_ensemble(suite: Suite, entry: Entry, runs: Sequence[Finished], store: Store, warn: Warn) -> Measurements:
    """Score finished runs as one model, and store the measurements in the suite's folder.

    Raises:
        UserError: a run's last checkpoint or its data set is missing or damaged.
    """
    infra.cluster.connect(min_cpus=1, modules=TASK_MODULES)
    _share_cores(runs[0][0])
    return _keep(
        store,
        Measurements(
            entry=entry.name,
            name=entry.name,
            run_ids=tuple(outcome.run_id for _, outcome in runs),
            errors=_scored(suite, runs, set(suite.measures), warn),
            asked=_asked(suite, entry, runs),
        ),
    )


def _share_cores(run: SuiteRun) -> None:
    """Give torch as many threads as a worker has, so that cores remain for data tasks, as in training."""
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
    """Return errors by measure; each pair of split and test-time crops is scored once."""
    errors: dict[str, float] = {}
    for training, crops in sorted({(measure == TRAIN_ERROR, _CROPS[measure]) for measure in measures}):
        targets = [_target(run, crops, warn, training=training) for run in runs]
        score = _score(targets, suite, _choice(runs[0]), training=training)
        for measure in measures:
            if (measure == TRAIN_ERROR, _CROPS[measure]) == (training, crops):
                errors[measure] = _percent(score.top5_accuracy if "top5" in measure else score.accuracy)
    return errors


def _score(targets: Sequence[Target], suite: Suite, choice: InferencePlacement, *, training: bool) -> SplitScore:
    data = targets[0].data
    if training and suite.train_images:
        data = _part(data, suite.train_images)
    return compute(choice, _score_of, Ensemble(members=tuple(target.model for target in targets)), data)


def _score_of(on: Resources, model: Ensemble, data: EvalData) -> SplitScore:
    return score_model(model.open(on.device), on.fed(data), on.limit)


def _choice(run: Finished) -> InferencePlacement:
    """Choose a GPU if the run's recipe allows one and the cluster has one, else the CPU."""
    return choose("auto" if run[0].recipe.run.use_gpu else False, setting=KEY)


def _target(run: Finished, crops: ViewName, warn: Warn, *, training: bool = False) -> Target:
    planned, outcome = run
    split = planned.recipe.data.train_split if training else planned.recipe.data.test_split
    request = Request(targets=(planned.uri,), steps=(outcome.step,), split=split, views=EvalCrops(name=crops))
    (target,) = open_targets(request, warn)
    return target


def _part(data: EvalData, images: int) -> EvalData:
    """Return data with about `images` images of the split: the first ones, which `prepare` has shuffled."""
    return replace(data, world_size=max(1, data.manifest.splits[data.split] // images))


def _responses(run: Finished, checkpoint: Checkpoint, warn: Warn) -> list[tuple[str, float]]:
    """Return (layer, deviation of its responses), on images that the network was not trained on."""
    data = _part(_target(run, "centre", warn).data, _RESPONSE_IMAGES)
    return compute(_choice(run), _responses_of, RunModel.of(checkpoint), data)


def _responses_of(on: Resources, model: RunModel, data: EvalData) -> list[tuple[str, float]]:
    import torch

    from resnet_core.evaluation.diagnostics import response_deviations

    classifier = model.classifier(on.device)
    batches = (
        torch.tensor(block["image"][begin : begin + _RESPONSE_BATCH], device=on.device)
        for block in score_blocks(on.fed(data))
        for begin in range(0, len(block["image"]), _RESPONSE_BATCH)
    )
    deviations = response_deviations(classifier, batches)  # the classifier normalizes the images, as in training
    return [(layer.removeprefix("model."), deviation) for layer, deviation in deviations]


def _images(recipe: Recipe) -> int:
    samples = load_manifest(open_store(recipe.data.uri)).splits[recipe.data.train_split]
    return total_samples(recipe.schedule, samples, recipe.optim.global_batch_size)


def _curve(records: Sequence[MetricPoint], key: str) -> Curve:
    return [(record.step, _percent(record.metrics[key])) for record in records if key in record.metrics]


def _percent(accuracy: float) -> float:
    return 100 * (1 - accuracy)


def _file(name: str) -> str:
    return f"measured/{name}.json"


def _keep(store: Store, measured: Measurements) -> Measurements:
    store.write(_file(measured.name), measured.to_json())
    return measured
