"""What runs on each Ray Train worker: join the stream, load the checkpoint it continues, fit."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ray
import ray.train

from infra.errors import UserError
from infra.storage import open_store
from pipelines.checkpoint import RunFolder
from pipelines.data.ingest import Stream
from pipelines.data.ledger import Ledger
from pipelines.data.ordered import opened
from pipelines.data.stages import DataTimes
from pipelines.failures import note, told_plainly
from pipelines.leaving import Cause, Leaving
from pipelines.mailbox import Event, Message, Progress, Recorded
from pipelines.monitoring import RunMetrics
from pipelines.recipe import Recipe
from pipelines.recorder import RunRecorder
from pipelines.reporting import ReportingSink
from pipelines.system_metrics import Sampler
from pipelines.telemetry import data_metrics
from resnet_core.curriculum import phase_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt
    from ray.actor import ActorHandle
    from torch import Tensor

    from infra.records import Record
    from pipelines.feed import Feed
    from pipelines.scoring import EvalData
    from pipelines.sink import Sink
    from resnet_core.evaluation import EvalBatch
    from resnet_core.state import TrainState
    from resnet_core.step import Share

_PROGRESS_EVERY_S = 1.0
MISTAKES_SHOWN = 25


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What the driver tells every worker."""

    recipe: Recipe  # model.num_classes filled in
    gpu: bool  # each worker has one
    stream: Stream
    start_uri: str  # of the weights that the run starts from; "" = none
    mailbox: ActorHandle[Any]
    reports: bool = False  # to the study that the run is a trial of


def train_worker(config: dict[str, Any]) -> Cause:
    """One rank of the run, from whatever the run folder holds to its last step, or to where there is cause to leave."""
    job: Job = config["job"]
    worker: _Worker | None = None
    with told_plainly():
        try:
            worker = _Worker(job)
            return worker.run()
        except Exception as error:
            if worker and (found := worker.explained(error)):
                raise found from error
            start, rank = ray.get_runtime_context().get_actor_id(), ray.train.get_context().get_world_rank()
            note(error, start=start or "", rank=rank, step=worker.at if worker else 0)
            raise
        finally:
            if worker:
                worker.close()


