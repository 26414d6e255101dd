"""Images of several requests through the model at once."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.serving.following import Served
from pipelines.serving.pictures import Pixels

Row = npt.NDArray[np.float32]
"""Probabilities of one image."""


class Waiting(NamedTuple):
    """An image that waits for a batch, with the version that it was decoded for."""

    served: Served
    image: Pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class Scorer:
    """Scores a batch; around a change of the champion it may be for two versions."""

    told: Callable[[int], None]
    """How many images went through the model at once."""
    # one thread: one forward pass at a time, always with the same team of threads below it
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="model"))

    async def score(self, batch: list[Waiting]) -> list[Row]:
        """The probabilities of each, in order."""
        places: dict[int, list[int]] = defaultdict(list)
        for place, waiting in enumerate(batch):
            places[waiting.served.version.number].append(place)
        rows: dict[int, Row] = {}
        for group in places.values():
            images, served = np.stack([batch[place].image for place in group]), batch[group[0]].served
            found = await asyncio.get_running_loop().run_in_executor(self._thread, served.predict, images)
            self.told(len(group))
            rows.update(zip(group, found, strict=True))
        return [rows[place] for place in range(len(batch))]
