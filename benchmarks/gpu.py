"""Training and evaluation speed of a GPU and of its data path: `python -m benchmarks.gpu`, part of `make test-gpu`.

The network is ResNet-50 at 224 pixels: bf16, channels_last, compiled, 256 images a step. Ray is not used; blocks come
from memory.

    step alone       the training step on images that are on the device.
    step, fed        the same, with batches of `pipelines.training.batches.RankBatches` from crops of data tasks.
    device decode    the batches alone, from JPEGs of ImageNet's size that the device decodes and crops.
    host decode      the same JPEGs, decoded and cropped by four threads of the host.
    model alone      the compiled model in eval mode on images that are on the device.
    evaluation       `resnet_core.evaluation.evaluate` with that model, from batches in the host's memory.

Each figure is printed with its target; a missed target is no failure. `--profile` also prints where the time of a step
goes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.blocks import detailed, host_block, jpeg_block, renumbered
from benchmarks.contest import peak_flops, training_flops
from benchmarks.hotspots import profiled, report
from pipelines.config.crop import CropConfig
from pipelines.data.images.pillow import open_rgb, train_crop
from pipelines.training.batches import RankBatches, Rows, Steps
from pipelines.training.device_decode import DeviceImages
from pipelines.training.side_stream import SideStream
from resnet_core.augment import step_generator
from resnet_core.compute import compile_forward, computes_bf16, to_memory_format, why_not_compiled
from resnet_core.config import AugmentConfig, ModelConfig, ModelName, OptimConfig, Precision
from resnet_core.evaluation import EvalBatch, evaluate
from resnet_core.models import build_model
from resnet_core.optim import build_optimizer
from resnet_core.state import TrainState
from resnet_core.step import Microbatch, RankBatch, StepConfig, eval_step, train_step

CLASSES, BLOCK_ROWS, HOST_THREADS = 1000, 106, 4
OPTIM = OptimConfig(lr_per_256=0.001, momentum=0.9)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Network, device and length of the measurements."""

    device: torch.device
    model: ModelName = "resnet50"
    size: int = 224
    batch: int = 256
    steps: int = 100
    warmup: int = 10

    @property
    def precision(self) -> Precision:
        return "bf16" if computes_bf16(self.device) else "fp32"

    @property
    def config(self) -> StepConfig:
        return StepConfig(augment=AugmentConfig(flip=True), precision=self.precision)

    def wait(self) -> None:
        """Wait until the device has finished everything in its queue."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def state_of(work: Work) -> TrainState:
    torch.manual_seed(0)
    network = build_model(ModelConfig(name=work.model, num_classes=CLASSES))
    model = to_memory_format(network.to(work.device), channels_last=True)
    if work.device.type == "cuda" and not (reason := why_not_compiled(work.device)):
        compile_forward(model)
    elif work.device.type == "cuda":
        print(f"not compiled: {reason}", flush=True)
    return TrainState(model=model, forward=model, optimizer=build_optimizer(model, OPTIM))


def train(state: TrainState, batch: RankBatch, work: Work) -> None:
    generator = step_generator(0, state.step, 0, work.device)
    train_step(state, batch, lr=OPTIM.peak_lr, config=work.config, generator=generator)
    state.step += 1


def rate(batches: Iterator[RankBatch], use: Callable[[RankBatch], object], work: Work) -> float:
    """Return the images/s after the warm-up."""
    began, images = 0.0, 0
    for number, batch in enumerate(batches):
        if number == work.warmup:
            work.wait()
            began, images = time.perf_counter(), 0
        use(batch)
        images += sum(len(each) for each in batch.microbatches)
    work.wait()
    return images / (time.perf_counter() - began)


def resident_shares(work: Work) -> Iterator[RankBatch]:
    """Yield the same rank batch again and again."""
    shape = (work.batch, work.size, work.size, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=work.device)
    labels = torch.randint(0, CLASSES, (work.batch,), device=work.device)
    batch = RankBatch(microbatches=[Microbatch(images_BHWC=images, labels_B=labels)], count=work.batch)
    for _ in range(work.warmup + work.steps):
        yield batch


def fed_shares(blocks: list[Rows], work: Work) -> Iterator[RankBatch]:
    count = work.warmup + work.steps
    steps = Steps(
        total_samples=count * work.batch,
        total_steps=count,
        global_batch_size=work.batch,
        world_size=1,
        microbatch_size=0,
    )
    batches = RankBatches(renumbered(blocks, count * work.batch), steps, work.device, DeviceImages(device=work.device))
    return batches.from_step(batches.base())


def host_blocks(work: Work) -> list[Rows]:
    rows = min(BLOCK_ROWS, work.batch)
    return [host_block(range(first, first + rows), work.size, [0] * rows) for first in range(0, 8 * rows, rows)]


def jpeg_blocks(work: Work) -> list[Rows]:
    rows = min(128, work.batch)
    return [
        jpeg_block(range(first, first + rows), work.size, [0] * rows, detailed) for first in range(0, 2 * rows, rows)
    ]


def host_decode(blocks: list[Rows], work: Work) -> float:
    """Return the images/s of four threads that decode like a data task with `data.decoder = "exact"`."""
    jpegs = [data for block in blocks for data in block["image"]]
    crop = CropConfig(image_size=work.size)

    def decode(place: int) -> None:
        train_crop(open_rgb(jpegs[place]), crop, np.random.default_rng(place))

    with ThreadPoolExecutor(HOST_THREADS) as pool:
        began = time.perf_counter()
        list(pool.map(decode, range(len(jpegs))))
        return len(jpegs) / (time.perf_counter() - began)


def model_alone(state: TrainState, work: Work) -> float:
    images = torch.randint(0, 256, (work.batch, work.size, work.size, 3), dtype=torch.uint8, device=work.device)
    state.model.eval()
    for number in range(work.warmup + work.steps):
        if number == work.warmup:
            work.wait()
            began = time.perf_counter()
        eval_step(state.model, images, work.config)
    work.wait()
    state.model.train()
    return work.steps * work.batch / (time.perf_counter() - began)


def evaluation(state: TrainState, work: Work) -> float:
    images = np.random.default_rng(0).integers(0, 256, (work.batch, work.size, work.size, 3), dtype=np.uint8)
    ids = np.arange(work.batch)
    stream = SideStream(work.device)

    def batches(count: int) -> Iterator[EvalBatch]:
        for _ in range(count):
            yield EvalBatch(
                images_BHWC=stream.send([images]), labels_B=stream.send([ids % CLASSES]), ids_B=stream.send([ids])
            )

    evaluate(state.model, batches(work.warmup), work.config, num_classes=CLASSES)
    work.wait()
    began = time.perf_counter()
    evaluate(state.model, batches(work.steps), work.config, num_classes=CLASSES)
    work.wait()
    return work.steps * work.batch / (time.perf_counter() - began)


def figures(work: Work) -> dict[str, float]:
    """Return the images/s of every measurement."""
    state = state_of(work)
    crops, jpegs = host_blocks(work), jpeg_blocks(work)
    return {
        "step alone": rate(resident_shares(work), lambda batch: train(state, batch, work), work),
        "step, fed": rate(fed_shares(crops, work), lambda batch: train(state, batch, work), work),
        "device decode": rate(fed_shares(jpegs, work), lambda batch: None, work),
        "host decode": host_decode(jpegs, work),
        "model alone": model_alone(state, work),
        "evaluation": evaluation(state, work),
    }


def told(found: dict[str, float]) -> list[str]:
    """Return each figure with its target, one line each."""
    targets = {
        "step alone": "at least 4,500 on an H200",
        "step, fed": f"{found['step, fed'] / found['step alone']:.3f} of the step alone; at least 0.97",
        "device decode": "at least 8,000 on an H200",
        "host decode": f"{HOST_THREADS} threads",
        "evaluation": f"{found['evaluation'] / found['model alone']:.3f} of the model alone; at least 0.8",
    }
    return [f"{name:16} {value:10,.0f} images/s   {targets.get(name, '')}".rstrip() for name, value in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure training and evaluation of a GPU, and its data path.")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("skipped: torch sees no GPU here")
        return
    torch.backends.cudnn.benchmark = True
    device = torch.device(arguments.device, 0) if arguments.device == "cuda" else torch.device("cpu")
    small = {} if device.type == "cuda" else {"size": 64, "batch": 8, "steps": 2, "warmup": 1}
    work = Work(device=device, **small)  # type: ignore[arg-type]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}: {work.model} at {work.size}, {work.batch} a step, {work.precision}")
    found = figures(work)
    print("\n".join(told(found)), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"device": name, "torch": torch.__version__, **found}, indent=1) + "\n")
    if arguments.profile:
        state, batches = state_of(work), resident_shares(work)
        for _ in range(work.warmup):
            train(state, next(batches), work)
        kernels = profiled(lambda _: train(state, next(batches), work), range(min(10, work.steps)), device)
        flops = training_flops(work.model, work.size) * work.batch
        print("\n".join(report(kernels, 1000 * work.batch / found["step alone"], flops, peak_flops(device))))


if __name__ == "__main__":
    main()
