"""Predictions for images without labels, at scale: computed through Ray Data, written as Parquet."""
