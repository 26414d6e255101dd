"""The driver of a run: find the data set, the run's folder and its MLflow run; train; conclude.

The run's folder has everything that a later command needs to resume; the driver itself keeps no state.
"""

from __future__ import annotations

import math
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

import infra.cluster
from infra.capacity import evaluation_cpus
from infra.errors import UserError
from infra.interruption import AGAIN, explained
from infra.storage import Store, open_store
from infra.tracking.run import NOTE
from infra.tracking.tracker import RunInfo, Tracker, Tracking, resolve_tracking
from pipelines import cli
from pipelines.checkpoint import FINISHED, RECORDS, RUN, Checkpoint, RunFolder
from pipelines.cli.next_command import ui_command
from pipelines.cli.progress_bars import PrepareBar
from pipelines.config.recipe import DEFAULTS, Recipe, build_recipe
from pipelines.data.prepare.prepare import prepare
from pipelines.data.prepare.report import report_lines
from pipelines.data.prepare.sources import open_source
from pipelines.data.shards.manifest import MANIFEST, Manifest, check_shards, load_manifest
from pipelines.evaluation.task import task_of
from pipelines.registry.description import folder_name
from pipelines.training import WORKER_MODULES
from pipelines.training.imbalance import check_class_names, class_balance
from pipelines.training.placement import Placement, least_cpus, place
from pipelines.training.preview import summary, warnings
from pipelines.training.recipe_for_data import check_own_data
from pipelines.training.result import DELIVERY_TIMEOUT_S, Outcome, conclude, curves_of, early_stop, run_note
from pipelines.training.same_run import RUN_KEYS, check_same_run, trained_on
from pipelines.training.start_weights import PinnedStart, StartWeights, find_start
from resnet_core.schedule import total_samples, total_steps

if TYPE_CHECKING:
    from pipelines.training.progress import ProgressLine
    from pipelines.training.stream import Stream
    from pipelines.training.trial_reporting import Reporting

_ROOT = Path(__file__).resolve().parents[2]
_FINISHED_KEYS = ("run_id", "step", "accuracy")  # required in finished.json; the other keys have defaults
_CHANNELS = 3  # of every stored image, also of grey ones


def train(recipe: Recipe, console: Console, parent_run_id: str = "", reporting: Reporting | None = None) -> Outcome:
    """Train the run that `recipe` names to its end, from its newest checkpoint if it has one.

    Args:
        recipe: the run's recipe.
        console: the terminal.
        parent_run_id: MLflow run that becomes the parent of this one; "" = none.
        reporting: how a trial reports to its study; None if the run is no trial.

    Raises:
        UserError: an error that the user can correct; every committed checkpoint is kept.
    """
    folder = _open_run(recipe)
    with explained(lambda: _interrupted_line(folder)):
        return _train(recipe, console, folder, parent_run_id, reporting)


