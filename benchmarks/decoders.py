"""Candidates for `decode.py`: Python packages that decode or resize on a CPU, behind two common signatures.

A candidate that is not installed, or cannot start on this machine, is skipped; the table has the reason.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.data.images.jpeg import decode_region, decode_top, read_header
from pipelines.data.images.native import jpeg_region

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""
Decode = Callable[[bytes, Box], Any]
"""Function from a file and the wanted region to an object with at least that region's pixels."""
Resize = Callable[[Pixels, Box, int], Pixels]
"""Function from pixels HWC, a region of them and a side S to pixels SxSxC."""


def pillow() -> Mapping[str, Decode]:
    def half(data: bytes, _: Box) -> Any:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (image.width // 2, image.height // 2))
        return image.load()

    return {"whole": lambda data, _: Image.open(io.BytesIO(data)).load(), "half": half}


def simplejpeg() -> Mapping[str, Decode]:
    import simplejpeg

    decode = simplejpeg.decode_jpeg

    def half(data: bytes, _: Box) -> Any:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        return decode(data, min_height=height // 2, min_width=width // 2)

    return {
        "whole": lambda data, _: decode(data),
        "whole, fast flags": lambda data, _: decode(data, fastdct=True, fastupsample=True),
        "half": half,
    }


def ours() -> Mapping[str, Decode]:
    def region(data: bytes, box: Box) -> Any:
        header = read_header(data)
        assert header is not None
        return decode_region(data, header, box)

    def without_compiler(data: bytes, box: Box) -> Any:
        header = read_header(data)
        assert header is not None
        return decode_top(data, header, box[3])

    ways = {"region": region} if jpeg_region() else {}
    return {**ways, "down to the region's end": without_compiler}


def turbojpeg() -> Mapping[str, Decode]:
    from turbojpeg import TJPF_RGB, TurboJPEG

    decoder = TurboJPEG()
    return {
        "whole": lambda data, _: decoder.decode(data, pixel_format=TJPF_RGB),
        "half": lambda data, _: decoder.decode(data, pixel_format=TJPF_RGB, scaling_factor=(1, 2)),
    }


def opencv() -> Mapping[str, Decode]:
    import cv2

    cv2.setNumThreads(1)
    read = {"whole": cv2.IMREAD_COLOR_RGB, "half": cv2.IMREAD_REDUCED_COLOR_2}
    return {
        name: lambda data, _, how=how: cv2.imdecode(np.frombuffer(data, dtype=np.uint8), how)
        for name, how in read.items()
    }


def torchvision() -> Mapping[str, Decode]:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    torch.set_num_threads(1)
    return {
        "whole": lambda data, _: decode_jpeg(
            torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB
        )
    }


def imagecodecs() -> Mapping[str, Decode]:
    from imagecodecs import jpeg8_decode

    return {"whole": lambda data, _: jpeg8_decode(data)}


def kornia() -> Mapping[str, Decode]:
    from kornia_rs.io import decode_image_jpeg

    return {"whole": lambda data, _: decode_image_jpeg(data)}


def libvips() -> Mapping[str, Decode]:
    import pyvips

    pyvips.cache_set_max(0)
    region = lambda data, box: (  # noqa: E731
        pyvips.Image.jpegload_buffer(data, access="sequential")
        .crop(box[0], box[1], box[2] - box[0], box[3] - box[1])
        .write_to_memory()
    )
    return {
        "whole": lambda data, _: pyvips.Image.jpegload_buffer(data).write_to_memory(),
        "half": lambda data, _: pyvips.Image.jpegload_buffer(data, shrink=2).write_to_memory(),
        "region": region,
    }


def jpegli() -> Mapping[str, Decode]:
    import ajpegli

    return {"whole": lambda data, _: ajpegli.decode(data)}


def dali() -> Mapping[str, Decode]:
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def whole() -> Any:
        return fn.decoders.image(fn.external_source(name="file", dtype=types.UINT8, ndim=1), device="cpu")

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def part() -> Any:
        file = fn.external_source(name="file", dtype=types.UINT8, ndim=1)
        start = fn.external_source(name="start", dtype=types.INT32, ndim=1)
        shape = fn.external_source(name="shape", dtype=types.INT32, ndim=1)
        return fn.decoders.image_slice(file, device="cpu", start=start, shape=shape, axis_names="WH")

    pipelines = whole(), part()
    for pipeline in pipelines:
        pipeline.build()

    def run_whole(data: bytes, _: Box) -> Any:
        pipelines[0].feed_input("file", [np.frombuffer(data, dtype=np.uint8)])
        return pipelines[0].run()

    def run_part(data: bytes, box: Box) -> Any:
        left, top, right, bottom = box
        pipelines[1].feed_input("file", [np.frombuffer(data, dtype=np.uint8)])
        pipelines[1].feed_input("start", [np.array([left, top], dtype=np.int32)])
        pipelines[1].feed_input("shape", [np.array([right - left, bottom - top], dtype=np.int32)])
        return pipelines[1].run()

    return {"whole": run_whole, "region": run_part}


def nvimagecodec() -> Mapping[str, Decode]:
    from nvidia import nvimgcodec

    backend = nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)
    decoder = nvimgcodec.Decoder(max_num_cpu_threads=1, backends=[backend])
    return {"whole": lambda data, _: decoder.decode(data)}


DECODERS: Mapping[str, Callable[[], Mapping[str, Decode]]] = {
    "Pillow": pillow,
    "simplejpeg": simplejpeg,
    "ours": ours,
    "PyTurboJPEG": turbojpeg,
    "OpenCV": opencv,
    "torchvision": torchvision,
    "imagecodecs": imagecodecs,
    "kornia-rs": kornia,
    "pyvips": libvips,
    "ajpegli": jpegli,
    "DALI, CPU": dali,
    "nvImageCodec": nvimagecodec,
}


def _pillow_resize() -> Mapping[str, Resize]:
    def cropped(pixels: Pixels, box: Box, size: int) -> Pixels:
        image = Image.fromarray(pixels).crop(box)
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))

    def reducing(pixels: Pixels, box: Box, size: int) -> Pixels:
        image = Image.fromarray(pixels).crop(box)
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0))

    return {"": cropped, "reducing_gap 2": reducing}