class _Worker:
    def __init__(self, job: Job) -> None:
        from pipelines.assembly import decided, feed_steps
        from pipelines.rendezvous import worker_device
        from resnet_core.compute import configure, share_compilers

        context = ray.train.get_context()
        self.job = job
        recipe = job.recipe
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = worker_device(gpu=job.gpu)
        share_compilers(context.get_local_world_size())
        self.recipe = recipe = decided(recipe, self.device, self._say)
        self.steps = feed_steps(recipe, job.stream, self.world_size)
        self.feed = self._open_feed()
        configure(recipe.compute, self.device)
        self.folder = RunFolder(open_store(job.stream.run_uri))
        self.asked_at = time.monotonic()
        self.told_at = 0.0
        self.at = 0  # the step that is under way
        self.leaving = Leaving()
        self.shown = RunMetrics(recipe.run_name, self.rank, self.world_size)
        self.sampler = None
        if context.get_local_rank() == 0:
            self.sampler = Sampler(context.get_node_rank(), self._sampled)

    def _open_feed(self) -> Feed:
        """It takes seconds to start, which it does while the model is built."""
        from pipelines.device_images import DeviceImages
        from pipelines.feed import Feed
        from pipelines.resident import load_resident, resident_blocks

        stream, data = self.job.stream, self.recipe.data
        maker = DeviceImages(device=self.device, interpolation=data.interpolation)
        if data.device_cache:
            resident = load_resident(stream, self.device)
            blocks = resident_blocks(stream, resident, self.steps, self.rank)
            maker = replace(maker, resident_NHWC=resident.images_NHWC)
        else:
            shard = ray.train.get_dataset_shard("train")
            blocks = opened(shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1))
        return Feed(blocks, self.steps, self.device, maker, self.rank)

    def run(self) -> Cause:
        from pipelines.assembly import before_step, build_state, cadence_of, step_config
        from resnet_core.collective import barrier
        from resnet_core.loop import Run, fit
        from resnet_core.schedule import LrSchedule

        stream = self.job.stream
        samples = stream.manifest.splits[stream.split]
        state = build_state(self.recipe, self.device, self.world_size, samples, self.job.start_uri)
        self.sink = sink = self._resume(state)
        recipe = self.recipe
        self.step = step_config(recipe, None if sink.mean_image is None else self._tensor(sink.mean_image))
        precision = recipe.compute.precision
        text = f"training on {self.world_size} worker(s) in {precision} from step {state.step}"
        self._tell(Event(text=text, training=True))
        self.asked_at = time.monotonic()
        fit(
            state,
            self._shares(state.step),
            Run(
                schedule=LrSchedule.build(recipe.schedule, recipe.optim, samples),
                cadence=cadence_of(recipe, samples, self.steps.total_steps),
                step=self.step,
                recorder=RunRecorder(history=sink.history, shown=self.shown, tell=self._tell),
                sink=ReportingSink(sink, recipe.evaluation_steps(samples)) if self.job.reports else sink,
                evaluate=self._evaluate,
                held_out=recipe.data.held_out,
                telemetry=self._telemetry,
                seed=recipe.run.seed,
                rank=self.rank,
                history=[(record.step, record.metrics) for record in sink.history],
                leave=self.leaving,
                before_step=before_step(recipe, samples, self.world_size),
                final_batches=self._training_images if recipe.optim.exact_bn_images else None,
            ),
        )
        sink.wait()
        if self.leaving.cause:
            barrier()  # nobody goes before rank 0 has committed
            self._tell(Event(text=f"checkpoint of step {state.step} committed before leaving", training=False))
        return self.leaving.cause

    def explained(self, error: Exception) -> UserError | None:
        """Return the line for an error that comes again at every start."""
        from pipelines.memory import memory_error

        images = self.steps.images_per_rank
        return memory_error(error, self.device, min(images, self.steps.microbatch_size or images))

    def close(self) -> None:
        """Stop what runs beside the training."""
        if self.sampler:
            self.sampler.stop()

    def _shares(self, start: int) -> Iterator[Share]:
        """The feed's shares, with the driver told of the progress between them."""
        for step, share in enumerate(self.feed.shares(start), start):
            self.sink.watch()
            self.at = step
            yield share
            self._progress(step + 1)

    def _resume(self, state: TrainState) -> Sink:
        """Load the checkpoint that the stream continues, and know what was consumed and recorded until there."""
        from pipelines.assembly import continued, deepen, scaler_of
        from pipelines.bad_samples import BadSamples
        from pipelines.sink import Sink

        manifest, split = self.job.stream.manifest, self.job.stream.split
        ledger, history, mean_image = Ledger(manifest.splits[split]), [], None
        base = self.feed.base()
        checkpoint = self.folder.load(base) if base else None
        if checkpoint:
            self.recipe = continued(self.recipe, checkpoint.recipe, self.device)
            state.scaler = scaler_of(self.recipe, self.device)
            phase = phase_at(self.recipe.phases(manifest.splits[split]), base - 1)  # of the last step done
            if phase.first_step:
                deepen(state, self.recipe, phase, self.world_size)
            state.load_tensors(checkpoint.tensors)
            state.step = base
            ledger, history = Ledger.from_arrays(checkpoint.ledger), checkpoint.records
            mean_image = checkpoint.mean_image
        elif self.recipe.augment.pixel_mean:
            mean_image = self._mean_image()
        return Sink(
            rank=self.rank,
            feed=self.feed,
            folder=self.folder,
            recipe=self.recipe,
            data_digest=manifest.digest,
            ledger=ledger,
            split_start=manifest.split_start(split),
            history=history,
            bad=BadSamples(manifest, self.folder, self.recipe.data.max_bad_samples, self._say, checkpoint),
            mean_image=mean_image,
        )

    def _mean_image(self) -> npt.NDArray[np.float32]:
        """Of the training split's centre crops; each rank reads its part."""
        import torch

        from pipelines.data.mean_image import ImageSum
        from pipelines.scoring import score_blocks
        from resnet_core.collective import sum_over_ranks_

        self._tell(Event(text="computing the mean image of the training split"))
        data = self._data(self.job.stream.split, tolerant=self.job.stream.tolerant)
        part = ImageSum.of(score_blocks(data), self.recipe.data.image_size)
        total = sum_over_ranks_(torch.from_numpy(part.total.astype("int64"))).numpy()
        count = sum_over_ranks_(torch.tensor(part.count))
        return ImageSum(total=total, count=int(count)).mean()

    def _tensor(self, values: npt.NDArray[Any]) -> Tensor:
        import torch

        return torch.tensor(values, device=self.device)

    def _evaluate(self, state: TrainState) -> Mapping[str, float]:
        from pipelines.sink import details
        from resnet_core.evaluation import evaluate

        began = time.monotonic()
        sums, mistakes = evaluate(
            state.scored_model,
            self._batches(self.recipe.data.eval_split, self.steps.images_per_rank),
            self.step,
            num_classes=self.recipe.model.num_classes,
            max_mistakes=MISTAKES_SHOWN,
        )
        self.sink.scored = details(sums, mistakes)
        self.asked_at += time.monotonic() - began  # not part of the training rate
        return sums.metrics()

    def _training_images(self) -> Iterator[Tensor]:
        """This rank's part of the training images for BatchNorm's exact statistics, in batches as in training."""
        missing = -(-self.recipe.optim.exact_bn_images // self.world_size)
        size = self.steps.images_per_rank
        stream, rows = self.job.stream, min(size, self.steps.microbatch_size or size)
        for batch in self._batches(stream.split, rows, tolerant=stream.tolerant):
            yield batch.images_BHWC[:missing]
            missing -= len(batch.images_BHWC)
            if missing <= 0:
                return

    def _batches(self, split: str, batch_size: int, *, tolerant: bool = False) -> Iterator[EvalBatch]:
        """This rank's part of a split on the device, as it is: no augmentation."""
        from pipelines.scoring import eval_batches

        return eval_batches(self._data(split, tolerant=tolerant), self.device, batch_size=batch_size)

    def _data(self, split: str, *, tolerant: bool) -> EvalData:
        from pipelines.scoring import EvalData, window_of

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

    def _telemetry(self) -> dict[str, float]:
        """Rate and time without data since it was last asked, over all ranks."""
        metrics = data_metrics(self.feed.times, max(time.monotonic() - self.asked_at, 1e-9))
        self.shown.data(self.feed.times)
        self.feed.times, self.asked_at = DataTimes(), time.monotonic()
        return metrics

    def _tell(self, message: Message) -> None:
        if self.rank == 0:
            self.leaving.hear(self._send(message))

    def _sampled(self, record: Record) -> None:
        self._send(Recorded(record=record))

    def _say(self, text: str) -> None:
        """As `_tell`, from any rank."""
        self._send(Event(text=text))

    def _send(self, message: Message) -> ray.ObjectRef[bool]:
        reply: ray.ObjectRef[bool] = self.job.mailbox.put.remote(message)
        return reply

    def _progress(self, step: int) -> None:
        """Tell the driver where the run is, at most once a second."""
        now = time.monotonic()
        if now - self.told_at >= _PROGRESS_EVERY_S:
            self.told_at = now
            self.shown.alive(step)
            rate = self.feed.times.images * self.world_size / max(now - self.asked_at, 1e-9)
            self._tell(Progress(step=step, images_per_second=rate))
