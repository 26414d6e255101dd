"""CPU time of a step with frozen parts against a step that trains everything: `python -m benchmarks.frozen`.

ResNet-18 at 64 pixels, 32 images, fp32, one thread. The variants take turns, so that other work on the machine slows
all of them alike. It prints the median, the smallest and the largest ratio, and the size of the optimizer's state.
"""

from __future__ import annotations

import statistics
import time
from typing import get_args

import torch

from resnet_core.config import OptimConfig
from resnet_core.config.model import FrozenTo
from resnet_core.models import build_model, freeze
from resnet_core.optim import build_optimizer, state_tensors
from resnet_core.state import TrainState
from resnet_core.step import Microbatch, RankBatch, StepConfig, train_step

IMAGES, SIDE, CLASSES, TURNS, WARM_UP = 32, 64, 5, 12, 2


def main() -> None:
    torch.set_num_threads(1)
    images = torch.randint(256, (IMAGES, SIDE, SIDE, 3), dtype=torch.uint8)
    labels = torch.randint(CLASSES, (IMAGES,))
    batch = RankBatch(microbatches=[Microbatch(images_BHWC=images, labels_B=labels)], count=IMAGES)
    states = {last: _state(last) for last in get_args(FrozenTo)}
    times: dict[str, list[float]] = {last: [] for last in states}
    config = StepConfig(channels_last=False)
    for turn in range(TURNS):
        for last, state in states.items():
            began = time.process_time()
            train_step(state, batch, lr=0.01, config=config, generator=torch.Generator().manual_seed(turn))
            if turn >= WARM_UP:
                times[last].append(time.process_time() - began)
    whole = statistics.median(times[""])
    for last, seen in times.items():
        count = sum(each.numel() for each in state_tensors(states[last].optimizer, states[last].model).values())
        middle, spread = statistics.median(seen), f"{min(seen) / whole:.2f} to {max(seen) / whole:.2f}"
        print(f"{last or 'none':7s}{1e3 * middle:6.0f} ms  {middle / whole:.2f} ({spread})  state {count:,} numbers")


def _state(last: FrozenTo) -> TrainState:
    torch.manual_seed(0)
    model = build_model("resnet18", num_classes=CLASSES)
    freeze(model, last)
    return TrainState(model=model, forward=model, optimizer=build_optimizer(model, OptimConfig()))


if __name__ == "__main__":
    main()
