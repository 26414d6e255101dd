"""Deep residual learning in torch: models, schedules, the step, the loop and exact evaluation; no Ray, no I/O."""