def _train(
    recipe: Recipe, console: Console, folder: RunFolder, parent_run_id: str, reporting: Reporting | None
) -> Outcome:
    began = time.monotonic()
    store = open_store(recipe.data.uri)
    if store.is_remote:  # fail at once, not after a minute of retries
        store.check_access(write=False)
    done = folder.read_json(FINISHED, *_FINISHED_KEYS)
    if done is not None:  # its data set may be gone by now
        check_same_run(folder, recipe, load_manifest(store) if store.exists(MANIFEST) else None)
        console.print(f"run {recipe.run_name} is finished: nothing to do")
        console.print(f"trained on  {trained_on(folder) or 'a data set that is not recorded'}")
        return Outcome.from_json(done)
    manifest = find_data(recipe, store, console)
    recipe = fitted(recipe, manifest)
    check_same_run(folder, recipe, manifest)
    tracking = resolve_tracking(cli.local_home(recipe.run.home))
    first = recipe.phases(manifest.splits[recipe.data.train_split])[0].model
    start = find_start(recipe, first, folder, tracking, console.print)
    for line in (*summary(recipe, manifest), *_start_lines(start), *warnings(recipe, store, manifest)):
        console.print(line)
    with ThreadPoolExecutor(max_workers=1) as pool:
        ready = pool.submit(_warm_tracker, tracking)  # both take seconds, mostly waiting
        infra.cluster.connect(min_cpus=least_cpus(recipe.run), modules=WORKER_MODULES)
        placement = place(recipe.run)
        placement.check()
        ready.result()
    console.print(placement.line)
    info = _run_info(recipe, manifest, parent_run_id, reporting)
    info = replace(info, tags={**info.tags, **(start.tags if start else {})})
    tracker = _start_tracker(recipe, manifest, folder, tracking, console, info)
    newest = _newest(recipe, manifest, folder, console)
    for record in newest.records if newest else ():  # MLflow may have missed some
        tracker.log(record)
    shown_by = "" if tracking.is_server else f"   ({ui_command(recipe.run.home)})"
    console.print(f"MLflow run  {tracker.ui_url}{shown_by}")
    with tracker.finished_after(DELIVERY_TIMEOUT_S):
        if newest is None or not _ended(recipe, manifest, newest):
            data_cpus = reporting.data_cpus if reporting else math.inf
            stream = _stream(recipe, placement, manifest, folder, data_cpus, console)
            progress = _progress_line(recipe, manifest, console, newest.step if newest else 0)
            weights = start.keep(folder, open_store(recipe.run.home)) if start else None
            _fit(recipe, placement, stream, weights, tracker, progress, reporting)
        outcome = conclude(recipe, manifest, folder, tracker, console, scores_test=reporting is None)
        if outcome.stopped_early:
            console.print(f"stopped early {outcome.stopped_early}")
            tracker.tag({"stopped_early": outcome.stopped_early})
        tracker.tag({NOTE: run_note(recipe, manifest, outcome)})
    outcome = Outcome(**{**outcome.to_json(), "seconds": round(time.monotonic() - began, 1)})
    folder.write_json(FINISHED, outcome.to_json())
    return outcome


def _open_run(recipe: Recipe) -> RunFolder:
    home = open_store(recipe.run.home)
    home.check_access(write=True)
    return RunFolder(home.sub(recipe.run_name))


def _interrupted_line(folder: RunFolder) -> str:
    """Return the line to print after a Ctrl-C."""
    steps = folder.steps()
    where = f"at step {steps[-1]}" if steps else "before the first checkpoint"
    return f"interrupted {where}: the same command resumes"


def _warm_tracker(tracking: Tracking) -> None:
    from infra.tracking.client import connect

    connect(tracking)


def find_data(recipe: Recipe, store: Store, console: Console) -> Manifest:
    """Return the manifest of the data set; prepare it first if it is missing and the recipe names a source."""
    if recipe.data.source and not store.exists(MANIFEST):
        made = recipe.prepare
        source = open_source(
            recipe.data.source,
            holdout=made.holdout,
            validation=made.validation,
            seed=made.seed,
            keep=store,
            columns=made,
        )
        console.print(f"preparing {source.description} at {store.description}")
        infra.cluster.connect(min_cpus=1, modules=WORKER_MODULES)
        with PrepareBar(console) as bar:
            manifest = prepare(source, store, recipe.prepare, bar.show)
        for line in report_lines(store):
            console.print(line)
        return manifest
    manifest = load_manifest(store)
    check_own_data(recipe, store, manifest)
    if strange := check_shards(store, manifest):
        console.print(f"ignored: {', '.join(strange)} in {store.description}, which manifest.json does not name")
    return manifest


