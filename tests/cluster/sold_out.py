"""Ray's fake provider on a day on which there is no spot instance to be had."""

from __future__ import annotations

import threading
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE


class SoldOut(FakeMultiNodeProvider):  # type: ignore[misc]  # without stubs
    """Answers as EC2 does when it has no spot instance."""

    def create_node_with_resources_and_labels(self, config: Any, tags: dict[str, str], *rest: Any) -> Any:
        if tags[TAG_RAY_USER_NODE_TYPE] == "gpu-worker":
            raise NodeLaunchException("InsufficientInstanceCapacity", "there is no spot capacity", None)
        return super().create_node_with_resources_and_labels(config, tags, *rest)


class OneLeft(FakeMultiNodeProvider):  # type: ignore[misc]  # without stubs
    """Answers as EC2 does to `MinCount: 1` when it has one spot instance: with one of many, then with a refusal."""

    counting, left = threading.Lock(), 1

    def create_node_with_resources_and_labels(self, config: Any, tags: dict[str, str], count: int, *rest: Any) -> Any:
        if tags[TAG_RAY_USER_NODE_TYPE] == "gpu-worker":
            with self.counting:
                count, OneLeft.left = min(count, self.left), max(0, self.left - count)
            if not count:
                raise NodeLaunchException("InsufficientInstanceCapacity", "there is no spot capacity", None)
        return super().create_node_with_resources_and_labels(config, tags, count, *rest)
