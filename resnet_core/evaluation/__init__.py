"""Scores and what explains them: every image once, several views of one, responses and gradients by depth.

exact.py          exact sums over batches and ranks
pairs.py          which classes are taken for which, of many classes
views.py          10-crop, fully convolutional testing at several scales, flips, ensembles
diagnostics.py    the paper's Figure 7, and gradient norms by depth
"""

from resnet_core.evaluation.exact import EvalBatch, EvalSums, Mistakes, evaluate

__all__ = ["EvalBatch", "EvalSums", "Mistakes", "evaluate"]
