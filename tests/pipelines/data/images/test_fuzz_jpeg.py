"""The JPEG decoder takes bytes from anybody: damaged files end in a refusal, never beyond the memory that it has.

The C source is compiled with the address and undefined-behaviour sanitizers into a program of its own, which a first
read or write out of bounds ends.
"""

from __future__ import annotations

import io
import random
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data.images.native import SOURCE

HARNESS = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int jpeg_region(const uint8_t *data, int64_t length, int left, int top, int right, int bottom, uint8_t *out);

int main(void) {
    int32_t head[5];
    int decoded = 0, refused = 0;
    while (fread(head, sizeof head, 1, stdin) == 1) {
        uint8_t *data = malloc(head[0]);  // no byte more: one read past the end is found
        if (fread(data, 1, head[0], stdin) != (size_t)head[0]) return 3;
        uint8_t *out = malloc((size_t)(head[3] - head[1]) * (head[4] - head[2]) * 3);
        if (jpeg_region(data, head[0], head[1], head[2], head[3], head[4], out)) refused++; else decoded++;
        free(out);
        free(data);
    }
    printf("%d %d\n", decoded, refused);
    return 0;
}
"""
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g")
COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
MUTANTS = 3000


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("no C compiler here")
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "harness.c").write_text(HARNESS)
    program = folder / "harness"
    command = [COMPILER, *SANITIZERS, "-o", str(program), str(folder / "harness.c"), str(SOURCE), "-lm"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        pytest.skip(f"the compiler has no sanitizers: {built.stderr.splitlines()[-1] if built.stderr else 'no reason'}")
    return program


def jpegs() -> list[tuple[bytes, tuple[int, int]]]:
    """Files of several sizes, subsamplings and qualities, with restart markers and grey ones."""
    found = []
    rng = np.random.default_rng(0)
    for width, height, options in (
        (37, 29, {"quality": 90, "subsampling": 0}),
        (64, 48, {"quality": 50, "subsampling": 1}),
        (51, 70, {"quality": 75, "subsampling": 2}),
        (48, 48, {"quality": 95, "subsampling": 2, "restart_marker_blocks": 2}),
        (16, 9, {"quality": 30, "optimize": True}),
    ):
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        smooth = Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)
        for image in (smooth, smooth.convert("L")):
            file = io.BytesIO()
            image.save(file, "JPEG", **options)
            found.append((file.getvalue(), (width, height)))
    return found


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Damage a file: flipped bits, other bytes in its headers, a cut, a part twice, or a part of nothing."""
    changed = bytearray(data)
    match rng.randrange(5):
        case 0:
            for _ in range(rng.randint(1, 8)):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        case 1:
            for _ in range(rng.randint(1, 4)):  # of tables and sizes
                changed[rng.randrange(min(620, len(changed)))] = rng.randrange(256)
        case 2:
            del changed[rng.randrange(1, len(changed)) :]
        case 3:
            begin = rng.randrange(len(changed))
            changed[begin:begin] = changed[begin : begin + rng.randint(1, 64)]
        case 4:
            begin = rng.randrange(len(changed))
            changed[begin : begin + rng.randint(1, 200)] = bytes(rng.randint(1, 200))
    return bytes(changed)


def test_no_damaged_file_makes_the_decoder_leave_its_memory(harness: Path) -> None:
    rng, whole = random.Random(0), jpegs()
    requests = []
    for _ in range(MUTANTS):
        data, (width, height) = rng.choice(whole)
        left, top = rng.randrange(width), rng.randrange(height)
        region = (left, top, rng.randint(left + 1, width), rng.randint(top + 1, height))
        damaged = mutated(data, rng)
        requests.append(struct.pack("<5i", len(damaged), *region) + damaged)
    for data, (width, height) in whole:  # and some that are whole
        requests.append(struct.pack("<5i", len(data), 0, 0, width, height) + data)
    ran = subprocess.run([str(harness)], input=b"".join(requests), capture_output=True, check=False, timeout=250)
    assert ran.returncode == 0, ran.stderr.decode()[-3000:]
    decoded, refused = map(int, ran.stdout.split())
    assert decoded + refused == len(requests)
    assert decoded >= len(whole) / 2 and refused > MUTANTS / 20  # it was the decoder, and it was damage
