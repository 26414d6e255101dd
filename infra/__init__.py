"""What the pipelines stand on: object storage, experiment tracking, model registry, cluster. Knows no model."""
