"""Addresses of published weights: `torchvision://NAME/WEIGHTS`, `hf://OWNER/NAME`, an http(s) URL.

An address becomes a URL, the file name under which the weights are cached, the hash that the publisher gives, and what
is known of the network. Nothing is downloaded here.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePosixPath
from urllib.parse import parse_qs, urlsplit

from infra.errors import UserError
from infra.nearest import nearest
from pipelines.pretrained.facts import WeightFacts
from resnet_core.config.variants import VARIANTS

TORCHVISION, HUGGING_FACE = "torchvision", "hf"
_SCHEMES = (TORCHVISION, HUGGING_FACE, "http", "https")
_HASH = re.compile(r"-([0-9a-f]{8,64})\.pth$")  # at the end of torchvision's file names: the start of the SHA-256
_PIN = re.compile(r"sha256[=:-]([0-9a-f]{64})")
_SECRETS = frozenset({"token", "access_token", "sig", "signature", "x-amz-signature", "x-goog-signature", "key"})
_HF_FILE, _HF_CONFIG = "model.safetensors", "config.json"

# Weights that timm publishes for networks of resnet_core: architecture -> tags (timm 1.0.31). Only for suggestions.
_TIMM = {
    "ecaresnet50d": "miil_in1k",
    "resnet18": "a1_in1k a2_in1k a3_in1k fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k gluon_in1k tv_in1k",
    "resnet18d": "ra2_in1k ra4_e3600_r224_in1k",
    "resnet34": "a1_in1k a2_in1k a3_in1k bt_in1k gluon_in1k ra4_e3600_r224_in1k tv_in1k",
    "resnet34d": "ra2_in1k",
    "resnet50": "a1_in1k a1h_in1k a2_in1k a3_in1k am_in1k b1k_in1k b2k_in1k bamboo bt_in1k c1_in1k "
    "c2_in1k d_in1k fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k gluon_in1k ra_in1k "
    "ram_in1k tv2_in1k tv_in1k",
    "resnet50c": "gluon_in1k",
    "resnet50d": "a1_in1k a2_in1k a3_in1k gluon_in1k ra2_in1k ra4_e3600_r224_in1k",
    "resnet101": "a1_in1k a1h_in1k a2_in1k a3_in1k gluon_in1k tv2_in1k tv_in1k",
    "resnet101d": "gluon_in1k ra2_in1k",
    "resnet152": "a1_in1k a1h_in1k a2_in1k a3_in1k gluon_in1k tv2_in1k tv_in1k",
    "resnet152d": "gluon_in1k ra2_in1k",
    "resnet200d": "ra2_in1k",
    "resnetrs50": "tf_in1k",
    "resnetrs101": "tf_in1k",
    "resnetrs152": "tf_in1k",
    "resnetrs200": "tf_in1k",
    "resnetrs270": "tf_in1k",
    "resnetrs350": "tf_in1k",
    "resnetrs420": "tf_in1k",
    "resnetv2_18": "ra4_e3600_r224_in1k",
    "resnetv2_18d": "ra4_e3600_r224_in1k",
    "resnetv2_34": "ra4_e3600_r224_in1k",
    "resnetv2_34d": "ra4_e3600_r224_in1k ra4_e3600_r384_in1k",
    "resnetv2_50": "a1h_in1k",
    "resnetv2_101": "a1h_in1k",
    "resnext50_32x4d": "a1_in1k a1h_in1k a2_in1k a3_in1k fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k "
    "gluon_in1k ra_in1k tv2_in1k tv_in1k",
    "resnext101_32x8d": "fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k fb_wsl_ig1b_ft_in1k tv2_in1k tv_in1k",
    "resnext101_64x4d": "c1_in1k gluon_in1k tv_in1k",
    "seresnet50": "a1_in1k a2_in1k a3_in1k ra2_in1k",
    "wide_resnet50_2": "racm_in1k tv2_in1k tv_in1k",
    "wide_resnet101_2": "tv2_in1k tv_in1k",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedWeights:
    """Where weights are published, and what is known about them before the download."""

    address: str  # as the user gives it, without its hash
    url: str
    cached_as: str  # file name in the cache; ends with .pth or .safetensors, as the file itself
    sha256: str = ""  # all or the start of the file's SHA-256, in hex; "" = not known
    config_url: str = ""  # JSON file with the network and the preprocessing; "" = there is none
    facts: WeightFacts | None = None
    missing: str = ""  # what to say if the server has no such file

    @property
    def scheme(self) -> str:
        return self.address.partition("://")[0]


def is_published(address: str) -> bool:
    """Return whether an address names weights on a hub or on the web, not a file, a folder or a registered model."""
    return address.partition("://")[0] in _SCHEMES and "://" in address


def published(address: str) -> PublishedWeights:
    """Return where the weights of an address are. The address may end in `#sha256=HEX`, which pins their hash.

    Raises:
        UserError: the address is incomplete, names unknown weights, or has a secret in it.
    """
    address, _, fragment = address.partition("#")
    pin = _pinned(address, fragment) if fragment else ""
    match address.partition("://")[0]:
        case "torchvision":
            return _torchvision(address, pin)
        case "hf":
            return _hugging_face(address, pin)
        case _:
            return _web(address, pin)


def _pinned(address: str, fragment: str) -> str:
    found = _PIN.fullmatch(fragment)
    if found is None:
        raise UserError(f"model.init_from: {address}#{fragment} must end in #sha256= and 64 hexadecimal digits")
    return found[1]


def _torchvision(address: str, pin: str) -> PublishedWeights:
    from torchvision.models import get_model_weights, list_models

    name, _, which = address.partition("://")[2].partition("/")
    known = sorted(set(list_models()) & set(VARIANTS))
    if name not in known:
        hint = nearest(name, known, f"{TORCHVISION}://") or f"; it has {', '.join(known)}"
        raise UserError(f"model.init_from: torchvision has no weights for the network {name!r}{hint}")
    weights = {each.name: each for each in get_model_weights(name)}
    default = getattr(get_model_weights(name), "DEFAULT", None)
    found = weights.get(which) or (default if which == "DEFAULT" else None)
    if found is None:
        hint = nearest(which, weights, f"{TORCHVISION}://{name}/") or f"; it has {', '.join(weights)}"
        raise UserError(f"model.init_from: torchvision has no weights {which!r} for {name}{hint}")
    file = PurePosixPath(urlsplit(found.url).path).name
    in_name = _HASH.search(file)
    return PublishedWeights(
        address=address,
        url=found.url,
        cached_as=file,
        sha256=pin or (in_name[1] if in_name else ""),
        facts=WeightFacts.of_torchvision(name, found),
    )


def _hugging_face(address: str, pin: str) -> PublishedWeights:
    repo, _, revision = address.partition("://")[2].partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UserError(f"model.init_from: {address} must be hf://OWNER/NAME, such as hf://timm/resnet50.a1_in1k")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    at = f"{endpoint}/{repo}/resolve/{revision or 'main'}"
    hint = nearest(repo.partition("/")[2], timm_names(), "hf://timm/")
    return PublishedWeights(
        address=address,
        url=f"{at}/{_HF_FILE}",
        cached_as=f"{repo.replace('/', '--')}{f'@{revision}' if revision else ''}.safetensors",
        sha256=pin,
        config_url=f"{at}/{_HF_CONFIG}",
        missing=f"Hugging Face has no public {repo} with a {_HF_FILE}{hint}; a private one needs HF_TOKEN",
    )


def _web(address: str, pin: str) -> PublishedWeights:
    parts = urlsplit(address)
    secret = bool(parts.password) or any(key.lower() in _SECRETS for key in parse_qs(parts.query))
    if secret:
        raise UserError(
            f"model.init_from: the URL on {parts.hostname} has a secret in it, which recipes and logs would show: "
            "download the file, and name the file"
        )
    name = PurePosixPath(parts.path).name
    if not parts.hostname or not name:
        raise UserError(f"model.init_from: {address} names no file: give the URL of a .safetensors or .pth file")
    stem, suffix = PurePosixPath(name).stem, PurePosixPath(name).suffix
    kind = ".safetensors" if suffix == ".safetensors" else ".pth"
    return PublishedWeights(
        address=address,
        url=address,
        cached_as=f"{stem}-{sha256(address.encode()).hexdigest()[:8]}{kind}",
        sha256=pin,
    )


def timm_names() -> list[str]:
    """Return the names of timm's published weights for networks of `resnet_core`."""
    return [f"{architecture}.{tag}" for architecture, tags in _TIMM.items() for tag in tags.split()]
