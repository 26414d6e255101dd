"""A small data set of coloured pictures, and a network that tells them apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from infra.storage import LocalStore
from pipelines.checkpoint import Checkpoint
from pipelines.config.prepare import PrepareConfig
from pipelines.config.recipe import build_recipe
from pipelines.data.prepare.shard_plan import plan_shards, stored_form
from pipelines.data.prepare.shard_writer import write_shard
from pipelines.data.prepare.source import Source
from pipelines.data.prepare.sources import open_source
from pipelines.data.shards.manifest import MANIFEST, Manifest
from pipelines.evaluation.scoring import EvalData
from resnet_core.config import ModelConfig
from resnet_core.models import build_model

if TYPE_CHECKING:
    from tests.pipelines.registered import Registry

COLOURS = {"azure": (40, 90, 230), "lime": (60, 220, 40), "scarlet": (225, 50, 60)}
SIZE = 16
STEP = 30


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def picture(colour: tuple[int, int, int], seed: int) -> Image.Image:
    """A noisy rectangle of one colour, a little wider than high."""
    noise = np.random.default_rng(seed).normal(0, 25, (SIZE, SIZE + 4, 3))
    return Image.fromarray(np.clip(noise + colour, 0, 255).astype(np.uint8))


@dataclass(frozen=True, kw_only=True)
class Coloured:
    """A prepared data set."""

    store: LocalStore
    manifest: Manifest

    @property
    def data(self) -> EvalData:
        crop = build_recipe({}, self.recipe).data.at(SIZE)
        return EvalData(store=self.store, manifest=self.manifest, crop=crop)

    @property
    def recipe(self) -> dict[str, object]:
        return {
            "name": "colours",
            "model.name": "resnet20",
            "model.num_classes": len(self.manifest.class_names),
            "data.uri": self.store.uri,
            "data.image_size": SIZE,
            "data.eval_resize": SIZE,
            "run.home": str(Path(self.store.uri).parent),
        }

    def columns(self, split: str) -> dict[str, np.ndarray]:
        """The whole split, read in this process."""
        data = EvalData(store=self.store, manifest=self.manifest, crop=self.data.crop, split=split)
        blocks = [block for item in data.items(64) for block in data.load(item, 64)]
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    def checkpoint(self, weights: dict[str, torch.Tensor], metrics: dict[str, float], step: int = STEP) -> Checkpoint:
        return Checkpoint(
            step=step,
            metrics={f"test/{name}": value for name, value in metrics.items()},
            recipe=build_recipe({}, self.recipe).flat(),
            data_digest=self.manifest.digest,
            files={"model.safetensors": save(weights)},
        )


def coloured(root: Path, names: dict[str, tuple[int, int, int]], per_class: int, seed: int = 0) -> Coloured:
    """Write class folders of PNGs and prepare them, without Ray; half of the pictures are the test split."""
    for place, (name, colour) in enumerate(names.items()):
        (root / "images" / name).mkdir(parents=True)
        for index in range(per_class):
            image = picture(colour, seed + 1000 * place + index)
            image.save(root / "images" / name / f"{index:03d}.png")
    return prepared(root)


def album(folder: Path, count: int, side: int) -> None:
    """Write `count` PNGs, numbered from 0000, of COLOURS in turn: one picture of each, and names of it for the rest."""
    for place in range(count):
        file, first = folder / f"{place:04d}.png", place % len(COLOURS)
        if place == first:
            picture(list(COLOURS.values())[first], place).resize((side, side)).save(file)
        else:
            file.hardlink_to(folder / f"{first:04d}.png")


def written(source: Source, store: LocalStore, config: PrepareConfig | None = None) -> Manifest:
    """The shards of a data set without Ray: what prepare's tasks do, one after another. The manifest is not written."""
    config = config or PrepareConfig()
    stored = stored_form(source, config)
    jobs = plan_shards(source, stored, config)
    return Manifest(
        class_names=source.class_names,
        stored=stored,
        source=source.description,
        fingerprint=source.fingerprint,
        prepare={},
        splits=source.rows,
        shards=tuple(write_shard(store, job, source.splits[job.split], source.label_sets).shard for job in jobs),
        multi_label=source.label_sets is not None,
    )


def prepared(root: Path) -> Coloured:
    """The data set of the pictures below `root`/images."""
    source, store = open_source(str(root / "images"), holdout=0.5), LocalStore(uri=str(root / "data"))
    manifest = written(source, store, PrepareConfig(min_shards=2, holdout=0.5))
    store.write(MANIFEST, manifest.to_json().encode())
    return Coloured(store=store, manifest=manifest)


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Coloured:
    """3 classes of 20 pictures, half of them for the test."""
    return coloured(tmp_path_factory.mktemp("colours"), COLOURS, per_class=20)


@pytest.fixture(scope="session")
def weights(colours: Coloured) -> dict[str, torch.Tensor]:
    """A ResNet-20 that has learnt the colours, by a plain loop."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="resnet20", num_classes=3))
    augment = build_recipe({}, colours.recipe).augment
    rows = colours.columns("train")
    images = torch.tensor(rows["image"]).float() / 255
    images = ((images - torch.tensor(augment.mean)) / torch.tensor(augment.std)).permute(0, 3, 1, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(STEP):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), torch.tensor(rows["label"])).backward()
        optimizer.step()
    return {name: tensor.clone() for name, tensor in model.eval().state_dict().items()}


@pytest.fixture(scope="session")
def registry(colours: Coloured, weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A registry with two versions: the second calls azure what is lime."""
    from tests.pipelines.registered import two_versions

    return two_versions(colours, weights, tmp_path_factory.mktemp("registry"))


def hand_computed(colours: Coloured, weights: dict[str, torch.Tensor]) -> dict[str, float]:
    """Loss and accuracies of the test split, by the plainest means."""
    model = build_model(ModelConfig(name="resnet20", num_classes=3)).eval()
    model.load_state_dict(weights)
    augment = build_recipe({}, colours.recipe).augment
    rows = colours.columns("test")
    loss = correct = 0.0
    with torch.inference_mode():
        for image, label in zip(rows["image"], rows["label"], strict=True):
            pixels = (torch.tensor(image) / 255 - torch.tensor(augment.mean)) / torch.tensor(augment.std)
            logits = model(pixels.permute(2, 0, 1)[None])[0].double()
            loss += float(logits.exp().sum().log() - logits[label])
            correct += int(logits.argmax() == label)
    count = len(rows["label"])
    return {"loss": loss / count, "accuracy": correct / count, "top5_accuracy": 1.0}
