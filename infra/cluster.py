"""Connecting to Ray: the cluster that RAY_ADDRESS or a Ray job names, or a local one started for this process."""

from __future__ import annotations

import os
from pathlib import Path

from infra.errors import UserError

# Ray's own start takes every core it finds; data tasks need some beside the workers even on the smallest machine.
_LEAST_LOCAL_CPUS = 4
# What a Ray that ends with this command need not watch: no dashboard reads it, no cloud takes its node away. On two
# cores it all comes off the training (docs/results.md, overhead).
_UNWATCHED = {
    "RAY_task_events_report_interval_ms": "0",
    "RAY_metrics_report_interval_ms": "60000",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "30000",
}
_ROOT = str(Path(__file__).resolve().parents[1])


def connect(*, min_cpus: int, gpus: int = 0, settings: str = "run.num_workers or run.cpus_per_worker") -> None:
    """Join or start Ray and check that it is large enough.

    Args:
        min_cpus: logical CPUs that the caller is going to hold at once.
        gpus: GPUs likewise.
        settings: what the user can lower, if that is too much.

    Raises:
        UserError: no cluster at RAY_ADDRESS, or too small a one; a cluster that scales itself up is not refused.
    """
    # a thread that still reads from a Ray that has been left must not start another one
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    import ray

    if not ray.is_initialized():
        _start(ray)
    have = ray.cluster_resources()
    for kind, needed in (("CPU", min_cpus), ("GPU", gpus)):
        present = int(have.get(kind, 0))
        if present < needed and not _scales():
            ray.shutdown()
            raise UserError(
                f"the run needs {needed} {kind}s at once and the cluster has {present}: "
                f"lower {settings}, or join a larger cluster by RAY_ADDRESS"
            )


def _start(ray) -> None:  # type: ignore[no-untyped-def]
    # Ray's processes import this checkout, whatever folder the command was given in.
    paths = [_ROOT, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(logging_level="ERROR", log_to_driver=False, runtime_env=_code())
        else:
            cpus = max(_LEAST_LOCAL_CPUS, os.cpu_count() or 1)
            for name, value in _UNWATCHED.items():
                os.environ.setdefault(name, value)
            ray.init(
                address="local", num_cpus=cpus, include_dashboard=False, logging_level="ERROR", log_to_driver=False
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"no Ray cluster at {address or 'this machine'}: {error}") from error


def in_job() -> bool:
    """Whether this process is the entry point of a Ray job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _code() -> dict[str, object] | None:
    """A job's working directory is on its cluster already; a driver that joins by itself brings its path along."""
    return None if in_job() else {"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}}


def _scales() -> bool:
    """Whether an autoscaler is at work, so that the nodes that are missing may yet come."""
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_initialized

    return bool(_internal_kv_initialized() and _internal_kv_get(b"__autoscaling_config"))
