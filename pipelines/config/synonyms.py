"""Names of recipe keys in other frameworks: timm, torchvision, Lightning, Hugging Face, Keras, Ultralytics."""

from __future__ import annotations

_NAMES = {
    "model.name": "arch architecture backbone model network net model_name",
    "model.num_classes": "classes n_classes nb_classes nc",
    "model.init_from": "pretrained weights checkpoint ckpt pretrained_weights init initial_checkpoint finetune "
    "checkpoint_path pretrained_model",
    "model.new_head": "reset_head reset_classifier replace_head",
    "model.freeze": "freeze_at freeze_layers frozen_stages freeze_backbone trainable_backbone_layers freeze_encoder",
    "model.drop_path": "drop_path_rate stochastic_depth survival_prob",
    "model.dropout": "drop drop_rate dropout_rate",
    "model.activation": "act act_layer activation_function",
    "model.activation_checkpointing": "grad_checkpointing gradient_checkpointing",
    "prepare.holdout": "test_size test_fraction",
    "prepare.validation": "val_split validation_split val_fraction val_size",
    "data.uri": "dataset data data_dir data_path data_root root path train_dir dataset_path url",
    "data.image_size": "img_size imgsz input_size crop_size train_crop_size size resolution image_width",
    "data.eval_resize": "val_resize val_resize_size resize test_size_resize",
    "data.policy": "aa auto_augment autoaugment randaugment trivialaugment rand_augment auto_augment_policy",
    "data.scale": "random_resized_crop rrc_scale crop_scale",
    "data.repeats": "aug_repeats repeated_augmentation ra_reps",
    "data.interpolation": "train_interpolation",
    "augment.flip": "hflip fliplr horizontal_flip random_flip random_horizontal_flip",
    "augment.mixup_alpha": "mixup",
    "augment.cutmix_alpha": "cutmix",
    "augment.erase_prob": "reprob random_erase random_erasing erasing",
    "augment.color_jitter": "colour_jitter jitter",
    "augment.mean": "norm_mean image_mean",
    "augment.std": "norm_std image_std",
    "optim.global_batch_size": "batch_size batch bs batchsize train_batch_size per_device_train_batch_size "
    "mini_batch_size",
    "optim.lr_per_256": "lr learning_rate base_lr lr0 max_lr peak_lr initial_lr init_lr lr_base",
    "optim.head_lr_factor": "head_lr head_lr_mult lr_mult_head",
    "optim.layer_decay": "layer_wise_decay llrd layer_lr_decay layerwise_lr_decay discriminative_lr",
    "optim.head_first": "freeze_epochs unfreeze_epoch head_epochs freeze_until",
    "optim.optimizer": "opt optimiser algorithm",
    "optim.weight_decay": "wd decay l2 l2_regularization",
    "optim.label_smoothing": "smoothing label_smooth",
    "optim.clip_norm": "clip_grad grad_clip clip gradient_clip_val max_grad_norm gradient_clipping",
    "optim.ema_decay": "ema model_ema model_ema_decay",
    "optim.sync_batch_norm": "sync_bn sync_batchnorm syncbn",
    "optim.loss": "criterion loss_fn",
    "optim.beta1": "betas adam_beta1",
    "optim.eps": "opt_eps epsilon adam_epsilon",
    "schedule.length": "epochs num_epochs max_epochs n_epochs nb_epochs epoch num_train_epochs total_epochs steps "
    "max_steps num_steps total_steps iterations max_iters train_steps",
    "schedule.warmup": "warmup_epochs warmup_steps lr_warmup_epochs warmup_ratio warmup_length",
    "schedule.warmup_start_factor": "warmup_lr lr_warmup_decay warmup_factor",
    "schedule.shape": "scheduler lr_scheduler sched lr_schedule lr_scheduler_type schedule decay_type",
    "schedule.gamma": "lr_gamma decay_rate lr_decay",
    "schedule.milestones": "lr_steps decay_epochs lr_step_size step_size",
    "schedule.end_factor": "min_lr lrf eta_min lr_min final_lr",
    "schedule.early_stopping_patience": "early_stopping early_stop es_patience early_stopping_rounds stop_after",
    "schedule.early_stopping_metric": "monitor early_stopping_monitor metric_for_best_model",
    "schedule.early_stopping_min_delta": "min_delta early_stopping_threshold",
    "schedule.patience": "patience_epochs lr_patience",
    "compute.precision": "amp fp16 bf16 half mixed_precision dtype use_amp",
    "compute.compile": "torch_compile torchcompile",
    "compute.all_reduce": "comm_hook ddp_comm_hook bf16_compress fp16_allreduce gradient_compression",
    "compute.microbatch_size": "micro_batch_size grad_accum grad_accum_steps accumulate accumulate_grad_batches "
    "gradient_accumulation_steps",
    "compute.deterministic": "use_deterministic_algorithms",
    "compute.threads_per_worker": "num_threads threads",
    "run.num_workers": "workers gpus num_gpus n_gpus devices world_size nproc_per_node num_nodes n_workers",
    "run.use_gpu": "gpu cuda device accelerator use_cuda",
    "run.home": "output output_dir out out_dir outdir save_dir work_dir log_dir logdir default_root_dir runs_dir",
    "run.name": "exp_name run_name",
    "run.experiment": "project experiment_name",
    "run.register_as": "registered_model registered_model_name model_registry",
    "run.seed": "random_seed random_state manual_seed",
    "run.log_every_steps": "log_interval log_every print_freq log_freq logging_steps log_every_n_steps",
    "run.eval_every_epochs": "eval_every val_interval eval_interval eval_freq check_val_every_n_epoch",
    "run.checkpoint_every_steps": "checkpoint_every save_every save_freq save_steps save_interval save_period "
    "checkpoint_interval",
    "run.keep_best": "save_top_k checkpoint_hist save_total_limit",
    "run.max_failures": "max_restarts retries max_retries",
}
_STUDY_NAMES = {
    "budget.trials": "num_samples n_trials max_trials num_trials samples",
    "budget.reports": "max_t iterations evaluations",
    "budget.concurrent": "max_concurrent max_concurrent_trials parallel jobs n_jobs",
    "scheduler.name": "algorithm kind type",
    "scheduler.grace": "grace_period min_t",
    "scheduler.eta": "reduction_factor factor",
    "scheduler.interval": "perturbation_interval",
    "scheduler.quantile": "quantile_fraction",
    "scheduler.resample": "resample_probability",
    "searcher.name": "algorithm search_alg sampler kind type",
    "searcher.startup": "n_startup_trials n_initial_points",
    "space.choice": "values options categorical grid_search",
    "space.int_uniform": "randint quniform integer range",
}
_OURS = {other: key for key, others in _NAMES.items() for other in others.split()}


def our_key(name: str) -> str:
    """Return the recipe's key for another framework's name of it, "" if there is none."""
    return _OURS.get(name.lower().replace("-", "_"), "")


def our_study_key(table: str, name: str) -> str:
    """Return the key of a space's table for another framework's name of it, "" if there is none."""
    asked = name.lower().replace("-", "_")
    keys = (key for key in _STUDY_NAMES if key.startswith(f"{table}."))
    return next((key.partition(".")[2] for key in keys if asked in _STUDY_NAMES[key].split()), "")


def synonyms(key: str) -> list[str]:
    """Return the names of a key in other frameworks."""
    return _NAMES.get(key, "").split()
