"""Images like ImageNet's, cut from real photographs: `python -m benchmarks.photographs OUT --count 1000`.

ImageNet's licence does not allow redistribution, and images of noise decode at another speed. Debian's wallpaper
packages have real photographs; each becomes a class. A tile is a random region, scaled down to one of ImageNet's usual
sizes, most often 500x375. It is saved as JPEG (4:2:0) at a quality that gives ImageNet's mean of 110 kB. Every run
makes the same tiles; the test split has other tiles of the same photographs.
"""

from __future__ import annotations

import argparse
import io
import random
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from infra.errors import UserError, run

WALLPAPERS, BACKGROUNDS = Path("/usr/share/wallpapers"), Path("/usr/share/backgrounds/mate/nature")
INSTALL = "apt-get install --no-install-recommends plasma-workspace-wallpapers mate-backgrounds"
PHOTOGRAPHS = {
    **{
        name: WALLPAPERS / name / "contents/images/2560x1600.jpg"
        for name in ("BytheWater", "ColorfulCups", "EveningGlow", "FallenLeaf", "OneStandsOut", "Path")
    },
    **{name: BACKGROUNDS / f"{name}.jpg" for name in ("Blinds", "Dune", "GreenMeadow", "RainDrops")},
}
SIZES = {(500, 375): 55, (375, 500): 18, (500, 333): 12, (333, 500): 5, (400, 400): 5, (640, 480): 3, (300, 225): 2}
"""Percentage of tiles by (width, height)."""
QUALITY = 98
DRAWS = 3  # random regions per tile; the most detailed one is kept, because much of a photograph is out of focus


def write_photographs(folder: Path, count: int, test_count: int = 0) -> int:
    """Write `count` tiles to train/CLASS/NNNN.jpg in `folder`, and `test_count` to test/; return their total bytes.

    Raises:
        UserError: the packages are not installed; the message has the command that installs them.
    """
    written = 0
    for split, wanted in (("train", count), ("test", test_count)):
        for place, name in enumerate(PHOTOGRAPHS):
            own = wanted // len(PHOTOGRAPHS) + (place < wanted % len(PHOTOGRAPHS))
            if not own:
                continue
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number, tile in enumerate(tiles(name, split, own)):
                (folder / split / name / f"{number:04d}.jpg").write_bytes(tile)
                written += len(tile)
    return written


def tiles(name: str, split: str, count: int) -> Iterator[bytes]:
    """Yield JPEG files cut from one photograph."""
    path = PHOTOGRAPHS[name]
    if not path.is_file():
        raise UserError(f"{path} does not exist: install the photographs with {INSTALL}")
    with Image.open(path) as opened:
        photograph = opened.convert("RGB")
    for number in range(count):
        rng = random.Random(f"{name}/{split}/{number}")
        size = rng.choices([*SIZES], weights=[*SIZES.values()])[0]
        yield _tile(photograph, size, rng)


def _tile(photograph: Image.Image, size: tuple[int, int], rng: random.Random) -> bytes:
    return max((_region(photograph, size, rng) for _ in range(DRAWS)), key=len)


def _region(photograph: Image.Image, size: tuple[int, int], rng: random.Random) -> bytes:
    width, height = size
    factor = rng.uniform(1, min(photograph.width / width, photograph.height / height))
    w, h = int(width * factor), int(height * factor)
    left, top = rng.randrange(photograph.width - w + 1), rng.randrange(photograph.height - h + 1)
    tile = photograph.resize(size, Image.Resampling.LANCZOS, box=(left, top, left + w, top + h))
    buffer = io.BytesIO()
    tile.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description="Write JPEG files like ImageNet's, in class folders.")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for train/CLASS/NNNN.jpg and test/CLASS/…")
    parser.add_argument("--count", type=int, default=1000, help="files of the training split")
    parser.add_argument("--test-count", type=int, default=100, help="files of the test split")
    arguments = parser.parse_args()
    written = write_photographs(arguments.out, arguments.count, arguments.test_count)
    files = arguments.count + arguments.test_count
    print(f"{files:,} files of {written / files / 1000:.0f} kB on average in {arguments.out}")


if __name__ == "__main__":
    run(main)
