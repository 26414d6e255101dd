"""Weights that a run starts from, `model.init_from`: found or downloaded once by the driver, pinned, read by workers.

    HOME/pretrained/SHA256.safetensors      the weights, one file for all runs of a home that start from them
    HOME/pretrained/NAME.json               which of these files a hub's address was downloaded to
    HOME/RUN/start.json                     what the run started from, with hashes

A run that resumes reads its own file, so the hub, the network and a moved alias do not matter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.errors import UserError
from infra.storage import Store, open_store
from pipelines.checkpoint import COMMIT, Checkpoint, RunFolder, weights_file
from pipelines.config.paths import shown
from pipelines.pretrained.contents import read_tensors, written
from pipelines.pretrained.download import shortened
from pipelines.pretrained.facts import WeightFacts, warning_of
from pipelines.pretrained.fetched import content_hash, fetch_weights
from pipelines.pretrained.hubs import is_published

if TYPE_CHECKING:
    from torch import Tensor

    from infra.tracking.client import Tracking
    from pipelines.config.recipe import Recipe
    from resnet_core.config import ModelConfig
    from resnet_core.models import ResNet

START = "start.json"
_FOLDER = "pretrained"
_REGISTERED = "models:/"
_HEAD = "fc.weight"
_DECIMALS = 4  # of a mean that went through single precision
_KEYS = ("address", "origin", "sha256", "copy")  # of start.json


@dataclass(frozen=True, kw_only=True, slots=True)
class StartWeights:
    """Weights of a run, as workers receive them."""

    uri: str  # of a safetensors file that every process can read
    sha256: str  # of that file


@dataclass(frozen=True, kw_only=True, slots=True)
class PinnedStart:
    """Weights that a run starts from, found and checked, but not yet written."""

    address: str  # model.init_from
    origin: str  # what it named when the run began: a URL, a file, a registered version
    sha256: str  # of the file there
    data: bytes  # the weights as safetensors
    warning: str = ""  # preprocessing that differs from the weights'; "" = none

    @property
    def line(self) -> str:
        """Return a line for the terminal."""
        named = f" ({shown(self.origin)})" if self.origin not in ("", self.address) else ""
        return f"start       {shown(self.address)}{named}, sha256 {shortened(self.sha256)}"

    @property
    def tags(self) -> dict[str, str]:
        """Return tags of the MLflow run."""
        return {"start.from": self.origin or self.address, "sha256.start": self.sha256}

    def keep(self, folder: RunFolder, home: Store) -> StartWeights:
        """Write the weights and `start.json`, unless they are there; return what workers need."""
        copy, store = _shared(self.address, self.data, home), home.sub(_FOLDER)
        known = {"address": self.address, "origin": self.origin, "sha256": self.sha256, "copy": copy}
        if folder.read_json(START) != known:
            folder.write_json(START, known)
        return StartWeights(uri=f"{store.uri}/{_file(copy)}", sha256=copy)


def find_start(
    recipe: Recipe, model: ModelConfig, folder: RunFolder, tracking: Tracking, say: Callable[[str], None]
) -> PinnedStart | None:
    """Find the weights of `model.init_from`, and check that they fit `model`, the network of the run's first phase.

    A run that has begun gets the weights that it began with. Nothing is written but the cache of downloads.

    Raises:
        UserError: there are no such weights, they do not fit, or a file has changed since the run began.
    """
    if not recipe.model.init_from:
        return None
    home = open_store(recipe.run.home)
    known = folder.read_json(START, *_KEYS)
    found = _pinned(known, home) if known else None
    if found is None:
        found = _find(recipe.model.init_from, home, tracking, say)
        if known and found.sha256 != known["sha256"]:
            raise _changed(known, found.sha256, recipe)
    elif known and not is_published(found.address):
        _check_file(known, recipe)
    where = f"model.init_from: {shown(recipe.model.init_from)}"
    facts = found.facts
    if facts:
        facts.check_network(model, where)
    _check_fit(found.data, model, where)
    warning = warning_of(facts, recipe, where) if facts else ""
    return PinnedStart(
        address=recipe.model.init_from, origin=found.origin, sha256=found.sha256, data=found.data, warning=warning
    )


def share_start(address: str, home: Store, say: Callable[[str], None]) -> None:
    """Download published weights into a study's home, where the drivers of its trials find them."""
    if is_published(address):
        _shared(address, _fetched(address, home, say).data, home)


