"""Evaluation: exact metrics, test-time crops, and responses and gradients by depth.

exact.py          exact sums over batches and ranks; confusions of classes
views.py          10-crop, fully convolutional testing at several scales, flips, ensembles
diagnostics.py    the paper's Figure 7, and gradient norms by depth
"""

from resnet_core.evaluation.exact import EvalBatch, EvalSums, Mistakes, evaluate

__all__ = ["EvalBatch", "EvalSums", "Mistakes", "evaluate"]
