"""Images/s of our training step against torchvision's network in a plain loop: `python benchmarks/step.py`.

Both start from the same weights, take the same uint8 images, which are already on the device, and do the same update:
normalize, forward, cross-entropy, backward, SGD. Ours is `resnet_core.step.train_step`, wrapped as in
`pipelines/training/build.py`. Both take turns, in the opposite order in every second round, so that other load on the
machine slows both down. The ratio is taken within a round; its median and range over the rounds are printed.
The final losses are compared: in fp32 they must agree, otherwise both did not do the same work.

Settings are fp32 or bf16 (autocast), NCHW or channels_last, eager or compiled. A setting that the device cannot do, or
does too slowly for training, is skipped with its reason. Compilation on a CPU is skipped too, because it takes
minutes. --all measures everything. At the end our fastest setting is compared with torchvision's fastest setting
without compilation. This needs torch and torchvision only, and no internet.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
import torchvision

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.contest import (
    WARMUP,
    Result,
    Setting,
    Task,
    compare,
    forget,
    our_trainee,
    peak_flops,
    random_batches,
    timed,
    training_flops,
)
from benchmarks.hotspots import profiled, report
from resnet_core.compute import configure, lacks, pick_device, why_not_compiled
from resnet_core.config import ComputeConfig, ModelConfig, Precision

GOAL = 0.98  # of torchvision's rate, in every setting


def sensible(settings: list[Setting], device: torch.device, everything: bool) -> list[Setting]:
    """Return the settings that the device computes fast enough for training; print why the others are skipped."""
    refused: dict[str, str] = {}
    if not everything and (missing := lacks("bf16", device)):
        refused["bf16"] = f"{missing}; fp32 is about ten times faster (--all)"
    if missing := lacks("fp16", device):
        refused["fp16"] = missing
    if not everything and device.type == "cpu" and not all(setting.compiled for setting in settings):
        refused["compiled"] = "takes a minute or more per network and setting on a CPU (--all, or --only compiled)"
    elif any(setting.compiled for setting in settings) and (reason := why_not_compiled(device)):
        refused["compiled"] = f"torch.compile does not work here: {reason}"
    words = {word for setting in settings for word in str(setting).split()}
    for word in sorted(words & refused.keys()):
        print(f"left out: {word}: {refused[word]}")
    return [setting for setting in settings if not refused.keys() & set(str(setting).split())]


def header(on_gpu: bool) -> str:
    """Return the column titles of `row`, in two lines."""
    above = f"{'':26}{'images/s':>16}  {'ours / theirs':^21}{'first':>9}"
    below = f"{'setting':26}{'ours':>8}{'theirs':>8}  {'median (range)':^21}{'step':>9}"
    if on_gpu:
        above += f"{'of bf16 peak':>15}{'memory, GiB':>15}"
        below += f"{'ours':>8}{'theirs':>7}{'ours':>8}{'theirs':>7}"
    return f"{above}  loss\n{below}  ours, and - theirs"


def row(name: str, result: Result) -> str:
    """Return one comparison as a line under `header`."""
    ours, theirs, ratios = result.ours, result.theirs, result.ratios
    ratio = f"{median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"
    text = f"{name:26}{ours.rate:8,.1f}{theirs.rate:8,.1f}  {ratio:^21}{ours.first_step_s:7.1f} s"
    if ours.peak_gib and theirs.peak_gib:
        parts = ["" if side.peak_share is None else f"{side.peak_share:.1%}" for side in (ours, theirs)]
        text += f"{parts[0]:>8}{parts[1]:>7}{ours.peak_gib:8.1f}{theirs.peak_gib:7.1f}"
    warning = "  slower!" if median(ratios) < GOAL else ""
    return f"{text}  {ours.loss:.3f} {ours.loss - theirs.loss:+.1e}{warning}"


def measure(task: Task, settings: list[Setting]) -> Iterator[Result]:
    """Compare in every setting, then our fastest setting with their fastest one without compilation."""
    print(f"\n{task.model}, {task.size} pixels, {task.batch} images a step; {task.rounds} rounds of {task.steps} steps")
    print(header(task.device.type == "cuda"), flush=True)
    results: list[Result] = []
    for setting in settings:
        results.append(compare(task, setting, setting))
        forget()
        print(row(str(setting), results[-1]), flush=True)
        yield results[-1]
    best = fastest(results)
    print(f"fastest: {best}")
    plain = [result for result in results if not result.theirs.setting.compiled]
    if not plain:
        return
    rival = max(plain, key=lambda result: result.theirs.rate).theirs.setting
    if rival == best:
        print("torchvision's network without compilation is fastest in the same setting: see its row")
        return
    result = compare(task, best, rival)
    forget()
    print(f"against torchvision's fastest setting without compilation, {rival}:")
    print(row("", result), flush=True)
    yield result


def fastest(results: list[Result]) -> Setting:
    """Return our fastest setting."""
    return max((result.ours for result in results), key=lambda side: side.rate).setting


def where_time_goes(task: Task, setting: Setting) -> None:
    """Profile our step and print where its time goes."""
    trainee = our_trainee(task, setting, random_batches(task))
    timed(task, trainee, range(WARMUP))
    steps = range(WARMUP, WARMUP + max(3, task.steps))
    seconds, _ = timed(task, trainee, steps)
    kernels = profiled(trainee.update, steps, task.device)
    print(f"\n{task.model}, {task.size} pixels, {task.batch} images a step, {setting}:")
    flops = task.batch * training_flops(task.model, task.size)
    print("\n".join(report(kernels, seconds / len(steps) * 1000, flops, peak_flops(task.device))), flush=True)
    forget()


def _arguments() -> argparse.Namespace:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description="Compare images/s of our training step and torchvision's.")
    parser.add_argument("--models", type=_models, default="resnet18,resnet50", help="names, comma-separated")
    parser.add_argument(
        "--size", type=_sizes, default="224" if on_gpu else "96", help="sides in pixels, comma-separated"
    )
    parser.add_argument("--batch", type=_positive, default=256 if on_gpu else 16, help="images per step")
    parser.add_argument("--steps", type=_positive, default=20 if on_gpu else 1, help="steps of each side in each round")
    parser.add_argument("--rounds", type=_positive, default=5 if on_gpu else 12)
    parser.add_argument("--only", default="", metavar="WORDS", help="only settings with all these words: bf16,eager")
    parser.add_argument("--all", action="store_true", help="also measure settings that are slow on this device")
    parser.add_argument("--threads", type=_positive, default=os.cpu_count(), help="threads of torch, on a CPU")
    parser.add_argument("--cpu-time", action="store_true", help="measure one thread's CPU time, for a busy machine")
    parser.add_argument("--profile", action="store_true", help="print where the time of our fastest setting goes")
    parser.add_argument("--json", metavar="FILE", help="file for the measurements")
    arguments = parser.parse_args()
    if arguments.cpu_time:
        if on_gpu:
            parser.error("--cpu-time: a GPU's work is not in it")
        arguments.threads = 1  # the CPU time of a second thread would include its waiting for the first
    return arguments


def _models(text: str) -> list[str]:
    """Split a list of networks; raise ArgumentTypeError for a name that one of the sides does not have."""
    for name in text.split(","):
        try:
            ModelConfig(name=name)  # type: ignore[arg-type]
            torchvision.models.get_model_builder(name)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return text.split(",")


def _sizes(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number, at least 1: got {text!r}")
    return int(text)


def machine(device: torch.device) -> dict[str, Any]:
    """Return the device, the versions and the load: what the figures depend on, except the arguments."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    return {"device": name, "bf16_peak_flops": peak_flops(device), "load_before": os.getloadavg()[0], **versions}


