"""The measurement of a GPU runs to its end, on a CPU and small; what it finds there is no figure of anything."""

from __future__ import annotations

import torch

from benchmarks.gpu import Work, figures, told


def test_every_figure_is_taken_and_told():
    work = Work(device=torch.device("cpu"), model="resnet18", size=32, batch=4, steps=1, warmup=1)
    found = figures(work)
    assert list(found) == ["step alone", "step, fed", "device decode", "host decode", "model alone", "evaluation"]
    assert all(value > 0 for value in found.values())
    lines = told(found)
    assert [line.split("  ")[0] for line in lines] == list(found)
    assert "of the step alone; at least 0.97" in lines[1]
