"""What the application counts beside Ray Serve's own metrics; Ray exports both for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray.serve.metrics import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from infra.registry import Version

_SECONDS = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
_IMAGES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]


class Metrics:
    """Of one replica; Ray Serve adds the tags deployment, replica and application."""

    def __init__(self, version: Version) -> None:
        self._images = Counter("resnet_ray_images", "Images that were classified.", ("version",))
        self._refused = Counter("resnet_ray_refused_requests", "Requests without an answer.", ("status",))
        self._seconds = Histogram("resnet_ray_request_seconds", "From request to answer.", _SECONDS)
        self._batch = Histogram("resnet_ray_batch_images", "Images that went through the model at once.", _IMAGES)
        self._version = Gauge("resnet_ray_model_version", "Number of the version that answers.", ("model",))
        self._failed = Counter("resnet_ray_reload_failures", "Versions that could not take over.")
        self.serving(version)

    def answered(self, version: Version, images: int, seconds: float) -> None:
        """A request has its answer."""
        self._images.inc(images, {"version": str(version.number)})
        self._seconds.observe(seconds)

    def refused(self, status: int) -> None:
        """A request has none, for this HTTP status."""
        self._refused.inc(1, {"status": str(status)})

    def batch(self, images: int) -> None:
        """That many images went through the model at once."""
        self._batch.observe(images)

    def serving(self, version: Version) -> None:
        """This version answers from now on."""
        self._version.set(version.number, {"model": version.name})

    def reload_failed(self) -> None:
        """Another version should answer and cannot."""
        self._failed.inc()
