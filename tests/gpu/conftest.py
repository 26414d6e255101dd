"""Each test's body runs on a CPU, small, in every run of the tests; and on a GPU by `make test-gpu`.

torch, torchvision, numpy, Pillow and pytest are enough.
"""

from __future__ import annotations

import os

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # of deterministic products; read with the first of them

HAS_GPU = torch.cuda.is_available()


@pytest.fixture(
    params=[
        "cpu",
        pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="torch sees no GPU here")]),
    ]
)
def device(request) -> torch.device:
    """A device, made the current one."""
    if request.param == "cpu":
        torch.set_num_threads(1)
        return torch.device("cpu")
    torch.cuda.set_device(0)
    return torch.device("cuda", 0)
