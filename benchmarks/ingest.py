"""Images/s of our loader and of others on the same photographs: `python -m benchmarks.ingest --peers FOLDER`.

The photographs are those of benchmarks/photographs.py. FOLDER has the environments of `python -m benchmarks.peers
install FOLDER`; a loader without an environment is skipped. Every loader applies RandomResizedCrop 224 (scale 0.08 to
1) and a random flip, and makes batches of 128. The files are in the page cache.

Each measurement runs in a new process, one at a time, in rounds, so that other load on the machine slows all loaders
down. With one worker the result is images per second of CPU time: user and system, all processes of the loader. With
two workers it is images per second of wall time.

`--json FILE` saves every measurement immediately. An existing FILE is continued; `--rounds 0` only prints its table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.peers.__main__ import ENVIRONMENTS, interpreter
from benchmarks.photographs import write_photographs
from infra.s3_proxy import serve_proxy
from infra.s3_server import serve_s3

ROOT = Path(__file__).resolve().parents[1]
DELAY_MS = 50
_TIMEOUT_S = 600

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A loader of one stored form, in one variant."""

    name: str
    module: str  # in benchmarks.peers
    form: str  # loaders of one form are compared with each other
    variant: str = ""
    environment: str = ""  # in benchmarks.peers; "" = ours
    workers: tuple[int, ...] = (1, 2)

    @property
    def ours(self) -> bool:
        return not self.environment


def _contenders() -> list[Contender]:
    original = [
        ("DataLoader, decode_jpeg + v2", "dataloader", "tensor", "torchvision"),
        ("DataLoader, ImageFolder + PIL", "dataloader", "pil", "torchvision"),
        ("WebDataset", "webdataset", "", "webdataset"),
        ("LitData", "litdata", "", "litdata"),
        ("MosaicML Streaming", "mosaicml", "", "mosaicml"),
        ("DALI-CPU, antialias", "dali", "antialias", "dali"),
        ("DALI-CPU, no antialias", "dali", "plain", "dali"),
        ("SPDL, FFmpeg", "spdl", "ffmpeg", "spdl"),
        ("SPDL, decode_jpeg + v2", "spdl", "tensor", "spdl"),
        ("Ray Data, release benchmark", "ray_data", "", "ray"),
    ]
    found = [Contender(name="ours", module="ours", form="original", variant="original")]
    found += [
        Contender(name=name, module=module, form="original", variant=variant, environment=environment)
        for name, module, variant, environment in original
    ]
    for form in ("jpeg-500", "jpeg-256", "raw-256"):
        found.append(Contender(name="ours", module="ours", form=form, variant=form))
        found.append(Contender(name="FFCV", module="ffcv", form=form, variant=form, environment="ffcv"))
    for place in ("local", "s3", "s3-50ms"):
        found.append(
            Contender(name=f"ours, Ray, {place}", module="stream", form="pipeline", variant=place, workers=(2,))
        )
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """Folders and settings of all measurements."""

    photographs: Path
    scratch: Path
    peers: Path
    batch: int
    seconds: float

    def measure(self, contender: Contender, workers: int) -> Record | None:
        """Measure a loader in a new process; if that fails, print the reason and return None."""
        own = self.scratch / contender.module / contender.variant
        python = Path(sys.executable) if contender.ours else interpreter(self.peers, contender.environment)
        out, log = self.scratch / "measured.json", self.scratch / "log.txt"
        out.unlink(missing_ok=True)
        options = {
            "photographs": self.photographs / "train",
            "scratch": own,
            "workers": workers,
            "batch": self.batch,
            "seconds": self.seconds,
            "variant": contender.variant,
            "out": out,
        }
        command = [str(python), "-m", f"benchmarks.peers.{contender.module}"]
        command += [f"--{name}={value}" for name, value in options.items()]
        with storage(contender, own) as environment, log.open("w") as opened:
            code = subprocess.run(
                command, cwd=ROOT, env=os.environ | environment, stdout=opened, stderr=opened, timeout=_TIMEOUT_S
            ).returncode
        if code or not out.exists():
            last = (log.read_text().strip().splitlines() or ["no output"])[-1]
            print(f"{contender.form}: {contender.name} failed ({code}): {last}", file=sys.stderr)
            return None
        measured: Record = json.loads(out.read_text())
        return {"form": contender.form, "name": contender.name, "workers": workers, **measured}


@contextmanager
def storage(contender: Contender, folder: Path) -> Iterator[dict[str, str]]:
    """Run the S3 server for a contender that reads from S3, outside of the measured processes."""
    with ExitStack() as stack:
        environment: dict[str, str] = {}
        if contender.variant.startswith("s3"):
            server = stack.enter_context(serve_s3(folder.parent / "weed"))
            environment = server.environment
            if contender.variant != "s3":
                proxy = stack.enter_context(serve_proxy(server.endpoint, delay_ms=DELAY_MS))
                environment |= {"AWS_ENDPOINT_URL": proxy.endpoint}
        yield environment


def rate(record: Record, per: str) -> float:
    """Return the images per second of `per`, cpu_s or wall_s."""
    return float(record["images"] / record[per])


