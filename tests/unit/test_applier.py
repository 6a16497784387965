"""What an applier guarantees: newest value, no blocking, retried until accepted, the truth about its state."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from pynet.apply.applier import Applier, one_line
from tenacity.wait import wait_base, wait_fixed

LONG = wait_fixed(60)
SHORT = wait_fixed(0.001)


class Target:
    """Something slow to apply values to: each call waits for a permit, then fails as told."""

    def __init__(self) -> None:
        self.started: queue.Queue[object] = queue.Queue()
        self.permits: queue.Queue[Exception | None] = queue.Queue()
        self.results: queue.Queue[tuple[str, str]] = queue.Queue()
        self.appliers: list[Applier[object]] = []

    def apply(self, value: object) -> None:
        self.started.put(value)
        outcome = self.permits.get(timeout=10)
        if outcome is not None:
            raise outcome

    def result(self, name: str, error: str) -> None:
        self.results.put((name, error))

    def applier(self, *, wait: wait_base = LONG, debounce: float = 0.0) -> Applier[object]:
        made: Applier[object] = Applier("it", self.apply, on_result=self.result, wait=wait, debounce=debounce)
        self.appliers.append(made)
        return made

    def allow(self, outcome: Exception | None = None) -> None:
        self.permits.put(outcome)

    def next_result(self) -> tuple[str, str]:
        return self.results.get(timeout=5)

    def next_started(self) -> object:
        return self.started.get(timeout=5)


@pytest.fixture
def target() -> Iterator[Target]:
    made = Target()
    yield made
    for applier in made.appliers:
        made.allow()
        made.allow()
        assert applier.stop(5)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_no_thread_before_the_first_value(target: Target) -> None:
    applier = target.applier()
    applier.retry()
    assert applier._thread is None
    assert (applier.ok, applier.error, applier.applied, applier.idle()) == (False, "", None, True)


def test_value_is_applied_and_reported(target: Target) -> None:
    applier = target.applier()
    target.allow()
    applier.submit("a")
    assert target.next_result() == ("it", "")
    assert (applier.ok, applier.error, applier.applied) == (True, "", "a")
    assert applier.settled("a")
    assert applier.idle()
    assert not applier.settled("b")


def test_none_is_a_value_like_any_other(target: Target) -> None:
    applier = target.applier()
    target.allow()
    assert not applier.settled(None)
    applier.submit(None)
    target.next_result()
    assert applier.settled(None)


def test_submit_does_not_wait_for_a_stuck_apply_and_only_the_newest_value_follows(target: Target) -> None:
    applier = target.applier()
    applier.submit(0)
    assert target.next_started() == 0
    began = time.monotonic()
    for value in range(1, 100):
        applier.submit(value)
    assert time.monotonic() - began < 0.5
    assert not applier.settled(99)
    assert not applier.idle()
    target.allow()
    target.allow()
    assert target.next_started() == 99
    until(lambda: applier.settled(99))
    assert target.started.empty()


def test_a_value_is_not_settled_while_a_newer_one_waits(target: Target) -> None:
    applier = target.applier()
    target.allow()
    applier.submit("a")
    target.next_result()
    applier.submit("b")
    target.next_started()
    target.next_started()
    assert applier.ok  # the last attempt that ended was fine
    assert not applier.settled("a")
    assert not applier.settled("b")


def test_same_value_again_neither_runs_nor_ends_a_pause(target: Target) -> None:
    applier = target.applier()
    target.allow(ValueError("no"))
    applier.submit(("a", 1))
    assert target.next_result() == ("it", "no")
    assert target.next_started() == ("a", 1)
    applier.submit(("a", 1))
    with pytest.raises(queue.Empty):
        target.started.get(timeout=0.05)


def test_newer_value_ends_a_pause(target: Target) -> None:
    applier = target.applier()
    target.allow(ValueError("no"))
    applier.submit("a")
    assert target.next_result() == ("it", "no")
    assert (applier.ok, applier.error, applier.applied, applier.idle()) == (False, "no", None, False)
    target.allow()
    applier.submit("b")
    assert target.next_result() == ("it", "")
    assert (applier.ok, applier.error, applier.applied) == (True, "", "b")


def test_retry_ends_a_pause_and_runs_an_accepted_value_again(target: Target) -> None:
    applier = target.applier()
    target.allow(ValueError("no"))
    applier.submit("a")
    target.next_result()
    target.allow()
    applier.retry()
    assert target.next_result() == ("it", "")
    target.allow()
    applier.retry()
    assert [target.next_started() for _ in range(3)] == ["a", "a", "a"]
    until(applier.idle)
    assert target.results.empty()  # ok before and after: nobody needs to be woken


def test_failed_value_is_repeated_until_accepted_and_each_state_told_once(target: Target) -> None:
    applier = target.applier(wait=SHORT)
    for outcome in (ValueError("one"), ValueError("one"), OSError(5, "two"), None):
        target.allow(outcome)
    applier.submit("a")
    assert [target.next_result()[1] for _ in range(3)] == ["one", "[Errno 5] two", ""]
    assert [target.next_started() for _ in range(4)] == ["a"] * 4
    assert target.results.empty()


def test_pauses_grow_until_something_is_accepted() -> None:
    attempts: list[int] = []

    class Recorded(wait_base):
        def __call__(self, retry_state: object) -> float:
            attempts.append(retry_state.attempt_number)  # type: ignore[attr-defined]
            return 0.0

    outcomes = iter([True, True, True, False, True, False])
    accepted = threading.Semaphore(0)

    def apply(_value: object) -> None:
        if next(outcomes):
            raise ValueError("no")
        accepted.release()

    applier: Applier[int] = Applier("it", apply, wait=Recorded())
    applier.submit(1)
    assert accepted.acquire(timeout=5)
    applier.submit(2)
    assert accepted.acquire(timeout=5)
    assert applier.stop(5)
    assert attempts == [1, 2, 3, 1]


def test_debounce_gathers_values_but_never_puts_them_off_for_longer() -> None:
    applied: list[tuple[int, float]] = []
    applier: Applier[int] = Applier("it", lambda value: applied.append((value, time.monotonic())), debounce=0.1)
    applier.submit(-1)
    until(lambda: applier.settled(-1))
    began = time.monotonic()
    value = 0
    while time.monotonic() < began + 0.35:  # a stream without a gap
        applier.submit(value := value + 1)
        time.sleep(0.002)
    until(lambda: applier.settled(value))
    assert applier.stop(5)
    gathered = applied[1:]
    assert 2 <= len(gathered) <= 5
    assert 0.09 <= gathered[0][1] - began <= 0.25


def test_first_value_of_all_is_not_debounced(target: Target) -> None:
    applier = target.applier(debounce=30)
    target.allow()
    applier.submit("a")
    assert target.next_result() == ("it", "")


def test_retry_is_not_debounced(target: Target) -> None:
    applier = target.applier(debounce=30)
    target.allow()
    applier.submit("a")
    target.next_result()
    applier.submit("b")
    target.allow()
    applier.retry()
    assert target.next_result() == ("it", "")
    assert applier.settled("b")


def test_stop_drops_what_waits_and_does_not_hang_on_a_stuck_apply(target: Target) -> None:
    applier = target.applier()
    applier.submit("a")
    target.next_started()
    applier.submit("b")
    began = time.monotonic()
    assert not applier.stop(0.05)
    assert time.monotonic() - began < 1
    target.allow()
    assert applier.stop(5)
    applier.submit("c")
    applier.retry()
    assert target.started.empty()


def test_stop_ends_pause_and_debounce_at_once(target: Target) -> None:
    pausing = target.applier()
    target.allow(ValueError("no"))
    pausing.submit("a")
    target.next_result()
    waiting = target.applier(debounce=30)
    target.allow()
    waiting.submit("a")
    target.next_result()
    waiting.submit("b")
    began = time.monotonic()
    assert pausing.stop(5)
    assert waiting.stop(5)
    assert time.monotonic() - began < 1
    assert waiting.applied == "a"


def test_stop_before_any_value() -> None:
    assert Applier("it", print).stop(0)


def test_error_is_one_line_of_bounded_length() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(ValueError()) == "ValueError"
    assert len(one_line(ValueError("x" * 10_000))) == 500
