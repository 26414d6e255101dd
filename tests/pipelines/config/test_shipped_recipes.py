"""The shipped recipes against their sources: every figure here is the source's, written out, not the recipe's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from pipelines.config.recipe import RECIPES, Recipe, load_recipe
from resnet_core.models import build_model
from resnet_core.schedule import LrSchedule

IMAGENET, CIFAR10 = 1_281_167, 50_000  # training images
SHIPPED = sorted(path.stem for path in RECIPES.glob("*.toml"))
DOCS = RECIPES.parents[1] / "docs" / "recipes.md"


@dataclass(frozen=True)
class Run:
    """What a recipe comes to on its data set."""

    samples: int
    batch: int
    epochs: float
    steps: int
    peak: float  # learning rate
    warm: int = 0  # step at which the warm-up ends


PAPER = Run(IMAGENET, 256, 119.89, 600_000, 0.1)  # Section 3.4: batch 256, rate 0.1, 60 x 10^4 iterations
CIFAR = Run(CIFAR10, 128, 163.84, 64_000, 0.1)  # Section 4.2: batch 128, rate 0.1, 64k iterations
# arXiv 2110.00476, Table 2: 5 epochs of warm-up; batches of 2,048, which triples of views do not divide
RSB_A1 = Run(IMAGENET, 2040, 600, 376_813, 0.005, 3_140)
DERIVED = {
    "mnist5k": Run(3_600, 64, 8, 450, 0.1, 56),  # ours
    "fashion_mnist": Run(60_000, 128, 3, 1_406, 0.2, 140),  # ours
    **dict.fromkeys((f"paper_resnet{depth}" for depth in (18, 34, 50, 101, 152)), PAPER),
    **dict.fromkeys(("paper_plain18", "paper_plain34"), PAPER),
    **dict.fromkeys((f"cifar10_resnet{depth}" for depth in (20, 32, 44, 56, 110, 1202)), CIFAR),
    **dict.fromkeys((f"cifar10_plain{depth}" for depth in (20, 32, 44, 56, 110)), CIFAR),
    # pytorch/vision, references/classification: 8 x 32 at 0.1; 8 x 128 at 0.5, 5 epochs of warm-up
    "torchvision_v1_resnet50": Run(IMAGENET, 256, 90, 450_410, 0.1),
    "torchvision_v2_resnet50": Run(IMAGENET, 1024, 600, 750_683, 0.5, 6_255),
    "rsb_a1_resnet50": RSB_A1,
    "rsb_a1_resnet50d": RSB_A1,
    "rsb_a1_ecaresnet50d": RSB_A1,
    "rsb_a2_resnet50": Run(IMAGENET, 2040, 300, 188_406, 0.005, 3_140),
    "rsb_a3_resnet50": Run(IMAGENET, 2048, 100, 62_556, 0.008, 3_127),
    # libffcv/ffcv-imagenet, rn50_configs and rn18_configs: 8 x 512 at 1.7 and 1024 at 0.5, lr_peak_epoch 2
    "ffcv16_resnet50": Run(IMAGENET, 4096, 16, 5_004, 1.7, 625),
    "ffcv32_resnet50": Run(IMAGENET, 4096, 32, 10_009, 1.7, 625),
    "ffcv88_resnet50": Run(IMAGENET, 4096, 88, 27_525, 1.7, 625),
    "ffcv16_resnet18": Run(IMAGENET, 1024, 16, 20_018, 0.5, 2_502),
    "ffcv32_resnet18": Run(IMAGENET, 1024, 32, 40_036, 0.5, 2_502),
    "ffcv88_resnet18": Run(IMAGENET, 1024, 88, 110_100, 0.5, 2_502),
    # mosaicml/benchmarks, resnet50_mild.yaml: 0.36 x 90 epochs, 8 of them warm-up
    "mosaic_mild_resnet50": Run(IMAGENET, 2048, 32.4, 20_268, 2.048, 5_004),
    # mlcommons/training_results_v3.1, config_DGXH100.sh: 8 x 400, LR 11, NUMEPOCHS 37, WARMUP_EPOCHS 2
    "mlperf_lars_resnet50": Run(IMAGENET, 3200, 37, 14_813, 11.0, 800),
    # GluonCV, resnet50_v1d-mixup.log: 8 x 128, lr=0.4, num_epochs=200, warmup_epochs=5
    "bag_of_tricks_resnet50d": Run(IMAGENET, 1024, 200, 250_227, 0.4, 6_255),
    "my_images": Run(2_250, 32, 20, 1_406, 0.05, 70),
    "my_small_images": Run(2_250, 32, 20, 1_406, 0.05, 70),
    "finetune": Run(2_250, 32, 20, 1_406, 0.01),  # ours
    "linear_probe": Run(2_250, 32, 20, 1_406, 0.1),  # ours
    "finetune_resnet50": Run(CIFAR10, 64, 150, 117_187, 0.01),  # arXiv 2007.08489, on CIFAR-10
}

OWN_STEPS = {  # of the source, whose loader cuts off, fills up or splits the end of each epoch
    "torchvision_v1_resnet50": 90 * 5_005,  # ceil(ceil(N / 8) / 32)
    "rsb_a2_resnet50": 300 * 628,  # theirs is 625, of 2,048 images
    "ffcv16_resnet50": 16 * 312,  # drop_last
    "ffcv88_resnet18": 88 * 1_251,
    "mlperf_lars_resnet50": 37 * 401,  # fit.py: ceil(N / 8 / 400)
    "bag_of_tricks_resnet50d": 200 * 1_251,  # train_imagenet.py: N // 1024
}

STATED: dict[str, dict[str, Any]] = {
    # Section 3.4 and Table 1; the release's README; fb.resnet.torch's README for what is not decayed and the stride
    "paper_resnet50": {
        "model.stride_on": "1x1",
        "data.train_crop": "scale_jitter",
        "data.jitter_min": 256,
        "data.jitter_max": 480,
        "data.image_size": 224,
        "augment.flip": True,
        "augment.pixel_mean": True,
        "augment.lighting": 0.1,
        "augment.std": [1, 1, 1],
        "optim.optimizer": "sgd",
        "optim.momentum": 0.9,
        "optim.momentum_form": "caffe",
        "optim.weight_decay": 1e-4,
        "optim.decay_norm_and_bias": False,
        "schedule.shape": "plateau",
        "schedule.gamma": 0.1,
        "run.num_workers": 8,
    },
    "paper_resnet34": {"model.shortcut": "A", "optim.momentum_form": "caffe"},  # Table 2
    # Section 4.2
    "cifar10_resnet110": {
        "data.train_crop": "pad",
        "data.pad": 4,
        "data.image_size": 32,
        "data.eval_resize": 32,
        "augment.flip": True,
        "augment.pixel_mean": True,
        "optim.momentum": 0.9,
        "optim.weight_decay": 1e-4,
        "schedule.milestones": [32_000, 48_000],
        "schedule.gamma": 0.1,
        "schedule.warmup_until_error": 0.8,
        "schedule.warmup_start_factor": 0.1,  # 0.01
        "run.num_workers": 2,
    },
    "cifar10_resnet56": {"schedule.warmup_until_error": 0},
    # references/classification/train.py's defaults
    "torchvision_v1_resnet50": {
        "data.train_crop": "random_resized",
        "data.image_size": 224,
        "data.eval_resize": 256,
        "optim.momentum": 0.9,
        "optim.weight_decay": 1e-4,
        "optim.decay_norm_and_bias": True,
        "schedule.shape": "step",
        "schedule.milestones": [30, 60],
        "schedule.gamma": 0.1,
    },
    # the V2 weights' command
    "torchvision_v2_resnet50": {
        "data.policy": "trivial_augment_wide",
        "data.repeats": 4,
        "data.image_size": 224,
        "data.eval_resize": 232,
        "curriculum.image_size": [176],
        "augment.mixup_alpha": 0.2,
        "augment.cutmix_alpha": 1.0,
        "augment.mix_prob": 1.0,
        "augment.cutmix_share": 0.5,
        "augment.erase_prob": 0.1,
        "augment.erase_area": [0.02, 0.33],
        "augment.erase_aspect": [0.3, 3.3],
        "augment.erase_mode": "zero",
        "optim.momentum": 0.9,
        "optim.weight_decay": 2e-5,
        "optim.decay_norm_and_bias": False,
        "optim.label_smoothing": 0.1,
        "optim.ema_every": 32,
        "schedule.shape": "cosine",
        "schedule.warmup_start_factor": 0.01,
        "schedule.end_factor": 0,
    },
    # arXiv 2110.00476, Table 2
    "rsb_a1_resnet50": {
        "model.drop_path": 0.05,
        "data.image_size": 224,
        "data.interpolation": "bicubic",
        "data.policy": "rand_augment",
        "data.policy_magnitude": 7,
        "data.policy_magnitude_std": 0.5,
        "data.policy_increasing": True,
        "data.repeats": 3,
        "augment.mixup_alpha": 0.2,
        "augment.cutmix_alpha": 1.0,
        "optim.optimizer": "lamb",
        "optim.weight_decay": 0.01,
        "optim.decay_norm_and_bias": False,
        "optim.loss": "bce",
        "optim.label_smoothing": 0.1,
        "schedule.shape": "cosine",
    },
    "rsb_a2_resnet50": {
        "data.interpolation": "bicubic",
        "model.drop_path": 0.05,
        "data.policy_magnitude": 7,
        "data.repeats": 3,
        "augment.mixup_alpha": 0.1,
        "optim.weight_decay": 0.02,
        "optim.loss": "bce",
        "optim.label_smoothing": 0,
    },
    "rsb_a3_resnet50": {
        "data.interpolation": "bicubic",
        "model.drop_path": 0,
        "data.image_size": 224,
        "curriculum.image_size": [160],
        "data.policy_magnitude": 6,
        "data.repeats": 1,
        "augment.mixup_alpha": 0.1,
        "optim.weight_decay": 0.02,
        "optim.loss": "bce",
        "optim.label_smoothing": 0,
    },
    # rn50_88_epochs.yaml and train_imagenet.py
    "ffcv88_resnet50": {
        "model.blur_pool": True,
        "data.image_size": 256,
        "optim.momentum": 0.9,
        "optim.weight_decay": 1e-4,
        "optim.decay_norm_and_bias": False,
        "optim.label_smoothing": 0.1,
        "schedule.shape": "linear",
        "schedule.warmup_start_factor": 1e-4,
        "schedule.end_factor": 0,
    },
    "ffcv88_resnet18": {"optim.weight_decay": 5e-5, "optim.label_smoothing": 0.1, "model.blur_pool": True},
    # resnet50_mild.yaml
    "mosaic_mild_resnet50": {
        "model.blur_pool": True,
        "model.prior_bias": True,
        "data.image_size": 224,
        "data.eval_resize": 232,
        "optim.momentum": 0.875,
        "optim.decay_norm_and_bias": True,
        "optim.loss": "bce_sum",
        "optim.label_smoothing": 0.08,
        "optim.ema_every": 20,
        "schedule.shape": "cosine",
    },
    # config_DGXH100.sh, run_and_time.sh, fit.py
    "mlperf_lars_resnet50": {
        "data.scale": [0.05, 1.0],
        "optim.optimizer": "lars",
        "optim.momentum": 0.9,
        "optim.momentum_form": "torch",
        "optim.weight_decay": 5e-5,
        "optim.trust_coefficient": 0.001,
        "optim.eps": 0,
        "optim.label_smoothing": 0.1,
        "schedule.shape": "poly",
        "schedule.power": 2,
    },
    # the log's Namespace; train_imagenet.py for Nesterov, jitter and lighting
    "bag_of_tricks_resnet50d": {
        "model.zero_init_last": True,
        "augment.color_jitter": 0.4,
        "augment.lighting": 0.1,
        "augment.mixup_alpha": 0.2,
        "augment.cutmix_alpha": 0,
        "optim.nesterov": True,
        "optim.weight_decay": 1e-4,
        "optim.decay_norm_and_bias": False,
        "optim.label_smoothing": 0.1,
        "schedule.shape": "cosine",
    },
    # microsoft/robust-models-transfer
    "finetune_resnet50": {
        "optim.weight_decay": 5e-4,
        "optim.decay_norm_and_bias": True,
        "schedule.milestones": [50, 100],
        "schedule.gamma": 0.1,
    },
}

PARAMETERS = {  # tests/resnet_core/models holds all of them; here: a recipe names the network that it is about
    "paper_resnet18": 11_689_512 - (128 * 64 + 256 * 128 + 512 * 256) - 2 * (128 + 256 + 512),  # without projections
    "paper_resnet152": 60_192_808,
    "cifar10_resnet1202": 19_421_274,
    "bag_of_tricks_resnet50d": 25_576_264,
    "ffcv88_resnet50": 25_557_032,
}


def schedule_of(recipe: Recipe, samples: int = IMAGENET) -> LrSchedule:
    return LrSchedule.build(recipe.schedule, recipe.optim, samples)


def test_every_shipped_recipe_is_held_to_its_source() -> None:
    assert sorted(DERIVED) == SHIPPED


@pytest.mark.parametrize("name", DERIVED)
def test_a_recipe_comes_to_the_published_run(name: str) -> None:
    recipe, run = load_recipe(name), DERIVED[name]
    schedule = schedule_of(recipe, run.samples)
    assert (recipe.optim.global_batch_size, schedule.total_steps, schedule.warmup_steps) == (
        run.batch,
        run.steps,
        run.warm,
    )
    assert schedule.peak_lr == pytest.approx(run.peak, rel=1e-12)
    assert run.steps * run.batch / run.samples == pytest.approx(run.epochs, abs=0.01)


@pytest.mark.parametrize("name", OWN_STEPS)
def test_steps_are_the_sources_but_for_the_tails_of_epochs(name: str) -> None:
    assert DERIVED[name].steps == pytest.approx(OWN_STEPS[name], rel=3e-3)


@pytest.mark.parametrize("name", STATED)
def test_a_recipe_has_the_hyper_parameters_that_its_source_states(name: str) -> None:
    flat = load_recipe(name).flat()
    assert {key: flat[key] for key in STATED[name]} == STATED[name]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_fits_together(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.optim.global_batch_size % max(1, recipe.run.workers[1]) == 0
    recipe.phases(DERIVED[name].samples)  # the curriculum fits the schedule
    with torch.device("meta"):
        model = build_model(replace(recipe.model, num_classes=recipe.model.num_classes or 10))
    if name in PARAMETERS:
        assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "start_ramp", "end_ramp"),
    [
        ("ffcv16_resnet50", 11, 13),
        ("ffcv32_resnet18", 23, 27),
        ("ffcv88_resnet50", 65, 76),
        ("ffcv88_resnet18", 65, 76),
    ],
)
def test_ffcv_trains_each_epoch_at_the_size_of_their_rule(name: str, start_ramp: int, end_ramp: int) -> None:
    """train_imagenet.py, get_resolution: straight from 160 to 192 between the two epochs, to the nearest 32."""
    recipe = load_recipe(name)
    phases = recipe.phases(IMAGENET)
    for epoch in range(int(recipe.schedule.length)):
        share = min(1.0, max(0.0, (epoch - start_ramp) / (end_ramp - start_ramp)))
        middle = (epoch + 0.5) * IMAGENET / recipe.optim.global_batch_size
        size = [phase.image_size for phase in phases if phase.first_step <= middle][-1]
        assert size == 32 * round((160 + 32 * share) / 32), epoch


def test_mosaic_trains_at_the_size_of_their_rule() -> None:
    """Composer, ProgressiveResizing: half until 40 %, whole from 80 %, to the nearest multiple of 4 in between."""
    recipe = load_recipe("mosaic_mild_resnet50")
    steps, phases = schedule_of(recipe).total_steps, recipe.phases(IMAGENET)
    for phase, following in pairwise(phases):
        for step in (phase.first_step + 2, following.first_step - 2):  # the recipe rounds to a thousandth epoch
            elapsed = step / steps
            scale = 0.5 + 0.5 * min(1.0, max(0.0, (elapsed - 0.4) / 0.4))
            assert phase.image_size == 4 * round(176 * scale / 4), step
    assert phases[-1].image_size == 176 and phases[-1].first_step / steps < 0.8


def test_averages_keep_what_their_sources_keep() -> None:
    torchvision = load_recipe("torchvision_v2_resnet50").optim.ema_decay
    assert torchvision == pytest.approx(1 - (1 - 0.99998) * 1024 * 32 / 600, abs=1e-9)  # train.py, `adjust`
    assert load_recipe("mosaic_mild_resnet50").optim.ema_decay ** (100 / 20) == pytest.approx(0.5)  # half_life: 100ba


def test_mosaics_decoupled_decay_is_nvidias_coupled_one() -> None:
    """p *= 1 - lr / 2.048 * 5e-4 per step; coupled, momentum adds up 1 / (1 - 0.875) gradients of the decay."""
    optim = load_recipe("mosaic_mild_resnet50").optim
    assert optim.weight_decay / (1 - optim.momentum) == pytest.approx(5e-4 / 2.048) and optim.weight_decay == 1 / 32768


@pytest.mark.parametrize(
    ("name", "epoch", "rate"),
    [
        ("bag_of_tricks_resnet50d", 49 / 1251.14, 0.003133),  # the log's first line: batch 49 of 1,251
        ("bag_of_tricks_resnet50d", 102.5, 0.2),  # half of the cosine's way
        ("ffcv16_resnet50", 1, 1.7 * (1 + 1e-4) / 2),  # np.interp(1, [0, 2, 16], [1.7e-4, 1.7, 0])
        ("ffcv16_resnet50", 9, 1.7 / 2),
        ("mlperf_lars_resnet50", 19.5, 1e-4 + (11 - 1e-4) / 4),  # fit.py, PolySchedule, half way: (1/2)^2
        ("torchvision_v1_resnet50", 45, 0.01),
        ("torchvision_v2_resnet50", 2.5, 0.5 * (0.01 + 1) / 2),
        ("torchvision_v2_resnet50", 302.5, 0.25),
        ("rsb_a1_resnet50", 302.5, (0.005 + 1e-6) / 2),
        ("rsb_a3_resnet50", 52.5, (0.008 + 1e-6) / 2),
        ("finetune_resnet50", 149, 1e-4),
    ],
)
def test_the_rate_on_the_way_is_the_sources(name: str, epoch: float, rate: float) -> None:
    recipe, samples = load_recipe(name), DERIVED[name].samples
    step = round(epoch * samples / recipe.optim.global_batch_size)
    assert schedule_of(recipe, samples)(step) == pytest.approx(rate, rel=2e-3)  # whole steps


def test_warmups_and_plateaus_of_the_paper_wait_for_what_they_are_told() -> None:
    """Section 4.2: 0.01 until the training error is below 80 %; Section 3.4: a tenth when the error stalls."""
    deep = schedule_of(load_recipe("cifar10_resnet110"), CIFAR10)
    assert deep(500) == pytest.approx(0.01)
    assert deep(500, deep.react([(400, {"train/accuracy": 0.21})])) == pytest.approx(0.1)
    plateau = schedule_of(load_recipe("paper_resnet50"))
    stalled = plateau.react([(5_004 * epoch, {"test/accuracy": 0.5}) for epoch in range(1, 8)])
    assert plateau(36_000, stalled) == pytest.approx(0.01)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_table_in_the_docs_has_the_derived_figures(name: str) -> None:
    run, rows = DERIVED[name], [line for line in DOCS.read_text().splitlines() if line.startswith(f"| `{name}` ")]
    assert len(rows) == 1
    steps, peak, warm = (cell.strip() for cell in rows[0].strip("|").split("|")[-3:])
    told = (int(steps.replace(",", "")), float(peak), int(warm.split()[0].replace(",", "")))
    assert told == (run.steps, pytest.approx(run.peak), run.warm)
