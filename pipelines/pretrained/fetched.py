"""Published weights on this machine: from a cache, or downloaded once and cached as safetensors.

    CACHE/resnet50-11ad3fa6.safetensors     what a download became: tensors, with its URL, hash and facts as metadata
    CACHE/resnet50-11ad3fa6.pth             a file that the user put there, for a machine without network

CACHE is $RESNET_RAY_CACHE/pretrained, else $XDG_CACHE_HOME/resnet-ray/pretrained, else ~/.cache/resnet-ray/pretrained.
Files that torchvision or timm have downloaded are found in their own caches.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import UserError
from infra.storage import open_store
from pipelines.config.paths import shown
from pipelines.pretrained.contents import read_note, read_tensors, written
from pipelines.pretrained.download import Absent, Unreachable, check_hash, download, shortened
from pipelines.pretrained.facts import WeightFacts
from pipelines.pretrained.hubs import HUGGING_FACE, TORCHVISION, PublishedWeights, published

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_OURS = ".safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchedWeights:
    """Weights in memory, as a safetensors file."""

    data: bytes
    url: str
    sha256: str  # of the published file
    facts: WeightFacts | None


def fetch_weights(
    address: str, say: Callable[[str], None] = lambda line: None, shared: bytes | None = None
) -> FetchedWeights:
    """Return the weights of an address (`pipelines.pretrained.hubs`): cached ones, else after a download.

    Args:
        address: as the user gives it.
        say: prints a line before a download.
        shared: weights of this address that another run has kept, if any.

    Raises:
        UserError: the address is wrong; the weights are neither cached nor reachable; or they have another hash.
    """
    wanted = published(address)
    if shared is not None:
        return _noted(wanted, shared, f"model.init_from: {wanted.address}")
    for file in _places(wanted):
        if file.is_file():
            return _cached(wanted, file)
    say(f"downloading {wanted.url}")
    try:
        data = download(wanted.url, sha256=wanted.sha256, what=f"model.init_from: {wanted.address}")
        config = _config(wanted)
    except Absent as error:
        reason = wanted.missing or f"there is no {wanted.url} ({error.message.rpartition(': ')[2]})"
        raise UserError(f"model.init_from: {reason}") from error
    except Unreachable as error:
        by_hand = cache_folder() / wanted.cached_as
        raise UserError(
            f"{error.message}: check the network, or download {wanted.url} elsewhere and put it at {by_hand}"
        ) from error
    return _kept(wanted, data, config)


def cache_folder() -> Path:
    """Return the folder in which this machine caches published weights."""
    own = os.environ.get("RESNET_RAY_CACHE")
    return Path(own or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "resnet-ray").expanduser() / "pretrained"


def _places(wanted: PublishedWeights) -> Iterator[Path]:
    """Yield where the weights may be: our cache, a file put there by hand, the caches of torchvision and of timm."""
    cached = cache_folder() / wanted.cached_as
    yield cached.with_suffix(_OURS)
    yield cached
    if wanted.scheme == TORCHVISION:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
        yield Path(os.environ.get("TORCH_HOME") or cache).expanduser() / "hub" / "checkpoints" / wanted.cached_as
    if wanted.scheme == HUGGING_FACE:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
        hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or cache) / "hub"
        repo, _, revision = wanted.cached_as.removesuffix(_OURS).partition("@")
        folder = Path(hub).expanduser() / f"models--{repo}"
        reference = folder / "refs" / (revision or "main")
        commit = reference.read_text().strip() if reference.is_file() else revision
        if commit:
            yield folder / "snapshots" / commit / "model.safetensors"


def _cached(wanted: PublishedWeights, file: Path) -> FetchedWeights:
    data = file.read_bytes()
    note = read_note(data)
    where = f"model.init_from: {wanted.address} (cached at {shown(str(file))})"
    if note is None:  # the published file itself
        check_hash(data, wanted.sha256, where)
        config = file.with_name("config.json")
        return _kept(wanted, data, json.loads(config.read_bytes()) if config.is_file() else None)
    return _noted(wanted, data, where)


def _noted(wanted: PublishedWeights, data: bytes, where: str) -> FetchedWeights:
    """Return weights that were kept as safetensors with our note, after a check of both hashes."""
    note = read_note(data) or {}
    if not note.keys() >= {"sha256", "tensors", "config"}:
        raise UserError(f"{where} is damaged: delete it, and run the same command again")
    if not str(note["sha256"]).startswith(wanted.sha256):
        raise UserError(
            f"{where} has another sha256 ({shortened(note['sha256'])}) than {shortened(wanted.sha256)}: delete it, and "
            "run the same command again"
        )
    if content_hash(read_tensors(data, where)) != note["tensors"]:
        raise UserError(f"{where} is damaged: delete it, and run the same command again")
    return FetchedWeights(data=data, url=wanted.url, sha256=note["sha256"], facts=_facts(wanted, note["config"]))


def _kept(wanted: PublishedWeights, data: bytes, config: dict[str, Any] | None) -> FetchedWeights:
    """Write the weights of a published file into the cache as safetensors, and return them."""
    where = f"model.init_from: {wanted.address}"
    tensors, sha256 = read_tensors(data, where), hashlib.sha256(data).hexdigest()
    kept = written(tensors, {"url": wanted.url, "sha256": sha256, "config": config, "tensors": content_hash(tensors)})
    with suppress(UserError):  # a read-only home folder: the next command downloads again
        open_store(str(cache_folder())).write(str(Path(wanted.cached_as).with_suffix(_OURS)), kept)
    return FetchedWeights(data=kept, url=wanted.url, sha256=sha256, facts=_facts(wanted, config))


def _config(wanted: PublishedWeights) -> dict[str, Any] | None:
    """Return the JSON file next to the weights, or None if there is none."""
    if not wanted.config_url:
        return None
    try:
        content: dict[str, Any] = json.loads(download(wanted.config_url))
    except (Absent, ValueError):
        return None
    return content


def _facts(wanted: PublishedWeights, config: dict[str, Any] | None) -> WeightFacts | None:
    return wanted.facts or (WeightFacts.of_timm(config) if isinstance(config, dict) else None)


def content_hash(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of names, shapes, types and values, the same for any file that holds them."""
    from safetensors.torch import save

    return hashlib.sha256(save({name: tensor.contiguous() for name, tensor in sorted(tensors.items())})).hexdigest()
