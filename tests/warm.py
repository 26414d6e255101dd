"""What a process imports while it registers a model, late and one by one; the fork server does it once."""

from __future__ import annotations

import tempfile
from pathlib import Path

import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
import numpy as np
import torch

from infra.registry.exported_program import Program, save_program


class _Mean(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((1, 2)).softmax(1)


torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as _folder:
    _program = Program(module=_Mean(), example=np.zeros((2, 4, 4, 3), np.uint8), metadata={})
    save_program(_program, Path(_folder, "model"), run_id="warm", model_id="warm")
