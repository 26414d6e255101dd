from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from resnet_core.config import AugmentConfig, ComputeConfig, ModelConfig, OptimConfig, ScheduleConfig

NAN = float("nan")


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (ModelConfig, {"name": "resnet19"}, "model.name must be one of resnet18, resnet34, .*: got 'resnet19'"),
        (ModelConfig, {"num_classes": -1}, "model.num_classes must be at least 0: got -1"),
        (OptimConfig, {"global_batch_size": 0}, "optim.global_batch_size must be at least 1: got 0"),
        (OptimConfig, {"lr_per_256": 0.0}, "optim.lr_per_256 must be positive and finite: got 0.0"),
        (OptimConfig, {"lr_per_256": NAN}, "optim.lr_per_256 must be positive and finite: got nan"),
        (OptimConfig, {"momentum": 1.0}, r"optim.momentum must be in \[0, 1\): got 1.0"),
        (OptimConfig, {"momentum": 0.0, "nesterov": True}, "optim.nesterov must be false without momentum: got True"),
        (OptimConfig, {"weight_decay": -1e-4}, "optim.weight_decay must be finite, at least 0: got -0.0001"),
        (OptimConfig, {"label_smoothing": 1.0}, r"optim.label_smoothing must be in \[0, 1\): got 1.0"),
        (OptimConfig, {"ema_decay": 1.0}, r"optim.ema_decay must be in \[0, 1\): got 1.0"),
        (OptimConfig, {"optimizer": "adam"}, "optim.optimizer must be one of sgd, lars, lamb, adamw: got 'adam'"),
        (OptimConfig, {"momentum_form": "tf"}, "optim.momentum_form must be one of torch, caffe: got 'tf'"),
        (OptimConfig, {"optimizer": "lamb", "nesterov": True}, "optim.nesterov must be false without momentum: got"),
        (OptimConfig, {"loss": "mse"}, "optim.loss must be one of cross_entropy, bce, bce_sum: got 'mse'"),
        (OptimConfig, {"beta2": 1.0}, r"optim.beta2 must be in \[0, 1\): got 1.0"),
        (OptimConfig, {"trust_coefficient": 0.0}, "optim.trust_coefficient must be positive and finite: got 0.0"),
        (OptimConfig, {"clip_norm": -1.0}, "optim.clip_norm must be finite, at least 0: got -1.0"),
        (OptimConfig, {"sam_every": 0}, "optim.sam_every must be at least 1: got 0"),
        (OptimConfig, {"ema_every": 0}, "optim.ema_every must be at least 1: got 0"),
        (OptimConfig, {"ema_decay": 0.9, "average_from": 2.0}, "optim.average_from must be 0 if optim.ema_decay is"),
        (OptimConfig, {"exact_bn_images": -1}, "optim.exact_bn_images must be at least 0: got -1"),
        (ScheduleConfig, {"unit": "batches"}, "schedule.unit must be one of epochs, steps: got 'batches'"),
        (ScheduleConfig, {"length": 0.0}, "schedule.length must be positive and finite: got 0.0"),
        (ScheduleConfig, {"length": 5.0, "warmup": 5.0}, r"schedule.warmup must be in \[0, 5.0\).*: got 5.0"),
        (ScheduleConfig, {"warmup_start_factor": 2.0}, r"schedule.warmup_start_factor must be in \[0, 1\]: got 2.0"),
        (ScheduleConfig, {"shape": "wave"}, "schedule.shape must be one of cosine, .*: got 'wave'"),
        (ScheduleConfig, {"gamma": 0.0}, r"schedule.gamma must be in \(0, 1\]: got 0.0"),
        (ScheduleConfig, {"end_factor": -0.1}, r"schedule.end_factor must be in \[0, 1\]: got -0.1"),
        (ScheduleConfig, {"shape": "step"}, r'schedule.milestones must be given for the shape "step" only: got \(\)'),
        (ScheduleConfig, {"milestones": (30.0,)}, r'schedule.milestones must be given for the shape "step" only'),
        (ScheduleConfig, {"shape": "step", "milestones": (60.0, 30.0)}, "schedule.milestones must be strictly incr"),
        (ScheduleConfig, {"shape": "step", "milestones": (30.0, 90.0)}, "schedule.milestones must be strictly incr"),
        (
            ScheduleConfig,
            {"shape": "step", "warmup": 5.0, "milestones": (5.0,)},
            "schedule.milestones must be strictly increasing, after warmup and before length",
        ),
        (ScheduleConfig, {"unit": "steps", "length": 10.5}, "schedule.length must be a whole number of steps: got"),
        (
            ScheduleConfig,
            {"unit": "steps", "shape": "step", "milestones": (30.5,)},
            "schedule.milestones must be whole numbers of steps",
        ),
        (ScheduleConfig, {"warmup_shape": "cosine"}, "schedule.warmup_shape must be one of linear, constant, exp.*"),
        (
            ScheduleConfig,
            {"warmup": 5.0, "warmup_shape": "exponential"},
            "schedule.warmup_start_factor must be positive",
        ),
        (ScheduleConfig, {"warmup_until_error": 0.8}, "schedule.warmup_start_factor must be positive"),
        (
            ScheduleConfig,
            {"warmup_until_error": 0.8, "warmup_start_factor": 0.1, "warmup": 5.0},
            "schedule.warmup must be 0 for the shape .* and with warmup_until_error: got 5.0",
        ),
        (ScheduleConfig, {"shape": "one_cycle"}, 'schedule.warmup must be positive for the shape "one_cycle": got 0.0'),
        (ScheduleConfig, {"shape": "piecewise"}, 'schedule.points must be given for the shape "piecewise" only: got'),
        (ScheduleConfig, {"points": (0.0,)}, 'schedule.points must be given for the shape "piecewise" only: got'),
        (
            ScheduleConfig,
            {"shape": "piecewise", "points": (0.0, 91.0), "factors": (0.0, 1.0)},
            r"schedule.points must be strictly increasing, from 0 to length \(90.0\)",
        ),
        (
            ScheduleConfig,
            {"shape": "piecewise", "points": (0.0, 2.0), "factors": (1.0,)},
            "schedule.factors must be as many as schedule.points: got",
        ),
        (ScheduleConfig, {"power": 0.0}, "schedule.power must be positive and finite: got 0.0"),
        (ScheduleConfig, {"patience": -1}, "schedule.patience must be at least 0: got -1"),
        (
            ScheduleConfig,
            {"drop_path_ramp": 91.0},
            r"schedule.drop_path_ramp must be in \[0, 90.0\], up to schedule.length",
        ),
        (ComputeConfig, {"precision": "fp8"}, "compute.precision must be one of auto, fp32, bf16, fp16: got 'fp8'"),
        (ComputeConfig, {"compile": "yes"}, "compute.compile must be \"auto\", true or false: got 'yes'"),
        (ComputeConfig, {"microbatch_size": -1}, "compute.microbatch_size must be at least 0: got -1"),
        (ComputeConfig, {"threads_per_worker": -1}, "compute.threads_per_worker must be at least 0: got -1"),
        (AugmentConfig, {"std": (0.2, 0.0, 0.2)}, "augment.std must be 3 positive numbers: got"),
        (AugmentConfig, {"mean": (0.5,)}, "augment.mean must be 3 numbers: got"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_field(section: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        section(**values)


def test_peak_rate_scales_with_the_global_batch() -> None:
    assert OptimConfig(global_batch_size=1024, lr_per_256=0.5).peak_lr == pytest.approx(2.0)


def test_the_paper_s_two_families() -> None:
    assert ModelConfig(name="resnet110").family == "cifar"
    assert ModelConfig(name="resnet101").family == "imagenet"


def test_reading_a_recipe_needs_no_torch() -> None:
    code = "import sys, resnet_core.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
