"""Private names of Ray Tune: trials with ids from a search algorithm, and the environment of actors."""

from __future__ import annotations

from typing import Any

from ray.tune.execution import class_cache
from ray.tune.experiment.config_parser import _create_trial_from_spec, _make_parser

_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")


def create_trial(spec: dict[str, Any], values: dict[str, Any], trial_id: str) -> Any:
    """Return Tune's trial of an experiment's `spec` with the given values and id."""
    return _create_trial_from_spec(spec, _make_parser(), evaluated_params=values, trial_id=trial_id)


def keep_secrets_out_of_actors() -> None:
    """Stop Tune from copying S3 keys into its actors' runtime_env, which Ray shows in logs and on its dashboard.

    Trials read the keys from the environment of the process that runs them.
    """
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(_SECRETS)
