"""The model registry in MLflow: versions, exported programs, the gate, the log of champions."""
