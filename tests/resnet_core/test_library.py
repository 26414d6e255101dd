"""The core as a library: what `resnet_core` itself offers, and the page that shows it."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

import resnet_core
from resnet_core.config import VARIANTS, ModelConfig

ROOT = Path(__file__).resolve().parents[2]


def test_every_name_is_a_function_that_dir_lists() -> None:
    assert set(VARIANTS) <= set(dir(resnet_core))
    for name in VARIANTS:
        build = getattr(resnet_core, name)
        assert (build.__name__, list(inspect.signature(build).parameters)) == (name, ["num_classes", "keys"])
    assert {"build_model", "feature_channels", "load_weights", "ResNet", "ModelConfig"} <= set(dir(resnet_core))


def test_it_builds_what_a_recipe_would() -> None:
    torch.manual_seed(0)
    by_function = resnet_core.resnet20(num_classes=3, drop_path=0.1)
    torch.manual_seed(0)
    by_config = resnet_core.build_model(ModelConfig(name="resnet20", num_classes=3, drop_path=0.1))
    assert by_function.drop_path == by_config.drop_path == 0.1
    pairs = zip(by_function.state_dict().items(), by_config.state_dict().items(), strict=True)
    assert all(name == other and torch.equal(tensor, twin) for (name, tensor), (other, twin) in pairs)


def test_by_name_the_classes_are_those_it_was_published_for() -> None:
    assert resnet_core.build_model("resnet18").fc.out_features == 1000
    assert resnet_core.build_model("resnet20").fc.out_features == 10
    assert resnet_core.build_model("resnet20", num_classes=7).fc.out_features == 7
    assert resnet_core.build_model(ModelConfig(name="resnet20"), num_classes=7).fc.out_features == 7


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: resnet_core.build_model("resnet51"), "model.name must be .*resnet50"),  # type: ignore[arg-type]
        (lambda: resnet_core.resnet18(num_classes=0), "model.num_classes must be at least 1"),
        (lambda: resnet_core.resnet18(stem="tall"), "model.stem must be"),
        (lambda: resnet_core.resnet18(wide=True), "unexpected keyword argument 'wide'"),
        (lambda: resnet_core.resnet19, "module 'resnet_core' has no attribute 'resnet19'"),
    ],
)
def test_what_it_does_not_have_is_named(call: Any, error: str) -> None:
    with pytest.raises((ValueError, TypeError, AttributeError), match=error):
        call()


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet20", "resnetrs50"])
def test_channels_of_features(name: Any) -> None:
    model = getattr(resnet_core, name)().eval()
    with torch.inference_mode():
        shapes = {stage: output.shape[1] for stage, output in model.features(torch.zeros(1, 3, 32, 32)).items()}
    assert shapes == resnet_core.feature_channels(name) == resnet_core.feature_channels(model)


def test_its_names_are_torchvisions_where_torchvision_has_them() -> None:
    shared = set(VARIANTS) & set(dir(torchvision.models))
    assert {"resnet18", "resnet50", "resnext50_32x4d"} <= shared
    for name in ("resnet18", "resnet50"):
        theirs = getattr(torchvision.models, name)(num_classes=10).state_dict()
        ours = getattr(resnet_core, name)(num_classes=10).state_dict()
        assert {key: tensor.shape for key, tensor in ours.items()} == {key: t.shape for key, t in theirs.items()}


def test_dir_and_import_bring_no_torch() -> None:
    script = "import sys, resnet_core; dir(resnet_core); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, text=True) == "False\n"


@pytest.mark.parametrize(("page", "count"), [("core.md", 7), ("segmentation-and-detection.md", 6)])
def test_every_snippet_of_a_page_runs(page: str, count: int) -> None:
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert len(snippets) == count
    scope: dict[str, Any] = {}
    for snippet in snippets:
        exec(snippet, scope)