def load_start(network: ResNet, config: ModelConfig, start: StartWeights) -> None:
    """Load the weights into a new network; their names are ours, torchvision's or timm's.

    Raises:
        UserError: the file is missing, has another hash, or does not fit the network.
    """
    folder, _, name = start.uri.rpartition("/")
    where = f"model.init_from: {shown(config.init_from)}"
    try:
        data = open_store(folder).read(name)
    except FileNotFoundError as error:
        raise UserError(f"{where}: the run's copy {shown(start.uri)} is gone") from error
    if hashlib.sha256(data).hexdigest() != start.sha256:
        raise UserError(f"{where}: the run's copy {shown(start.uri)} is not what was saved: its sha256 disagrees")
    _load(network, data, config, where)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """Weights as safetensors, with their origin."""

    address: str
    origin: str
    sha256: str
    data: bytes
    facts: WeightFacts | None


def _find(address: str, home: Store, tracking: Tracking, say: Callable[[str], None]) -> _Found:
    if is_published(address):
        return _fetched(address, home, say)
    if address.startswith(_REGISTERED):
        return _registered(address, tracking)
    return _stored(address)


def _pinned(known: Mapping[str, Any], home: Store) -> _Found | None:
    """Return the weights that a run has kept; None if they are gone or damaged."""
    try:
        data = home.sub(_FOLDER).read(_file(known["copy"]))
    except FileNotFoundError:
        return None
    if hashlib.sha256(data).hexdigest() != known["copy"]:
        return None
    return _Found(**{key: known[key] for key in ("address", "origin", "sha256")}, data=data, facts=None)


def _check_file(known: Mapping[str, Any], recipe: Recipe) -> None:
    """Raise UserError if `model.init_from` is a file that has changed since the run began; it may also be gone."""
    folder, _, name = recipe.model.init_from.rpartition("/")
    if recipe.model.init_from.startswith(_REGISTERED):
        return
    store = open_store(folder or ".")
    if store.exists(name):
        sha256 = hashlib.sha256(store.read(name)).hexdigest()
        if sha256 != known["sha256"]:
            raise _changed(known, sha256, recipe)


def _changed(known: Mapping[str, Any], sha256: str, recipe: Recipe) -> UserError:
    return UserError(
        f"model.init_from: {shown(recipe.model.init_from)} has changed since run {recipe.run_name} began: its sha256 "
        f"was {shortened(known['sha256'])}, now {shortened(sha256)}: choose another run.name, or restore the file"
    )


def _fetched(address: str, home: Store, say: Callable[[str], None]) -> _Found:
    """Return published weights: from the home, where another run put them, else as `fetch_weights` finds them."""
    store, shared = home.sub(_FOLDER), None
    if store.exists(_index(address)):
        try:
            copy = json.loads(store.read(_index(address)))["copy"]
            shared = store.read(_file(copy))
            shared = shared if hashlib.sha256(shared).hexdigest() == copy else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            shared = None
    found = fetch_weights(address, say, shared)
    return _Found(address=address, origin=found.url, sha256=found.sha256, data=found.data, facts=found.facts)


def _shared(address: str, data: bytes, home: Store) -> str:
    """Write weights into the home, unless they are there; return the hash that names the file."""
    copy, store = hashlib.sha256(data).hexdigest(), home.sub(_FOLDER)
    if store.size(_file(copy)) != len(data):
        store.write(_file(copy), data)
    if is_published(address) and not store.exists(_index(address)):
        store.write(_index(address), json.dumps({"address": address, "copy": copy}).encode())
    return copy


def _index(address: str) -> str:
    """Return the file that says where the weights of a published address are."""
    return f"{hashlib.sha256(address.encode()).hexdigest()[:16]}.json"