def _vector_resize() -> Mapping[str, Resize]:
    from pipelines.data.images.resize import resize

    def cropped(pixels: Pixels, box: Box, size: int) -> Pixels:
        left, top, right, bottom = box
        return resize(pixels[top:bottom, left:right], (0, 0, right - left, bottom - top), (size, size), "bilinear")

    return {"": cropped}


def _opencv_resize() -> Mapping[str, Resize]:
    import cv2

    cv2.setNumThreads(1)

    def by(method: int) -> Resize:
        def cropped(pixels: Pixels, box: Box, size: int) -> Pixels:
            left, top, right, bottom = box
            resized: Pixels = cv2.resize(pixels[top:bottom, left:right], (size, size), interpolation=method)
            return resized

        return cropped

    return {"INTER_LINEAR": by(cv2.INTER_LINEAR), "INTER_AREA": by(cv2.INTER_AREA)}


def _torch_resize() -> Mapping[str, Resize]:
    import torch
    from torch.nn.functional import interpolate

    torch.set_num_threads(1)

    def cropped(pixels: Pixels, box: Box, size: int) -> Pixels:
        left, top, right, bottom = box
        region = torch.from_numpy(pixels).permute(2, 0, 1)[None, :, top:bottom, left:right]
        resized = interpolate(region, (size, size), mode="bilinear", antialias=True)
        return resized[0].permute(1, 2, 0).numpy()

    return {"antialias": cropped}


def _kornia_resize() -> Mapping[str, Resize]:
    from kornia_rs.imgproc import resize

    def cropped(pixels: Pixels, box: Box, size: int) -> Pixels:
        left, top, right, bottom = box
        resized: Pixels = resize(np.ascontiguousarray(pixels[top:bottom, left:right]), (size, size), "bilinear")
        return resized

    return {"": cropped}


RESIZERS: Mapping[str, Callable[[], Mapping[str, Resize]]] = {
    "Pillow": _pillow_resize,
    "ours (fast_image_resize)": _vector_resize,
    "torch": _torch_resize,
    "OpenCV": _opencv_resize,
    "kornia-rs": _kornia_resize,
}