def fitted(recipe: Recipe, manifest: Manifest) -> Recipe:
    """Return the recipe with the values that the data set decides, and check the recipe against the data set."""
    evaluated = recipe.data.eval_split
    if evaluated == DEFAULTS["data.eval_split"] and evaluated not in manifest.splits:
        evaluated = recipe.data.test_split
    for split in (recipe.data.train_split, evaluated, recipe.data.test_split):
        manifest.require_split(split)
    classes = len(manifest.class_names)
    if recipe.model.num_classes not in (0, classes):
        raise UserError(
            f"model.num_classes must be {classes} for data set {manifest.name}, got {recipe.model.num_classes}"
        )
    if recipe.model.in_channels != _CHANNELS:
        raise UserError(
            f"model.in_channels must be {_CHANNELS} (data sets store RGB images), got {recipe.model.in_channels}"
        )
    if recipe.data.device_cache and manifest.stored.form != "raw":
        raise UserError(
            f"data.device_cache needs raw pixels: data set {manifest.name} holds {manifest.stored.form} images"
        )
    (least, most), batch = recipe.run.workers, recipe.optim.global_batch_size
    workers = max(1, most) if least == most else 1  # an elastic run also splits unevenly
    if batch % (workers * recipe.data.repeats) or batch // recipe.data.repeats < most:
        among = f"run.num_workers = {most}"
        crops = f" and data.repeats = {recipe.data.repeats}" if recipe.data.repeats > 1 else ""
        raise UserError(
            f"optim.global_batch_size = {batch} cannot be divided among {among}{crops}: use a multiple of "
            f"{max(1, most) * recipe.data.repeats}"
        )
    check_class_names(recipe, manifest)
    task = task_of(multi_label=manifest.multi_label)
    decided = {"model.num_classes": classes, "data.eval_split": evaluated, **task.settings(recipe)}
    recipe = build_recipe({}, {**recipe.flat(), **decided}, where=recipe.name)
    samples = manifest.splits[recipe.data.train_split]
    recipe.check_early_stopping()
    recipe.average_start(samples)
    recipe.head_steps(samples)
    recipe.check_batch_norm(samples)
    return recipe


def _start_lines(start: PinnedStart | None) -> list[str]:
    """Return what the run starts from, and a warning if the recipe differs from what the weights expect."""
    return [start.line, *([start.warning] if start.warning else [])] if start else []


def _run_info(recipe: Recipe, manifest: Manifest, parent_run_id: str, reporting: Reporting | None) -> RunInfo:
    """Return the name, parameters and tags of the run in MLflow."""
    parent = {"mlflow.parentRunId": parent_run_id} if parent_run_id else {}
    digests = {"sha256.data": manifest.digest, "sha256.recipe": recipe.digest}
    return RunInfo(
        experiment=recipe.run.experiment,
        name=recipe.run_name,
        once=reporting.once if reporting else "",
        params={**recipe.flat(), "data.digest": manifest.digest},
        tags={
            NOTE: run_note(recipe, manifest),
            **digests,
            **parent,
            **(reporting.tags if reporting else {}),
            **_code_version(),
        },
        curves=curves_of(recipe, manifest),
    )


def _start_tracker(
    recipe: Recipe, manifest: Manifest, folder: RunFolder, tracking: Tracking, console: Console, info: RunInfo
) -> Tracker:
    """Return the run in MLflow: the one that this folder began, or a new one."""
    known = folder.read_json(RUN, *RUN_KEYS) or {}
    tracker = Tracker.start(tracking, replace(info, run_id=known.get("run_id")), warn=console.print)
    if not known:
        data = {"data_digest": manifest.digest, "data_uri": open_store(recipe.data.uri).uri}
        folder.write_json(RUN, {"run_id": tracker.run_id, "trajectory": recipe.trajectory(), **data})
        tracker.text("recipe.toml", recipe.to_toml())
        splits = {recipe.data.train_split: "train", recipe.data.eval_split: recipe.data.held_out}
        for split, context in (splits | {recipe.data.test_split: "test"}).items():
            tracker.dataset(f"{folder_name(recipe.data.uri)}-{split}", manifest.digest, recipe.data.uri, context)
    return tracker


def _newest(recipe: Recipe, manifest: Manifest, folder: RunFolder, console: Console) -> Checkpoint | None:
    """Return the newest checkpoint with its records. Its weights are verified by the workers that load them."""
    newest = folder.newest(console.print, only=(RECORDS,))
    if newest is not None and _ended(recipe, manifest, newest):  # no worker will load it
        return folder.newest(console.print)
    return newest


