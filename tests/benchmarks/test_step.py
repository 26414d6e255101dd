"""benchmarks/step.py: that both sides do the same work, and that it says the truth about a device. No timings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

from benchmarks import contest, step
from benchmarks.contest import Setting, Side, Task
from benchmarks.hotspots import Kernel, report
from resnet_core.config import Precision

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
TASK = Task(device=CPU, model="resnet18", size=32, batch=4, steps=1, rounds=2)


def setting(precision: Precision = "fp32", *, channels_last: bool = False, compiled: bool = False) -> Setting:
    return Setting(precision=precision, channels_last=channels_last, compiled=compiled)


@pytest.mark.parametrize("channels_last", [False, True])
def test_both_sides_make_the_same_update(channels_last):
    batches = contest.random_batches(TASK)
    ours, theirs = (
        side(TASK, setting(channels_last=channels_last), batches)
        for side in (contest.our_trainee, contest.their_trainee)
    )
    first = contest.first_weights("resnet18")
    losses = [(float(ours.update(number)), float(theirs.update(number))) for number in range(2)]
    assert [mine for mine, _ in losses] == pytest.approx([other for _, other in losses], rel=1e-4)
    torch.testing.assert_close(ours.model.state_dict(), theirs.model.state_dict(), rtol=1e-3, atol=1e-4)
    assert not torch.equal(ours.model.state_dict()["fc.weight"], first["fc.weight"])
    # 11,689,512 parameters with their momentum, 9,600 running statistics, 20 counters of int64
    assert theirs.held() == 4 * (2 * 11_689_512 + 9_600) + 8 * 20
    assert ours.held() == pytest.approx(theirs.held(), abs=1000)


def test_sides_take_turns_in_alternating_order(monkeypatch):
    turns = []

    def timed(task, trainee, steps):
        turns.append((trainee, steps))
        return 2.0 if trainee == "ours" else 1.0, torch.tensor(7.0)

    monkeypatch.setattr(contest, "our_trainee", lambda *_: "ours")
    monkeypatch.setattr(contest, "their_trainee", lambda *_: "theirs")
    monkeypatch.setattr(contest, "timed", timed)
    result = contest.compare(TASK, setting(), setting("bf16"))
    assert turns[-4:] == [(who, range(n, n + 1)) for who, n in (("ours", 3), ("theirs", 3), ("theirs", 4), ("ours", 4))]
    assert (result.ours.rates, result.theirs.rates, result.ratios) == ([2.0, 2.0], [4.0, 4.0], [0.5, 0.5])
    assert (str(result.ours.setting), str(result.theirs.setting)) == ("fp32 NCHW eager", "bf16 NCHW eager")
    assert "0.500 (0.500-0.500)" in step.row("", result)
    assert step.row("", result).endswith("slower!")


@pytest.mark.parametrize(("name", "weights"), [("resnet18", "ResNet18_Weights"), ("resnet50", "ResNet50_Weights")])
def test_flops_are_six_times_the_published_multiply_adds(name, weights):
    giga = getattr(torchvision.models, weights).IMAGENET1K_V1.meta["_ops"]
    assert contest.training_flops(name, 224) == pytest.approx(6e9 * giga, rel=1e-3)
    assert contest.training_flops(name, 160) == pytest.approx(6e9 * giga * (160 / 224) ** 2, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA GeForce RTX 3090", None),
    ],
)
def test_share_of_the_peak_of_known_devices(monkeypatch, name, tera):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    task = Task(device=torch.device("cuda"), model="resnet50", size=224, batch=1, steps=1, rounds=1)
    side = Side(setting=setting("bf16"), rates=[3079.0])
    # 3,079 images/s, off-the-shelf PyTorch on an H200, times 6 x 4.089e9
    assert contest.peak_share(task, side) == (tera and pytest.approx(75.54 / tera, rel=1e-3))
    assert contest.peak_share(task, Side(setting=setting("fp32"), rates=[3079.0])) is None


def test_what_the_device_cannot_do_is_left_out_with_the_reason(monkeypatch, capsys):
    monkeypatch.setattr(step, "lacks", lambda precision, _: f"cpu has no {precision} instructions")
    every = step.all_settings("")
    assert [str(each) for each in step.sensible(every, CPU, False)] == ["fp32 NCHW eager", "fp32 channels_last eager"]
    assert [line.split(":")[1] for line in capsys.readouterr().out.splitlines()] == [" bf16", " compiled", " fp16"]

    def no_compiler(_):
        raise RuntimeError("No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1")

    monkeypatch.setattr(torch, "compile", no_compiler)
    assert [each.compiled for each in step.sensible(every, CPU, True)] == [False] * 4
    assert "torch.compile does not work here: No working C++ compiler found\n" in capsys.readouterr().out


def test_all_measures_everything_that_works(monkeypatch, capsys):
    monkeypatch.setattr(step, "lacks", lambda precision, _: f"cpu has no {precision} instructions")
    monkeypatch.setattr(step, "why_not_compiled", lambda _: "")
    assert len(step.sensible(step.all_settings(""), CPU, True)) == 8
    assert [str(each) for each in step.sensible(step.all_settings("compiled,fp32"), CPU, False)] == [
        "fp32 NCHW compiled",
        "fp32 channels_last compiled",
    ]
    assert set(capsys.readouterr().out.splitlines()) == {"left out: fp16: cpu has no fp16 instructions"}


def test_a_run_of_the_smallest_case(tmp_path):
    file = tmp_path / "step.json"
    arguments = "--models resnet18 --size 32 --batch 2 --rounds 2 --cpu-time --only fp32,eager --profile --json"
    command = [sys.executable, "benchmarks/step.py", *arguments.split(), str(file)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=True)
    results = json.loads(file.read_text())["results"]
    # two layouts, and the fastest of ours against the fastest of theirs where that is another
    assert len(results) in (2, 3)
    assert {(each["model"], each["size"], len(each["ours"]["rates"])) for each in results} == {("resnet18", 32, 2)}
    assert [each["ours"]["setting"]["channels_last"] for each in results[:2]] == [False, True]
    assert [each["ours"]["loss"] for each in results[:2]] == pytest.approx(
        [each["theirs"]["loss"] for each in results[:2]], rel=1e-3
    )
    assert "fastest: fp32" in run.stdout
    assert "aten::convolution_backward" in run.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--models resnet20", "Unknown model resnet20"),
        ("--models resnet51", "resnet51"),
        ("--rounds 0", "must be a number, at least 1: got '0'"),
        ("--size 224,x", "must be a number, at least 1: got 'x'"),
    ],
)
def test_bad_arguments_are_one_line(monkeypatch, capsys, arguments, told):
    monkeypatch.setattr(sys, "argv", ["step.py", *arguments.split()])
    with pytest.raises(SystemExit) as left:
        step.main()
    assert (left.value.code, told in capsys.readouterr().err.splitlines()[-1]) == (2, True)


def test_cpu_time_is_refused_where_a_gpu_works(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sys, "argv", ["step.py", "--cpu-time"])
    with pytest.raises(SystemExit):
        step.main()
    assert "--cpu-time: a GPU's work is not in it" in capsys.readouterr().err


def test_a_profile_says_what_kernels_do_and_how_fast_the_matrix_work_is():
    names = {
        "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x64x64_kernel": "convolution",
        "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816dgrad_optimized_bf16_64x64>": "convolution",
        "nvjet_tst_128x64_64x9_1x2_h_bz_TNN": "matrix product",
        "void cudnn::bn_bw_1C11_kernel_new<float, float, float2, 512, true, 1>": "batch norm",
        "void at::native::batch_norm_backward_reduce_channels_last_kernel<4>": "batch norm",
        "void cudnn::ops::nchwToNhwcKernel<float, float, float, false, true>": "layout and dtype changes",
        "triton_poi_fused__to_copy_convolution_relu_3": "fused, element by element",
        "triton_red_fused__native_batch_norm_legit_functional_0": "fused, with a reduction",
        "at::native::multi_tensor_apply_kernel<FusedSgdMathFunctor<float, 3>>": "optimizer",
        "void at::native::vectorized_elementwise_kernel<4, CUDAFunctor_add<c10::BFloat16>>": "element by element",
        "aten::convolution_backward": "convolution",
        "aten::max_pool2d_with_indices": "pooling",
        "something": "other",
    }
    assert {name: Kernel(name=name, ms=1, calls=1).group for name in names} == names
    kernels = [Kernel(name="dgrad", ms=6.0, calls=2), Kernel(name="triton_poi_add", ms=2.0, calls=1)]
    lines = list(report(kernels, step_ms=10.0, flops=3e12, peak=1e15))
    assert lines[1].split() == ["75.0%", "6.000", "ms", "2", "calls", "convolution"]
    assert lines[3] == "  convolutions and matrix products run at 500 TFLOP/s, 50.0% of the device's bf16 peak"
    assert "during 20.0% of a step" in lines[4]
