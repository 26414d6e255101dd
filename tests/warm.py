"""What a process imports while it registers a model or runs a command, late and one by one; the server does it once."""

from __future__ import annotations

import gc
import importlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from infra.registry.exported_program import Program, save_program

_MODULES = (
    *("torchvision", "pandas", "pyarrow.parquet", "boto3", "sqlalchemy", "rich.live", "matplotlib.figure"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"),
    *("infra.registry.champion", "pipelines.training.driver", "pipelines.training.result", "pipelines.tuning.study"),
)


class _Mean(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((1, 2)).softmax(1)


torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as _folder:
    _program = Program(module=_Mean(), example=np.zeros((2, 4, 4, 3), np.uint8), metadata={})
    save_program(_program, Path(_folder, "model"), run_id="warm", model_id="warm")
for _module in _MODULES:
    importlib.import_module(_module)
assert "ray" not in sys.modules, "it reads the environment when it is imported"
gc.freeze()  # a garbage collection would copy the pages that a process shares with the server