def table(records: list[Record]) -> Iterator[str]:
    """Yield lines: medians with their range over the rounds, and the ratio of ours to theirs."""
    for form in dict.fromkeys(record["form"] for record in records if record["form"] != "pipeline"):
        yield ""
        yield f"{form:32}{'images per CPU-s, 1 worker':^34}{'images/s, 2 workers':^34}{'longest':>9}"
        yield f"{'':32}{'median (range)':^24}{'ours/it':^10}{'median (range)':^24}{'ours/it':^10}{'gap':>8}"
        own = [record for record in records if record["form"] == form]
        names = dict.fromkeys(record["name"] for record in own)
        for name in names:
            cells = ""
            for workers, per in ((1, "cpu_s"), (2, "wall_s")):
                mine = _rates(own, "ours", workers, per)
                its = _rates(own, name, workers, per)
                cell = f"{median(its):,.0f} ({min(its):,.0f}-{max(its):,.0f})" if its else "-"
                ratio = f"{median(mine) / median(its):.2f}" if mine and its and name != "ours" else ""
                cells += f"{cell:^24}{ratio:^10}"
            gap = max(record["longest_gap_s"] for record in own if record["name"] == name)
            yield f"{name:32}{cells}{gap:7.2f}s"
    yield from pipeline_table(records)


def pipeline_table(records: list[Record]) -> Iterator[str]:
    """Yield lines that compare the whole pipeline with the bare function of a data task."""
    streamed = [record for record in records if record["form"] == "pipeline"]
    bare = {
        (workers, per): median(_rates(records, "ours", workers, per, "original") or [float("nan")])
        for workers, per in ((1, "cpu_s"), (2, "wall_s"))
    }
    if streamed:
        yield ""
        yield "whole pipeline, two workers: images per second of wall and of CPU time, over those of the bare function"
    for name in dict.fromkeys(record["name"] for record in streamed):
        own = [record for record in streamed if record["name"] == name]
        wall = median(rate(record, "wall_s") for record in own) / bare[2, "wall_s"]
        cpu = median(rate(record, "cpu_s") for record in own) / bare[1, "cpu_s"]
        middle = {key: median(record[key] for record in own) for key in own[0] if key.endswith(("_s", "_gb"))}
        yield (
            f"{name:24} wall {wall:.2f}  CPU {cpu:.2f}  gap {middle['longest_gap_s']:.2f} s "
            f"(median {middle['median_gap_s']:.2f})  first batch {middle['warm_first_batch_s']:.1f} s warm, "
            f"{middle['cold_first_batch_s']:.1f} cold  store {middle['object_store_gb']:.2f} GB, "
            f"spilled {middle['spilled_gb']:.2f}"
        )


def _rates(records: list[Record], name: str, workers: int, per: str, form: str = "") -> list[float]:
    return [
        rate(record, per)
        for record in records
        if record["name"] == name and record["workers"] == workers and form in ("", record["form"])
    ]


def chosen(names: list[str] | None, peers: Path | None) -> list[Contender]:
    """Return the contenders whose name, form or module contains one of the words; print those without environment."""
    found = []
    for contender in _contenders():
        words = f"{contender.name} {contender.form} {contender.module}".lower()
        if names and not any(name.lower() in words for name in names):
            continue
        if contender.ours or (peers and interpreter(peers, contender.environment).exists()):
            found.append(contender)
        else:
            pins = ", ".join(ENVIRONMENTS[contender.environment])
            print(f"left out: {contender.name}: no environment of {pins} (--peers)", file=sys.stderr)
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare images/s of our data path and of other loaders.")
    parser.add_argument("--peers", type=Path, help="folder of the other loaders' environments; without it: ours only")
    parser.add_argument(
        "--only", action="append", metavar="WORD", help="only loaders or stored forms with this word; repeatable"
    )
    parser.add_argument(
        "--photographs", type=Path, help="folder of the photographs, made if missing; default: a temporary folder"
    )
    parser.add_argument("--scratch", type=Path, help="folder for the loaders' own formats; default: a temporary one")
    parser.add_argument("--count", type=int, default=1000, help="photographs to make, if they are missing")
    parser.add_argument("--batch", type=int, default=128, help="images per batch")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="file to which measurements are added")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    file = arguments.json
    records: list[Record] = json.loads(file.read_text())["records"] if file and file.exists() else []
    with tempfile.TemporaryDirectory(prefix="resnet-ray-ingest-") as temporary:
        photographs = arguments.photographs or Path(temporary, "photographs")
        if not photographs.exists():
            write_photographs(photographs, arguments.count, arguments.count // 10)
        scratch = arguments.scratch or Path(temporary, "scratch")
        scratch.mkdir(parents=True, exist_ok=True)
        bench = Bench(
            photographs=photographs.absolute(),
            scratch=scratch.absolute(),
            peers=arguments.peers or Path(temporary),
            batch=arguments.batch,
            seconds=arguments.seconds,
        )
        contenders = chosen(arguments.only, arguments.peers) if arguments.rounds else []
        for number in range(arguments.rounds):
            for contender in contenders:
                for workers in contender.workers:
                    if measured := bench.measure(contender, workers):
                        records.append(measured | {"load": os.getloadavg()[0]})
                        print(
                            f"{number + 1} {contender.form} {contender.name} {workers}: "
                            f"{rate(measured, 'cpu_s'):,.0f} per CPU-s, {rate(measured, 'wall_s'):,.0f}/s",
                            flush=True,
                        )
                        if file:
                            settings = {"batch": arguments.batch, "seconds": arguments.seconds, "cpus": os.cpu_count()}
                            file.write_text(json.dumps({**settings, "records": records}, indent=1) + "\n")
    print("\n".join(table(records)))


if __name__ == "__main__":
    main()
