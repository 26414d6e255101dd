"""Scores of models on a whole split: accuracy with intervals, predictions for every image, comparisons."""
