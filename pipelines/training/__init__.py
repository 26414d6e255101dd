"""A training run: the driver, the workers of Ray Train, their stream of data, messages and checkpoints."""

WORKER_MODULES = (
    "ray.train.torch",
    "ray.train.v2.api.data_parallel_trainer",
    "pipelines.training.trainer",
    "ray.tune",
    "torch.distributed",
    "torch._dynamo",  # the first step of an optimizer imports it
)
"""Modules that the processes of a run import; `infra.cluster.connect` takes them."""
