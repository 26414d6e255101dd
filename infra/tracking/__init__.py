"""Tracking of runs in MLflow: client, address, run, and the points of curves."""