def all_settings(words: str) -> list[Setting]:
    """Return the settings that have all these words (comma-separated), the plainest first."""
    choices = product(get_args(Precision), (False, True), (False, True))
    settings = [Setting(precision=first, channels_last=second, compiled=third) for first, second, third in choices]
    wanted = {word for word in words.split(",") if word}
    return [setting for setting in settings if wanted <= set(str(setting).split())]


def main() -> None:
    arguments = _arguments()
    device = pick_device(use_gpu=torch.cuda.is_available())
    configure(ComputeConfig(threads_per_worker=arguments.threads), device)
    setup = machine(device)
    rates = "per second of CPU time" if arguments.cpu_time else "per second"
    print(f"{setup['device']}, torch {setup['torch']}, load average before {setup['load_before']:.1f}; images {rates}")
    if device.type == "cuda" and setup["bf16_peak_flops"] is None:
        print("unknown device: its bf16 peak is not in this benchmark's table, so no fraction of it is printed")
    settings = sensible(all_settings(arguments.only), device, arguments.all)
    if not settings:
        raise SystemExit("error: no setting is left to measure: see --only and --all")
    measured: list[Result] = []
    for model, size in product(arguments.models, arguments.size):
        task = Task(
            device=device,
            model=model,
            size=size,
            batch=arguments.batch,
            steps=arguments.steps,
            rounds=arguments.rounds,
            clock=time.process_time if arguments.cpu_time else time.perf_counter,
        )
        results = []
        for result in measure(task, settings):
            results.append(result)
            if arguments.json:  # after each result, so that an interruption loses nothing
                written = {**vars(arguments), **setup, "results": [asdict(each) for each in measured + results]}
                Path(arguments.json).write_text(json.dumps(written, indent=1) + "\n")
        if arguments.profile:
            where_time_goes(task, fastest(results))
        measured += results


if __name__ == "__main__":
    main()