def _ended(recipe: Recipe, manifest: Manifest, newest: Checkpoint) -> bool:
    """Return whether the run has nothing more to train: its last step is done, or early stopping has ended it."""
    return newest.step == _steps(recipe, manifest) or bool(early_stop(recipe, manifest, newest))


def _steps(recipe: Recipe, manifest: Manifest) -> int:
    return total_steps(recipe.schedule, manifest.splits[recipe.data.train_split], recipe.optim.global_batch_size)


def _stream(
    recipe: Recipe, placement: Placement, manifest: Manifest, folder: RunFolder, cpus: float, console: Console
) -> Stream:
    """Return the stream that the run's workers receive."""
    from pipelines.training.stream import Stream

    balance = class_balance(recipe, manifest, folder.store)
    for line in balance.lines:
        console.print(line)
    samples, batch = manifest.splits[recipe.data.train_split], recipe.optim.global_batch_size
    repeats = recipe.data.repeats
    return Stream(
        manifest=manifest,
        data_uri=open_store(recipe.data.uri).uri,
        run_uri=folder.store.uri,
        crop=recipe.data.at(recipe.data.image_size),
        sizes=tuple((phase.first_step * batch // repeats, phase.image_size) for phase in recipe.phases(samples)),
        split=recipe.data.train_split,
        seed=recipe.run.seed,
        total_samples=max(1, total_samples(recipe.schedule, samples, batch) // repeats),
        step_rows=batch // repeats,
        worker_rows=batch // repeats // max(1, placement.workers[1]),
        task_mb=recipe.data.task_mb,
        ordered=recipe.data.ordered,
        decode_on=recipe.data.decode_on,
        cache=recipe.data.cache,
        tolerant=recipe.data.max_bad_samples > 0,
        balanced=balance.balanced,
        class_weights=balance.class_weights,
        cpus=cpus,
        worker_cpus=placement.held_cpus,
        evaluation_cpus=evaluation_cpus(),
    )


def _progress_line(recipe: Recipe, manifest: Manifest, console: Console, first_step: int) -> ProgressLine:
    from pipelines.training.progress import ProgressLine

    samples, batch = manifest.splits[recipe.data.train_split], recipe.optim.global_batch_size
    return ProgressLine(
        console=console,
        total_steps=_steps(recipe, manifest),
        steps_per_epoch=samples / batch,
        global_batch_size=batch,
        first_step=first_step,
    )


def _fit(  # noqa: PLR0913, PLR0917 - everything that a run is made of
    recipe: Recipe,
    placement: Placement,
    stream: Stream,
    start: StartWeights | None,
    tracker: Tracker,
    line: ProgressLine,
    reporting: Reporting | None,
) -> None:
    """Run Ray Train to the last step, with a thread that delivers the workers' messages."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from pipelines.training.messages import MessageQueue
    from pipelines.training.preemption import StopReason, stop_on_signals
    from pipelines.training.progress import StallCheck, delivering_messages
    from pipelines.training.trainer import launch

    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = MessageQueue.options(scheduling_strategy=this_node).remote()  # type: ignore[attr-defined]  # Ray adds it

    def stop() -> bool:
        training: bool = ray.get(queue.stop.remote())
        tracker.killed()
        line.console.print(f"stopping: {'committing a checkpoint' if training else 'no step is under way'} ({AGAIN})")
        return training

    with delivering_messages(queue, tracker, line, StallCheck(placement)), stop_on_signals(stop) as stopped:
        cause = StopReason.STOPPED if reporting and reporting.enter(queue) else StopReason.PREEMPTED
        while cause == StopReason.PREEMPTED:  # resume on the other nodes from the checkpoint just committed
            cause = launch(recipe, placement, stream, start, queue, reporting)
    if cause == StopReason.STOPPED or stopped.is_set():
        raise KeyboardInterrupt


def _code_version() -> dict[str, str]:
    """Return the git commit as an MLflow tag; empty if this is no checkout."""
    command = ["git", "-C", str(_ROOT), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"mlflow.source.git.commit": commit}
