"""What changes the weights: optimizers with all their state by name, sharpness-aware steps, averages of weights.

optimizer.py    a recipe's optimizer: which parameters decay, what joins later, its state as named tensors
momentum.py     SGD with momentum in both its forms; lars.py, lamb.py are built on the same groups
sam.py          sharpness-aware minimization, around any of them
averaging.py    exponential and equal averages of the weights
scaling.py      a scaled loss, for fp16
"""

from resnet_core.optim.optimizer import add_new_parameters, build_optimizer, fill_state, param_groups, state_tensors

__all__ = ["add_new_parameters", "build_optimizer", "fill_state", "param_groups", "state_tensors"]
