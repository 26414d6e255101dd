"""The pipelines: the only place that joins Ray, the core and the infrastructure; one file per verb."""
