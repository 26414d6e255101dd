"""Published weights: names, downloads from a server that behaves like the hubs, and the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load, save

from infra.errors import UserError
from pipelines.pretrained import download as downloading
from pipelines.pretrained import fetched as fetching
from pipelines.pretrained import hubs
from pipelines.pretrained.download import download
from pipelines.pretrained.fetched import cache_folder, fetch_weights
from pipelines.pretrained.hubs import published, timm_names
from tests.pipelines.pretrained.hub import Hub, serve_hub

NAME = "timm/resnet18d.ra2_in1k"
WEIGHTS, CONFIG = (f"/{NAME}/resolve/main/{file}" for file in ("model.safetensors", "config.json"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RESNET_RAY_CACHE", "TORCH_HOME", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    for name in ("HF_TOKEN", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(downloading, "pauses", lambda total: iter([0.0] * 3))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def tensors() -> dict[str, torch.Tensor]:
    return {"conv1.weight": torch.arange(300_000.0), "fc.bias": torch.ones(3)}


def same(data: bytes, expected: dict[str, torch.Tensor]) -> bool:
    found = load(data)
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def pth(path: Path, content: Any = None) -> bytes:
    torch.save(tensors() if content is None else content, path)
    return path.read_bytes()


def cfg(name: str) -> Any:
    """timm's description of published weights."""
    return timm.get_pretrained_cfg(name)


def on_hub(hub: Hub) -> None:
    hub.files[WEIGHTS] = save(tensors())
    config = cfg("resnet18d.ra2_in1k").to_dict()
    hub.files[CONFIG] = json.dumps(
        {"architecture": "resnet18d", "num_classes": 1000, "pretrained_cfg": config}
    ).encode()


