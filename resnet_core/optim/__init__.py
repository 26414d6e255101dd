"""Updates of the weights: optimizers, sharpness-aware steps, averages of weights; all state has names.

optimizer.py    a recipe's optimizer, its groups and its named state; sharpness-aware steps.
momentum.py     SGD with momentum in both its forms.
layerwise.py    LARS and LAMB, on the same groups.
averaging.py    exponential and equal averages of the weights.
scaling.py      a scaled loss, for fp16.
"""

from resnet_core.optim.optimizer import add_new_parameters, build_optimizer, fill_state, param_groups, state_tensors

__all__ = ["add_new_parameters", "build_optimizer", "fill_state", "param_groups", "state_tensors"]
