"""Segmentation and detection scored on 1, 2 and 3 real ranks over gloo: the same bits as in one process."""

from __future__ import annotations

import multiprocessing
import os
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from resnet_core.detection import DetectionSums, voc_average_precision
from resnet_core.segmentation import SegmentationSums
from tests.resnet_core.detection.boxes import CLASSES, random_images

RANKS = 3
CASES = [(seed, 1 + seed % 5) for seed in range(6)]  # seed, images: some ranks have none


def segmentation(seed: int, rows: slice, count: int) -> tuple[dict[str, float], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    predicted, masks = torch.randint(0, 5, (2, count, 6, 7), generator=generator)
    masks[:, 0] = 255
    sums = SegmentationSums(5, torch.device("cpu"))
    for image in range(count)[rows]:
        sums.add(predicted[image : image + 1], masks[image : image + 1])
    sums.all_reduce()
    return sums.metrics(), sums.confusion


def detection(seed: int, rows: slice, count: int) -> tuple[dict[str, float], list[Tensor]]:
    ids, predictions, targets = random_images(seed, count)
    sums = DetectionSums(CLASSES)
    sums.update(ids[rows], predictions[rows], targets[rows])
    sums.all_reduce()
    found = [voc_average_precision(sums.boxes, CLASSES, eleven_points=eleven) for eleven in (True, False)]
    return sums.metrics(), [*sums.details().values(), *found]


def check(rank: int, world: int) -> None:
    for seed, count in CASES:
        own = slice(rank, None, world)
        for scored in (segmentation, detection):
            metrics, tensors = scored(seed, own, count)
            expected = WHOLE[scored.__name__, seed]
            assert metrics == expected[0]
            for mine, whole in zip(tensors, expected[1], strict=True):
                torch.testing.assert_close(mine, whole, rtol=0, atol=0, equal_nan=True)


WHOLE: dict[tuple[str, int], tuple[dict[str, float], Tensor | list[Tensor]]] = {}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    for seed, count in CASES:
        WHOLE["segmentation", seed] = segmentation(seed, slice(None), count)
        WHOLE["detection", seed] = detection(seed, slice(None), count)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    for world in range(RANKS, 0, -1):
        if rank >= world:
            return
        limit = timedelta(seconds=60)
        dist.init_process_group("gloo", f"file://{folder}/{world}", timeout=limit, rank=rank, world_size=world)
        try:
            check(rank, world)
        finally:
            dist.destroy_process_group()


def test_any_number_of_ranks_scores_the_same(tmp_path: Path) -> None:
    multiprocessing.set_forkserver_preload([__name__])  # torch is imported once, not by each rank
    mp.start_processes(work, args=(str(tmp_path),), nprocs=RANKS, start_method="forkserver")
