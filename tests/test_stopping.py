"""From a signal, or Ray's notice, to what a training is asked."""

import os
import signal
import threading
from typing import Any

import pytest
import ray.train
from ray.train import PreemptionInfo

from pipelines.stopping import ASK_EVERY, RaySignals, run_until_stopped


class Flag:
    """As StopFlag, within this process."""

    def __init__(self) -> None:
        self.raised = threading.Event()

    def raise_(self) -> None:
        self.raised.set()

    def watch(self) -> threading.Event:
        return self.raised


def test_work_that_is_done_is_not_stopped() -> None:
    assert run_until_stopped(lambda: 5, Flag(), print) == (5, False)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_work_ends_by_itself(signal_number: int) -> None:
    flag, said = Flag(), list[str]()

    def work() -> str:
        os.kill(os.getpid(), signal_number)
        assert flag.raised.wait(30)
        return "a checkpoint"

    before = signal.getsignal(signal_number)
    assert run_until_stopped(work, flag, said.append) == ("a checkpoint", True)
    assert said == ["stopping: a checkpoint is being written; Ctrl-C again leaves at once"]
    assert signal.getsignal(signal_number) is before


def test_the_second_signal_leaves_at_once() -> None:
    flag, never = Flag(), threading.Event()

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert flag.raised.wait(30)
        os.kill(os.getpid(), signal.SIGINT)
        never.wait(60)

    with pytest.raises(KeyboardInterrupt):
        run_until_stopped(work, flag, lambda _: None)
    never.set()


def test_a_scheduler_and_a_parent_that_both_ask_ask_once() -> None:
    """`ray job stop` sends SIGTERM to every process of a job, and what runs DVC passes it on to a stage as SIGINT."""
    flag = Flag()

    def work() -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag.raised.wait(30)
        os.kill(os.getpid(), signal.SIGINT)
        return "a checkpoint"

    assert run_until_stopped(work, flag, lambda _: None) == ("a checkpoint", True)


def test_what_the_work_raises_is_raised() -> None:
    def work() -> None:
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        run_until_stopped(work, Flag(), print)


def test_a_notice_that_a_node_goes_away_asks_for_one_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another deadline is another notice. Ray's own drain of a node cannot be had in a test of seconds."""
    notices: list[Any] = [None, PreemptionInfo(1000, {}), PreemptionInfo(1000, {}), None, PreemptionInfo(9000, {})]
    asked = iter(notices)
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: next(asked))
    signals = RaySignals(Flag())  # type: ignore[arg-type]
    answers = [signals.save() for _ in range(ASK_EVERY * len(notices))]
    expected = [False, True, False, False, True]
    assert answers == [answer for last in expected for answer in [False] * (ASK_EVERY - 1) + [last]]
    assert not signals.leave()
