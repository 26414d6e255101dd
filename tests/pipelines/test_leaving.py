"""Leaving before the last step: the ranks agree, SIGTERM asks once, and the state that is saved is the one reached."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from pipelines.leaving import Cause, Leaving, stop_on_sigterm


def test_the_first_sigterm_asks_and_the_handler_before_is_back() -> None:
    asked = threading.Event()
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_sigterm(asked.set):
        assert signal.getsignal(signal.SIGTERM) is not before
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.wait(5)
        assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGTERM) is before


def test_nothing_is_asked_where_nobody_sent_a_signal() -> None:
    asked = threading.Event()
    with stop_on_sigterm(asked.set):
        pass
    time.sleep(0.1)
    assert not asked.is_set()


def test_a_thread_beside_the_main_one_leaves_signals_alone() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def inside() -> None:
        with stop_on_sigterm(lambda: None):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize("told", [False, True])
def test_a_worker_hears_of_a_stop_with_the_answer_to_its_message(ray_local: None, told: bool) -> None:
    import ray
    import torch

    leaving = Leaving(torch.device("cpu"))
    assert leaving(1) is False
    reply = ray.put(told)
    leaving.hear(reply)
    assert leaving(2) is told
    assert leaving.cause == (Cause.STOPPED if told else Cause.NONE)


def test_the_mailbox_answers_whether_somebody_stops_the_run(ray_local: None) -> None:
    import ray

    from pipelines.mailbox import Event, Mailbox

    mailbox = Mailbox.remote()
    assert ray.get(mailbox.put.remote(Event(text="one"))) is False
    ray.get(mailbox.stop.remote())
    assert ray.get(mailbox.put.remote(Event(text="two"))) is True
    assert [message.text for message in ray.get(mailbox.take.remote())] == ["one", "two"]
