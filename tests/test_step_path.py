"""What the code of a step must not say, whatever a test runs: a tensor made on a GPU from a value of the host.

`torch.tensor(value, device=gpu)` is a copy from pageable memory, which waits for all that the GPU has queued.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PATH = [
    *("resnet_core/step.py", "resnet_core/loop.py", "resnet_core/distributed.py", "resnet_core/losses.py"),
    *("resnet_core/mixed_labels.py", "resnet_core/state.py", "resnet_core/crop_resize.py", "resnet_core/batchnorm.py"),
    *("resnet_core/compute.py", "resnet_core/curriculum.py", "resnet_core/plateau.py", "resnet_core/schedule.py"),
    *(
        "pipelines/training/preemption.py",
        "pipelines/training/data_stalls.py",
        "pipelines/training/checkpoint_writer.py",
        "pipelines/training/bad_samples.py",
        "pipelines/training/batches.py",
        "pipelines/training/side_stream.py",
        "pipelines/training/device_decode.py",
        "pipelines/training/device_jpeg.py",
    ),
    *(
        f"resnet_core/{folder}/{file.name}"
        for folder in ("augment", "models", "optim", "evaluation", "segmentation", "detection")
        for file in sorted((ROOT / "resnet_core" / folder).glob("*.py"))
    ),
]
NOT_A_STEP = {"spread_drop_rates"}  # when a network is built, or grows
FROM_HOST = {"tensor", "as_tensor", "asarray", "scalar_tensor"}


def made_on_a_device(tree: ast.Module) -> Iterator[int]:
    """Lines of `torch.tensor(…, device=…)`, but for constants that a cache keeps from step to step."""
    kept = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        and (function.name in NOT_A_STEP or any("lru_cache" in ast.dump(each) for each in function.decorator_list))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FROM_HOST:
            device = next((each.value for each in node.keywords if each.arg == "device"), None)
            on_cpu = device is not None and ast.unparse(device) in ("'cpu'", "torch.device('cpu')")
            if device is not None and not on_cpu and id(node) not in kept:
                yield node.lineno


@pytest.mark.parametrize("file", PATH)
def test_no_tensor_of_the_step_comes_from_the_host(file: str) -> None:
    assert list(made_on_a_device(ast.parse((ROOT / file).read_text()))) == []


def test_the_search_finds_what_it_looks_for() -> None:
    code = "import torch\ndef vote(wish, device):\n    return torch.tensor(wish, device=device)\n"
    assert list(made_on_a_device(ast.parse(code))) == [3]
    assert list(made_on_a_device(ast.parse("from functools import lru_cache\n@lru_cache\n" + code[13:]))) == []
    assert list(made_on_a_device(ast.parse(code.replace("device=device", "device='cpu'")))) == []
