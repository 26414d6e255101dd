"""What the pipelines take from Ray Tune's private parts is there, and does what they need."""

from __future__ import annotations

import pytest
from ray.tune import register_trainable
from ray.tune.execution import class_cache

from pipelines.ray_internals.tune import create_trial, keep_secrets_out_of_actors


def test_a_trial_has_the_values_and_the_id_that_it_was_given() -> None:
    register_trainable("nothing", lambda config: None)
    trial = create_trial({"run": "nothing", "config": {"lr": 0.1}}, {"lr": 0.1}, "study-007")
    assert (trial.trial_id, trial.config, trial.evaluated_params) == ("study-007", {"lr": 0.1}, {"lr": 0.1})


def test_no_s3_key_is_copied_into_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "PATH"}
    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", set(names))
    keep_secrets_out_of_actors()
    assert {"PATH"} == class_cache.ENV_VARS_TO_PROPAGATE
