"""Infrastructure of the pipelines: object storage, experiment tracking, model registry, cluster. Imports no model."""
