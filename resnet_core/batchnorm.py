"""BatchNorm over the images of all workers, and exact statistics that are recomputed after training.

Shapes: B images, H and W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_core.distributed import sum_over_ranks_
from resnet_core.models import frozen_modules
from resnet_core.step import StepConfig, eval_step


def synchronize(model: nn.Module, world_size: int) -> nn.Module:
    """Return the model with BatchNorms that take their statistics over all ranks; one rank needs no change.

    Raises:
        ValueError: the model is on a CPU, for which torch has no such layer.
    """
    if world_size == 1:
        return model
    if not all(parameter.is_cuda for parameter in model.parameters()):
        raise ValueError(
            "optim.sync_batch_norm must be false on CPU workers: torch synchronizes BatchNorm on GPUs only"
        )
    synchronized: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return synchronized


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, batches: Iterable[Tensor], config: StepConfig) -> None:
    """Replace the moving averages of every BatchNorm by the exact statistics over `batches`, uint8 B x H x W x C.

    Frozen layers keep theirs. Each batch is normalized by its own statistics, as in training; everything else is as in
    evaluation. The layer gets the mean and the unbiased variance over the positions of all batches of all ranks. Every
    rank must call this. The paper's release has such statistics (KaimingHe/deep-residual-networks: "strictly computed
    using average (not moving average) on a sufficiently large training batch after the training").

    Raises:
        ValueError: no rank has a batch.
    """
    frozen = frozen_modules(model)
    trained = [module for module in model.modules() if module not in frozen]
    norms = [norm for norm in trained if isinstance(norm, _BatchNorm) and norm.track_running_stats]
    pools = [_Pool(norm) for norm in norms]
    hooks = [norm.register_forward_pre_hook(pool.take) for norm, pool in zip(norms, pools, strict=True)]
    was_training = model.training
    model.eval()
    try:
        # a compiled model would have the hooks compiled in
        with torch.compiler.set_stance("force_eager"):
            for images_BHWC in batches:
                eval_step(model, images_BHWC, config)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    for pool in pools:
        pool.apply()


class _Pool:
    """Sums over the positions of all batches, per channel, in float64."""

    def __init__(self, norm: _BatchNorm) -> None:
        assert norm.running_mean is not None and norm.running_var is not None
        self._mean_C, self._var_C = norm.running_mean, norm.running_var
        self._sums = torch.zeros(3, norm.num_features, dtype=torch.float64, device=self._mean_C.device)

    def take(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Add a batch to the sums, and set the layer (in eval mode) to normalize by this batch's statistics."""
        (values,) = inputs
        others = [dim for dim in range(values.ndim) if dim != 1]
        var_C, mean_C = torch.var_mean(values.float(), others, correction=0)
        self._mean_C.copy_(mean_C)
        self._var_C.copy_(var_C)
        positions = values.numel() // values.shape[1]
        mean_C, var_C = mean_C.double(), var_C.double()
        self._sums += positions * torch.stack([torch.ones_like(mean_C), mean_C, var_C + mean_C.square()])

    def apply(self) -> None:
        """Set the layer's statistics to those of all batches of all ranks."""
        count_C, total_C, squares_C = sum_over_ranks_(self._sums).unbind()
        if not count_C[0] > 1:
            raise ValueError("BatchNorm's statistics cannot be recomputed: no worker has an image")
        mean_C = total_C / count_C
        self._mean_C.copy_(mean_C)
        self._var_C.copy_((squares_C / count_C - mean_C.square()) * count_C / (count_C - 1))
