"""Scores of models on a whole split: accuracy with intervals, predictions for every image, comparisons."""

TASK_MODULES = ("torch", "pipelines.evaluation.scoring")
"""Modules that the tasks of an evaluation import; `infra.cluster.connect` takes them."""
