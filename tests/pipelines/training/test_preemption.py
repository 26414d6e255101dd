"""Leaving before the last step: the ranks agree, a signal asks once, and the state that is saved is the one reached."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from pipelines.training.preemption import StopReason, StopVote, stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_does_what_it_did_before(
    number: signal.Signals,
) -> None:
    asked, seconds = threading.Event(), []
    before = signal.signal(number, lambda *_: seconds.append(number))

    def stop() -> bool:
        asked.set()
        return True

    try:
        mine = signal.getsignal(number)
        with stop_on_signals(stop) as came:
            assert not came.is_set()
            os.kill(os.getpid(), number)
            assert asked.wait(5)
            assert came.is_set()
            assert seconds == []
            os.kill(os.getpid(), number)
            assert seconds == [number]
        assert signal.getsignal(number) is mine
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_where_nothing_is_to_be_committed_the_block_is_left_at_once(number: signal.Signals) -> None:
    before = signal.signal(number, signal.default_int_handler)  # a shell has what it starts in the background ignore it
    try:
        with pytest.raises(KeyboardInterrupt), stop_on_signals(lambda: False):
            os.kill(os.getpid(), number)
            threading.Event().wait(60)
    finally:
        signal.signal(number, before)


def test_nothing_is_asked_where_nobody_sent_a_signal() -> None:
    asked: list[bool] = []

    def stop() -> bool:
        asked.append(True)
        return True

    with stop_on_signals(stop) as came:
        pass
    time.sleep(0.1)
    assert asked == []
    assert not came.is_set()


def test_a_thread_beside_the_main_one_leaves_signals_alone() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def inside() -> None:
        with stop_on_signals(lambda: True):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize("told", [False, True])
def test_a_worker_hears_of_a_stop_with_the_answer_to_its_message(ray_local: None, told: bool) -> None:
    import ray

    leaving = StopVote()
    assert leaving(1) is False
    reply = ray.put(told)
    leaving.receive(reply)
    assert leaving(2) is told
    assert leaving.cause == (StopReason.STOPPED if told else StopReason.NONE)


def test_the_mailbox_answers_whether_somebody_stops_the_run(ray_local: None) -> None:
    import ray

    from pipelines.training.messages import Event, MessageQueue

    mailbox = MessageQueue.remote()
    assert ray.get(mailbox.put.remote(Event(text="one"))) is False
    assert ray.get(mailbox.stop.remote()) is False, "no step is under way yet"
    assert ray.get(mailbox.put.remote(Event(text="two", training=True))) is True
    assert ray.get(mailbox.stop.remote()) is True
    assert ray.get(mailbox.put.remote(Event(text="three", training=False))) is True
    assert ray.get(mailbox.stop.remote()) is False
    assert [message.text for message in ray.get(mailbox.take.remote())] == ["one", "two", "three"]