def _registered(address: str, tracking: Tracking) -> _Found:
    from infra.registry.versions import fetch

    files = fetch(tracking, address)
    named = files.open().tensors()
    center, scale = named.pop("center"), named.pop("scale")
    tensors = {name.removeprefix("model."): tensor for name, tensor in named.items()}
    metadata = files.metadata
    mean, std = (
        tuple(round(value, _DECIMALS) for value in (each / 255).flatten().tolist()) for each in (center, scale)
    )
    facts = WeightFacts(
        mean=mean if center.ndim == 1 else None,
        std=std,
        image_size=metadata.get("image_size", 0),
        eval_resize=metadata.get("eval_resize", 0),
        interpolation=metadata.get("interpolation", ""),
    )
    data = written(tensors, {"version": files.version.uri})
    return _Found(address=address, origin=files.version.uri, sha256=content_hash(tensors), data=data, facts=facts)


def _stored(address: str) -> _Found:
    """Return the weights of a file, of a run's best checkpoint, or of one checkpoint; local or on S3."""
    folder, _, name = address.rstrip("/").rpartition("/")
    store = open_store(folder or ".")
    if store.exists(name):
        data, where = store.read(name), f"model.init_from: {shown(address)}"
        sha256 = hashlib.sha256(data).hexdigest()
        tensors = read_tensors(data, where)
        return _Found(
            address=address,
            origin=f"{store.uri}/{name}",
            sha256=sha256,
            data=_as_safetensors(data, tensors),
            facts=None,
        )
    run, best = _checkpoint(address, store.sub(name))
    data = best.files[best.weights_name]
    return _Found(
        address=address,
        origin=f"{run.store.uri}/{weights_file(best)}",
        sha256=hashlib.sha256(data).hexdigest(),
        data=data,
        facts=WeightFacts.of_recipe(best.recipe),
    )


def _checkpoint(address: str, inside: Store) -> tuple[RunFolder, Checkpoint]:
    """Return a run and its best checkpoint, or the one that the folder is.

    Raises:
        UserError: nothing is there, the folder has no checkpoint, or the checkpoints are damaged.
    """
    run = RunFolder(inside)
    if inside.exists(COMMIT):  # a checkpoint: two folders below its run
        above, _, step = inside.uri.rpartition("/checkpoints/step-")
        run = RunFolder(open_store(above))
        return run, run.load(int(step))
    if run.steps():
        faults: list[str] = []
        found = run.best(faults.append)
        if found is None:
            raise UserError(f"model.init_from: {faults[0]}")
        return run, found
    if inside.list():
        raise UserError(
            f"model.init_from: {shown(address)} is a folder without a checkpoint: name the folder of a run "
            "that has saved one, or a file of weights"
        )
    raise UserError(f"model.init_from: there is no {shown(address)}")


def _as_safetensors(data: bytes, tensors: Mapping[str, Tensor]) -> bytes:
    """Return `data` if it is a safetensors file, else one of the tensors."""
    return data if data[8:9] == b"{" else written(tensors, {"sha256": hashlib.sha256(data).hexdigest()})


def _check_fit(data: bytes, config: ModelConfig, where: str) -> None:
    """Raise UserError unless the weights fit the network."""
    from resnet_core.models import build_model

    _load(build_model(config), data, config, where)


def _load(network: ResNet, data: bytes, config: ModelConfig, where: str) -> None:
    from resnet_core.models import from_timm, load_weights

    tensors = from_timm(read_tensors(data, where))
    _check_head(tensors, config, where)
    try:
        load_weights(network, tensors, new_head=config.new_head)
    except ValueError as error:
        raise UserError(f"{where} does not fit {config.name}: {error}") from error


def _check_head(tensors: Mapping[str, Tensor], config: ModelConfig, where: str) -> None:
    """Raise UserError if the file's last layer is for other classes and `model.new_head` does not leave it out."""
    if config.new_head or _HEAD not in tensors or len(tensors[_HEAD]) == config.num_classes:
        return
    raise UserError(
        f"{where} was trained on {len(tensors[_HEAD])} classes, and the data set has {config.num_classes}: set "
        "model.new_head = true, which leaves the file's last layer out and trains a new one"
    )


def _file(sha256: str) -> str:
    return f"{sha256}.safetensors"
