"""The model of images per second: what it must do whatever its constants, and one published machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.scaling import GPU_NODE, IMAGENET_JOB
from pipelines.estimate.scaling import Job, Node, expected_maximum, images_per_second, step_seconds

NODE = Node(device_images_per_s=1000, decode_cores=4, decode_images_per_core_s=100, network_bytes_per_s=1e9)
JOB = Job(images_per_gpu_step=100, stored_bytes=1e5, decoded_bytes=1.5e5, gradient_bytes=1e8, overlapped=0.5)


def test_the_slowest_stage_sets_the_rate():
    assert images_per_second(NODE, 1, JOB) == (400, "decode")
    assert images_per_second(replace(NODE, decode_cores=20), 1, JOB) == (1000, "device")
    assert images_per_second(replace(NODE, storage_bytes_per_s=2e7), 1, JOB) == (200, "storage")
    assert images_per_second(replace(NODE, store_bytes_per_s=1.5e7), 1, JOB) == (100, "object store")


def test_more_nodes_do_not_make_the_one_coordinator_faster():
    job = replace(JOB, blocks_per_s=10, block_images=50)
    assert images_per_second(NODE, 1, job) == (400, "decode")
    assert images_per_second(NODE, 2, job) == images_per_second(NODE, 100, job) == (500, "coordinator")


def test_a_node_that_decodes_on_the_cores_that_train_does_one_or_the_other():
    assert images_per_second(replace(NODE, shared_cores=True), 1, JOB) == (
        pytest.approx(1 / (1 / 400 + 1 / 1000)),
        "device",
    )


def test_what_the_head_takes_of_a_nodes_cores_is_gone():
    shared = replace(NODE, shared_cores=True)
    rate = images_per_second(shared, 2, JOB)[0]
    assert images_per_second(replace(shared, free_share=0.8), 2, JOB)[0] == pytest.approx(0.8 * rate)


def test_a_step_waits_for_what_of_the_all_reduce_does_not_fit_beside_it():
    assert step_seconds(NODE, 1, JOB) == pytest.approx(0.1)
    # two nodes send each half of the gradients twice: 0.1 s, of which 0.05 s fit beside the backward pass
    assert step_seconds(NODE, 2, JOB) == pytest.approx(0.15)
    assert step_seconds(replace(NODE, network_bytes_per_s=1e10), 2, JOB) == pytest.approx(0.1)


@pytest.mark.parametrize(("ranks", "published"), [(1, 0.0), (2, 0.5642), (8, 1.4236), (64, 2.3505)])
def test_the_slowest_of_many_ranks(ranks: int, published: float):
    """Expected largest of n standard normal variables."""
    assert expected_maximum(ranks) == pytest.approx(published, abs=0.05)


def test_eight_gpus_as_lambda_published_them():
    """H100 SXM, ResNet-50 in half precision: 2,790 images/s on one, 7.9 times as many on eight."""
    rate, stage = images_per_second(GPU_NODE, 1, IMAGENET_JOB)
    assert stage == "device"
    assert rate == pytest.approx(7.9 * 2790, rel=0.15)
