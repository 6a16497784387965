"""One slow effect, one thread: the newest value wins, a failed one is tried again until it is accepted or replaced."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar, cast

from tenacity import RetryCallState, Retrying
from tenacity.wait import wait_base, wait_random_exponential

T = TypeVar("T")

BACK_OFF: Final = wait_random_exponential(multiplier=0.4, min=0.2, max=30)
"""Pauses between attempts, in seconds: random, at least 0.2, the upper end doubles from 0.4 to 30."""

_LONGEST_ERROR: Final = 500
_NONE: Final = object()  # no value: None may be one


def one_line(error: BaseException) -> str:
    """An exception's words in one line of at most 500 characters; its type's name if it has none."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= _LONGEST_ERROR else words[: _LONGEST_ERROR - 1] + "…"


class Applier(Generic[T]):
    """Runs ``apply(value)`` in a daemon thread of its own, for the newest value only.

    `submit` never blocks. A newer value replaces one that waits, and ends a pause. An attempt that raises is repeated after a
    pause (``wait``, a tenacity wait; it grows until something is accepted) until the value is accepted or replaced.
    ``debounce`` is in seconds: a value waits so long for newer ones, counted from the first, so that a stream of values is not
    put off for ever; the very first value and a `retry` do not wait.

    ``on_result(name, error)`` is called in that thread, and must not block or raise: when the state changes (ok, the error's
    words, or the value that was accepted). The thread starts with the first value, in the network namespace of whoever gave it.
    """

    def __init__(
        self,
        name: str,
        apply: Callable[[T], None],
        *,
        on_result: Callable[[str, str], None] | None = None,
        wait: wait_base = BACK_OFF,
        debounce: float = 0.0,
    ) -> None:
        self.name = name
        self._apply = apply
        self._on_result = on_result
        self._wait = wait
        self._debounce = debounce
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._busy = False
        self._due = False  # there is something to do: a value that was not yet tried, or a retry asked for
        self._not_before = 0.0  # the debounce of what is due
        self._wanted: object = _NONE
        self._accepted: object = _NONE
        self._ok = False
        self._error = ""

    @property
    def ok(self) -> bool:
        """Whether the last attempt was accepted; False before the first."""
        return self._ok

    @property
    def error(self) -> str:
        """Why the last attempt failed, in one line; "" if it did not."""
        return self._error

    @property
    def applied(self) -> T | None:
        """The value accepted last; None if there was none yet."""
        value = self._accepted
        return None if value is _NONE else cast("T", value)

    def submit(self, value: T) -> None:
        """Have ``value`` applied. The same value as last time changes nothing: it neither runs again nor ends a pause."""
        with self._changed:
            if self._wanted is not _NONE and self._wanted == value:
                return
            first = self._accepted is _NONE
            self._wanted = value
            self._wake(0.0 if first else self._debounce)

    def retry(self, delay: float = 0.0) -> None:
        """Apply the last value again, also if it was accepted before; nothing happens if there never was one.

        It begins after ``delay`` seconds, whatever more is asked meanwhile.
        """
        with self._changed:
            if self._wanted is not _NONE:
                self._wake(delay)

    def settled(self, value: T) -> bool:
        """Whether ``value`` is the last one submitted and was accepted, and nothing is being done about it."""
        with self._changed:
            return self._ok and not self._due and not self._busy and self._wanted == value == self._accepted

    def idle(self) -> bool:
        """Whether there is nothing to do and nothing being done. A value in a pause after an error is not idle."""
        with self._changed:
            return not self._busy and not self._due and (self._ok or self._wanted is _NONE)

    def stop(self, timeout: float) -> bool:
        """End the thread: what waits is dropped, what runs is waited for, at most ``timeout`` seconds. True if it has ended."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return thread is None
        thread.join(timeout)
        return not thread.is_alive()

    def _wake(self, delay: float) -> None:
        """There is something to do, after ``delay`` seconds at most. The lock is held."""
        if self._stopping:
            return
        not_before = time.monotonic() + delay
        self._not_before = min(self._not_before, not_before) if self._due else not_before
        self._due = True
        self._changed.notify_all()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name=f"applier-{self.name}", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        """The thread: take the newest value, try it, pause after an error."""
        attempts = 0
        pause: float | None = None
        while True:
            with self._changed:
                if not self._await_work(pause):
                    return
                value = cast("T", self._wanted)
                self._due, self._busy = False, True
            error = self._attempt(value)
            attempts = attempts + 1 if error else 0
            pause = self._pause(attempts) if error else None
            self._record(value, error)

    def _await_work(self, pause: float | None) -> bool:
        """Wait until a value is due or ``pause`` seconds (None: nothing to repeat) are over. False: stop. The lock is held."""
        self._changed.wait_for(lambda: self._due or self._stopping, pause)
        while self._due and not self._stopping and (left := self._not_before - time.monotonic()) > 0:
            self._changed.wait(left)
        return not self._stopping

    def _attempt(self, value: T) -> str:
        """Apply ``value``: the error's line, "" if it was accepted."""
        try:
            self._apply(value)
        except Exception as error:  # whatever it is, it is told and tried again: the thread must live
            return one_line(error)
        return ""

    def _record(self, value: T, error: str) -> None:
        with self._changed:
            before = (self._ok, self._error)
            self._ok, self._error = not error, error
            news = before != (self._ok, self._error)
            if not error:
                news = news or self._accepted is _NONE or self._accepted != value
                self._accepted = value
            self._busy = False
            self._changed.notify_all()
        if news and self._on_result is not None:
            self._on_result(self.name, error)

    def _pause(self, attempts: int) -> float:
        """Seconds to wait after so many failed attempts."""
        state = RetryCallState(Retrying(), None, (), {})
        state.attempt_number = min(attempts, 64)
        return self._wait(state)