def test_weights_of_hugging_face_come_over_a_redirect_and_then_from_the_cache(hub: Hub, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    on_hub(hub)
    said: list[str] = []
    first = fetch_weights(f"hf://{NAME}", said.append)
    assert same(first.data, tensors())
    assert first.sha256 == hashlib.sha256(hub.files[WEIGHTS]).hexdigest()
    assert first.facts is not None
    assert (first.facts.network, first.facts.interpolation, first.facts.image_size) == ("resnet18d", "bicubic", 224)
    assert (first.facts.eval_resize, first.facts.mean) == (256, (0.485, 0.456, 0.406))
    assert said == [f"downloading {hub.url}{WEIGHTS}"]
    tokens = {path.partition("?")[0]: headers.get("Authorization") for path, headers in hub.seen}
    assert tokens == {
        WEIGHTS: "Bearer hf_secret",
        f"/storage{WEIGHTS}": None,
        CONFIG: "Bearer hf_secret",
        f"/storage{CONFIG}": None,
    }
    hub.seen.clear()
    assert fetch_weights(f"hf://{NAME}") == first
    assert hub.seen == []
    (kept,) = cache_folder().iterdir()
    assert kept.name == "timm--resnet18d.ra2_in1k.safetensors"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_download_goes_on_where_it_broke_off_or_begins_again(hub: Hub, tmp_path: Path, ranges: bool) -> None:
    data = pth(tmp_path / "w.pth")
    hub.files["/w.pth"], hub.ranges, hub.cuts["/w.pth"] = data, ranges, [500_000, 100]
    found = fetch_weights(f"{hub.url}/w.pth")
    assert same(found.data, tensors())
    asked = [headers.get("Range") for _, headers in hub.seen]
    assert asked[0] is None and asked[1] == "bytes=500000-" and len(asked) == 3
    assert asked[2] == ("bytes=500100-" if ranges else "bytes=100-")


def test_a_download_that_always_breaks_off_is_told_with_the_place_for_the_file(hub: Hub, tmp_path: Path) -> None:
    hub.files["/w.pth"] = pth(tmp_path / "w.pth")
    hub.ranges, hub.cuts["/w.pth"] = False, [10] * 1000
    with pytest.raises(
        UserError, match=r"w\.pth: cannot be downloaded: .* and put it at .*/pretrained/w-[0-9a-f]{8}\.pth"
    ):
        fetch_weights(f"{hub.url}/w.pth")
    assert not cache_folder().exists()


def test_without_network_a_file_put_by_hand_is_taken(hub: Hub, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    by_hand = cache_folder() / "timm--resnet18d.ra2_in1k.safetensors"
    with pytest.raises(UserError) as caught:
        fetch_weights(f"hf://{NAME}")
    message = str(caught.value)
    assert message.startswith(f"model.init_from: hf://{NAME}: cannot be downloaded: ")
    assert message.endswith(f"download http://127.0.0.1:9{WEIGHTS} elsewhere and put it at {by_hand}")
    by_hand.parent.mkdir(parents=True)
    by_hand.write_bytes(save(tensors()))
    assert same(fetch_weights(f"hf://{NAME}").data, tensors())


def test_downloads_of_timm_and_torchvision_are_found(tmp_path: Path, monkeypatch) -> None:
    snapshot = tmp_path / "hf_home" / "hub" / f"models--{NAME.replace('/', '--')}"
    (snapshot / "refs").mkdir(parents=True)
    (snapshot / "refs" / "main").write_text("abc")
    (snapshot / "snapshots" / "abc").mkdir(parents=True)
    (snapshot / "snapshots" / "abc" / "model.safetensors").write_bytes(save(tensors()))
    assert same(fetch_weights(f"hf://{NAME}").data, tensors())
    data = pth(tmp_path / "w.pth")
    hashed = replace(published("torchvision://resnet18/IMAGENET1K_V1"), sha256=hashlib.sha256(data).hexdigest()[:8])
    monkeypatch.setattr(fetching, "published", lambda address: hashed)
    place = tmp_path / "torch_home" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(data)
    assert same(fetch_weights("torchvision://resnet18/IMAGENET1K_V1").data, tensors())
    (kept,) = cache_folder().glob("resnet18*")
    assert kept.name == "resnet18-f37072fd.safetensors"  # never the pickle


def test_torchvisions_names_have_urls_hashes_and_transforms() -> None:
    found = published("torchvision://resnet50/IMAGENET1K_V2")
    assert found.url == "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"
    assert (found.cached_as, found.sha256) == ("resnet50-11ad3fa6.pth", "11ad3fa6")
    assert found.facts is not None
    assert (found.facts.image_size, found.facts.eval_resize, found.facts.interpolation) == (224, 232, "bilinear")
    assert published("torchvision://resnet50/DEFAULT").url == found.url


WRONG = {
    "hash of torchvision": ("{hub}/resnet-00000000.pth#sha256=" + "0" * 64, r"has changed or is damaged: its sha256 must be 0{16}…, got"),  # noqa: E501
    "unknown network": ("torchvision://resnet5/IMAGENET1K_V2", r"no weights for the network 'resnet5' \(did you mean torchvision://resnet50\?\)"),
    "unknown weights": ("torchvision://resnet50/IMAGENET_V2", r"'IMAGENET_V2' for resnet50 \(did you mean torchvision://resnet50/IMAGENET1K_V2\?\)"),
    "no weights named": ("torchvision://resnet18", r"no weights '' for resnet18; it has IMAGENET1K_V1"),
    "unknown on the hub": ("hf://timm/resnet50d.ra2_in1", r"no public timm/resnet50d\.ra2_in1 .*did you mean hf://timm/resnet50d\.ra2_in1k\?.*HF_TOKEN"),
    "no owner": ("hf://resnet50.a1_in1k", r"must be hf://OWNER/NAME"),
    "absent": ("{hub}/gone.pth", r"there is no http://.*/gone\.pth \(.*404"),
    "web page": ("{hub}/page.pth", r"is a web page, and not the file"),
    "secret": ("https://bucket.example/w.pth?X-Amz-Signature=5ecre7", r"has a secret in it"),
    "password": ("https://me:pa55word@host.example/w.pth", r"has a secret in it"),
    "no file": ("https://host.example/", r"names no file"),
    "hash that is none": ("{hub}/w.pth#sha256=12", r"must end in #sha256= and 64 hexadecimal digits"),
}  # fmt: skip


@pytest.mark.parametrize(("address", "told"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_an_address_is_told_in_a_line(hub: Hub, tmp_path: Path, address: str, told: str) -> None:
    hub.files = {"/resnet-00000000.pth": pth(tmp_path / "w.pth"), "/page.pth": b"\n<!DOCTYPE html><html>"}
    with pytest.raises(UserError, match=told) as caught:
        fetch_weights(address.format(hub=hub.url))
    assert str(caught.value).startswith("model.init_from: ")
    assert "5ecre7" not in str(caught.value) and "pa55word" not in str(caught.value)
    assert not cache_folder().exists()


def test_a_file_that_is_not_the_one_of_hugging_faces_hash_is_refused(hub: Hub) -> None:
    on_hub(hub)
    hub.etags[WEIGHTS] = "1" * 64
    with pytest.raises(UserError, match=r"has changed or is damaged: its sha256 must be 1{16}…"):
        fetch_weights(f"hf://{NAME}")


def test_a_damaged_cache_is_told_and_a_pin_holds_for_cached_weights_too(hub: Hub) -> None:
    on_hub(hub)
    fetch_weights(f"hf://{NAME}")
    with pytest.raises(UserError, match=r"cached at .* has another sha256 .* than 0{16}…: delete it"):
        fetch_weights(f"hf://{NAME}#sha256={'0' * 64}")
    (kept,) = cache_folder().iterdir()
    kept.write_bytes(kept.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=r"\(cached at .*\) is damaged: delete it"):
        fetch_weights(f"hf://{NAME}")


def test_a_server_that_recovers_is_asked_again(hub: Hub, monkeypatch) -> None:
    """A refused connection is not the end: the address may be that of a proxy that restarts."""
    attempts: list[int] = []
    receive = downloading._Transfer.receive

    def at_third(self) -> None:
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionRefusedError(111, "Connection refused")
        receive(self)

    monkeypatch.setattr(downloading._Transfer, "receive", at_third)
    hub.files["/w"] = b"content"
    assert download(f"{hub.url}/w") == b"content"


def test_suggested_names_are_timms() -> None:
    known = {name for name in timm.list_pretrained() if cfg(name).hf_hub_id == f"timm/{name}"}
    assert set(timm_names()) <= known
    assert hubs.timm_names()
