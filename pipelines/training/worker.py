"""The training function of a Ray Train worker: join the stream, load the checkpoint to resume from, fit."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.train
import torch

from infra.errors import UserError
from infra.storage import open_store
from pipelines.checkpoint import RunFolder
from pipelines.config.recipe import Recipe
from pipelines.data.order.ledger import Ledger
from pipelines.data.tasks.crops import ImageSum
from pipelines.data.tasks.timing import DataTimes
from pipelines.evaluation.scoring import EvalData, eval_batches, score_blocks, window_of
from pipelines.evaluation.task import task_of
from pipelines.training.bad_samples import BadSamples
from pipelines.training.batches import RankBatches
from pipelines.training.build import (
    before_step,
    build_state,
    continued,
    decided,
    deepen,
    intervals_of,
    scaler_of,
    step_config,
    steps_of_rank,
    unfreeze,
)
from pipelines.training.checkpoint_writer import CheckpointWriter, details
from pipelines.training.data_stalls import data_metrics
from pipelines.training.device_cache import device_cache_blocks, load_device_cache
from pipelines.training.device_decode import DeviceImages
from pipelines.training.errors import memory_error, note, unwrapped_user_errors
from pipelines.training.messages import Event, Message, MetricMessage, StepProgress
from pipelines.training.metrics import RunMetrics, RunRecorder, Sampler
from pipelines.training.ordered import opened
from pipelines.training.preemption import StopReason, StopVote
from pipelines.training.process_group import worker_device
from pipelines.training.start_weights import StartWeights
from pipelines.training.stream import Stream
from pipelines.training.trial_reporting import ReportingWriter
from resnet_core.compute import configure, share_compilers
from resnet_core.curriculum import phase_at
from resnet_core.distributed import barrier, sum_over_ranks_
from resnet_core.evaluation.exact import evaluate_into
from resnet_core.loop import Evaluation, FitConfig, fit
from resnet_core.schedule import LrSchedule

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    from ray.actor import ActorHandle
    from torch import Tensor

    from infra.tracking.metric_point import MetricPoint
    from resnet_core.evaluation import EvalBatch
    from resnet_core.state import TrainState
    from resnet_core.step import RankBatch, StepConfig

_PROGRESS_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerJob:
    """Everything that the driver sends to a worker."""

    recipe: Recipe  # model.num_classes filled in
    gpu: bool  # whether each worker has one
    stream: Stream
    start: StartWeights | None  # weights that the run starts from
    mailbox: ActorHandle[Any]  # queue of messages to the driver
    reports: bool = False  # whether the run is a trial, which reports to its study


def train_worker(config: dict[str, Any]) -> StopReason:
    """Train one rank from the newest checkpoint to the last step, or until all ranks stop early; return the reason."""
    job: WorkerJob = config["job"]
    worker: _Worker | None = None
    with unwrapped_user_errors():
        try:
            worker = _Worker(job)
            return worker.run()
        except Exception as error:
            if worker and (explanation := worker.explained(error)):
                raise explanation from error
            start, rank = ray.get_runtime_context().get_actor_id(), ray.train.get_context().get_world_rank()
            note(error, start=start or "", rank=rank, step=worker.at if worker else 0)
            raise
        finally:
            if worker:
                worker.close()


class _Worker:
    def __init__(self, job: WorkerJob) -> None:
        context = ray.train.get_context()
        self.job = job
        recipe = job.recipe
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = worker_device(gpu=job.gpu)
        share_compilers(context.get_local_world_size())
        self.recipe = recipe = decided(recipe, self.device, self._send_line)
        self.steps = steps_of_rank(recipe, job.stream, self.world_size)
        self.batches = self._open_batches()
        configure(recipe.compute, self.device)
        self.folder = RunFolder(open_store(job.stream.run_uri))
        self.rate_since = time.monotonic()
        self.progress_sent_at = 0.0
        self.at = 0  # the current step
        self.stop_vote = StopVote()
        self.run_metrics = RunMetrics(recipe.run_name, self.rank, self.world_size)
        self.sampler = None
        if context.get_local_rank() == 0:
            self.sampler = Sampler(context.get_node_rank(), self._send_sample)

    def _open_batches(self) -> RankBatches:
        """Start to read the stream. The first rows take seconds; meanwhile the model is built."""
        stream, data = self.job.stream, self.recipe.data
        maker = DeviceImages(device=self.device, interpolation=data.interpolation)
        if data.device_cache:
            cache = load_device_cache(stream, self.device)
            blocks = device_cache_blocks(stream, cache, self.steps, self.rank)
            maker = replace(maker, cached_NHWC=cache.images_NHWC)
        else:
            shard = ray.train.get_dataset_shard("train")
            blocks = opened(shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1))
        return RankBatches(blocks, self.steps, self.device, maker, self.rank)

    def run(self) -> StopReason:
        stream = self.job.stream
        samples = stream.manifest.splits[stream.split]
        state = build_state(self.recipe, self.device, self.world_size, samples, self.job.start)
        writer = self._resume(state)
        recipe = self.recipe
        weights = np.array(stream.class_weights, dtype=np.float32)
        step = step_config(recipe, self._tensor(writer.mean_image), self._tensor(weights if len(weights) else None))
        precision = recipe.compute.precision
        text = f"training on {self.world_size} worker(s) in {precision} from step {state.step}"
        self._send_from_rank_0(Event(text=text, training=True))
        self.rate_since = time.monotonic()
        fit(
            state,
            self._batches_of_steps(state.step, writer),
            FitConfig(
                schedule=LrSchedule.build(recipe.schedule, recipe.optim, samples),
                intervals=intervals_of(recipe, samples, self.steps.total_steps),
                step=step,
                recorder=RunRecorder(history=writer.history, shown=self.run_metrics, tell=self._send_from_rank_0),
                sink=ReportingWriter(writer, recipe.evaluation_steps(samples)) if self.job.reports else writer,
                evaluate=partial(self._evaluate, step=step),
                held_out=recipe.data.held_out,
                telemetry=partial(self._telemetry, writer),
                seed=recipe.run.seed,
                rank=self.rank,
                history=[(record.step, record.metrics) for record in writer.history],
                should_stop=self.stop_vote,
                before_step=before_step(recipe, samples, self.world_size),
                final_batches=self._training_images if recipe.optim.exact_bn_images else None,
            ),
        )
        writer.wait()
        if self.stop_vote.cause:
            barrier()  # no rank ends before rank 0 has committed
            self._send_from_rank_0(
                Event(text=f"checkpoint of step {state.step} committed before stopping", training=False)
            )
        return self.stop_vote.cause

    def explained(self, error: Exception) -> UserError | None:
        """Return a UserError for an error that would come again at every start, else None."""
        images = self.steps.images_per_rank
        return memory_error(error, self.device, min(images, self.steps.microbatch_size or images))

    def close(self) -> None:
        """Stop the thread that samples system metrics."""
        if self.sampler:
            self.sampler.stop()

    def _batches_of_steps(self, start: int, writer: CheckpointWriter) -> Iterator[RankBatch]:
        """Yield this rank's batch of each step, and send the progress to the driver between steps."""
        for step, batch in enumerate(self.batches.from_step(start), start):
            writer.watch()
            self.at = step
            yield batch
            self._progress(step + 1)

    def _resume(self, state: TrainState) -> CheckpointWriter:
        """Load the checkpoint that the stream resumes from; return a writer with its ledger and history."""
        manifest, split = self.job.stream.manifest, self.job.stream.split
        ledger, history, mean_image = Ledger(manifest.splits[split]), [], None
        base = self.batches.base()
        checkpoint = self.folder.load(base) if base else None
        if checkpoint:
            self.recipe = continued(self.recipe, checkpoint.recipe, self.device)
            state.scaler = scaler_of(self.recipe, self.device)
            phase = phase_at(self.recipe.phases(manifest.splits[split]), base - 1)  # of the last step that was trained
            if phase.first_step:
                deepen(state, self.recipe, phase, self.world_size)
            if 0 < self.recipe.head_steps(manifest.splits[split]) < base:
                unfreeze(state, self.recipe, self.world_size)
            state.load_tensors(checkpoint.tensors)
            state.step = base
            ledger, history = Ledger.from_arrays(checkpoint.ledger), checkpoint.records
            mean_image = checkpoint.mean_image
        elif self.recipe.augment.pixel_mean:
            mean_image = self._mean_image()
        return CheckpointWriter(
            rank=self.rank,
            batches=self.batches,
            folder=self.folder,
            recipe=self.recipe,
            data_digest=manifest.digest,
            ledger=ledger,
            split_start=manifest.split_start(split),
            history=history,
            bad=BadSamples(manifest, self.folder, self.recipe.data.max_bad_samples, self._send_line, checkpoint),
            say=self._send_line,
            mean_image=mean_image,
        )

    def _mean_image(self) -> npt.NDArray[np.float32]:
        """Return the mean of the training split's centre crops; each rank reads its part of the split."""
        self._send_from_rank_0(Event(text="computing the mean image of the training split"))
        data = self._data(self.job.stream.split, tolerant=self.job.stream.tolerant)
        part = ImageSum.of(score_blocks(data), self.recipe.data.image_size)
        total = sum_over_ranks_(torch.from_numpy(part.total.astype("int64"))).numpy()
        count = sum_over_ranks_(torch.tensor(part.count))
        return ImageSum(total=total, count=int(count)).mean()

    def _tensor(self, values: npt.NDArray[Any] | None) -> Tensor | None:
        return None if values is None else torch.tensor(values, device=self.device)

    def _evaluate(self, state: TrainState, step: StepConfig) -> Evaluation:
        began = time.monotonic()
        model = self.recipe.model
        task = task_of(multi_label=model.multi_label)
        sums = task.sums(model.num_classes, self.device)
        batches = self._batches(self.recipe.data.eval_split, self.steps.images_per_rank)
        mistakes = evaluate_into(sums, state.scored_model, batches, step, max_mistakes=task.mistakes_shown)
        self.rate_since += time.monotonic() - began  # not part of the training rate
        return Evaluation(metrics=sums.metrics(), details=details(sums, mistakes))

    def _training_images(self) -> Iterator[Tensor]:
        """Yield this rank's training images for BatchNorm's exact statistics, in batches as large as in training."""
        missing = -(-self.recipe.optim.exact_bn_images // self.world_size)
        size = self.steps.images_per_rank
        stream, rows = self.job.stream, min(size, self.steps.microbatch_size or size)
        for batch in self._batches(stream.split, rows, tolerant=stream.tolerant):
            yield batch.images_BHWC[:missing]
            missing -= len(batch.images_BHWC)
            if missing <= 0:
                return

    def _batches(self, split: str, batch_size: int, *, tolerant: bool = False) -> Iterator[EvalBatch]:
        """Yield this rank's part of a split on the device, without augmentation."""
        return eval_batches(self._data(split, tolerant=tolerant), self.device, batch_size=batch_size)

    def _data(self, split: str, *, tolerant: bool) -> EvalData:
        stream = self.job.stream
        return EvalData(
            store=open_store(stream.data_uri),
            manifest=stream.manifest,
            crop=stream.crop,
            cache=stream.cache,
            tolerant=tolerant,
            split=split,
            rank=self.rank,
            world_size=self.world_size,
            window=window_of(self.world_size, stream.worker_cpus),
            task_cpus=stream.evaluation_cpus,
        )

    def _telemetry(self, writer: CheckpointWriter) -> dict[str, float]:
        """Return the metrics since the last call over all ranks: rate, waits for data, time of the last checkpoint."""
        metrics = data_metrics(self.batches.times, max(time.monotonic() - self.rate_since, 1e-9))
        self.run_metrics.data(self.batches.times)
        self.batches.times, self.rate_since = DataTimes(), time.monotonic()
        return metrics | writer.take_timing()

    def _send_from_rank_0(self, message: Message) -> None:
        if self.rank == 0:
            self.stop_vote.receive(self._send(message))

    def _send_sample(self, record: MetricPoint) -> None:
        self._send(MetricMessage(record=record))

    def _send_line(self, text: str) -> None:
        """Send a line to the driver, from any rank."""
        self._send(Event(text=text))

    def _send(self, message: Message) -> ray.ObjectRef[bool]:
        reply: ray.ObjectRef[bool] = self.job.mailbox.put.remote(message)
        return reply

    def _progress(self, step: int) -> None:
        """Send the current step and rate to the driver, at most once a second."""
        now = time.monotonic()
        if now - self.progress_sent_at >= _PROGRESS_EVERY_S:
            self.progress_sent_at = now
            self.run_metrics.alive(step)
            rate = self.batches.times.images * self.world_size / max(now - self.rate_since, 1e-9)
            self._send_from_rank_0(StepProgress(step=step, images_per_second=rate))
