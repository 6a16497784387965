"""Logs: one line an event, as JSON, or for a person at a terminal; written to standard error.

Standard error, since standard output belongs to what commands print. Logging must never stop the data path: a line that cannot
be written at once (nobody reads the pipe any more, the disk is full) is lost and counted, and floods are cut short.
"""

from __future__ import annotations

import logging
import os
import re
import select
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from typing import Any, Final, Literal, NamedTuple

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

Style = Literal["json", "console"]
Event = MutableMapping[str, Any]

LEVELS: Final = ("debug", "info", "warning", "error")

_PIPE_BUF: Final = 4096  # poll() says that a pipe is writable if it takes this much: so much can be written without blocking
_PATIENCE_MS: Final = 50  # for the rest of a longer line
_PLAIN: Final = re.compile(r"[\w.,:/@%+=<>()\[\]-]+", re.ASCII)


def new_logger(*, level: str = "info", style: Style | None = None, fd: int = 2) -> FilteringBoundLogger:
    """A logger that writes lines to ``fd``; safe to use from any thread, and never raises.

    ``level`` is one of LEVELS. ``style`` None is console on a terminal, else json. Raises KeyError for an unknown level.
    """
    render = _console if (style or ("console" if os.isatty(fd) else "json")) == "console" else _json
    logger: FilteringBoundLogger = structlog.wrap_logger(
        LineWriter(fd),
        processors=[
            structlog.processors.add_log_level,
            Limiter(),
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            structlog.processors.format_exc_info,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_NUMBERS[level]),
        cache_logger_on_first_use=True,
    )
    return logger


_NUMBERS: Final = {level: getattr(logging, level.upper()) for level in LEVELS}


def take_over(log: FilteringBoundLogger) -> None:
    """Have what libraries log, Python's warnings and exceptions that nobody caught come out of ``log`` too.

    Changes the process: to be called once, by the command that owns it.
    """
    root = logging.getLogger()
    root.handlers[:] = [_Bridge(log)]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)

    def thread_crashed(crash: threading.ExceptHookArgs) -> None:
        name = crash.thread.name if crash.thread else "unknown"
        log.critical("thread_crashed", thread=name, exc_info=crash.exc_value or crash.exc_type)

    threading.excepthook = thread_crashed
    sys.excepthook = lambda _kind, error, _traceback: log.critical("crashed", exc_info=error)


class _Bridge(logging.Handler):
    """Passes records of the standard library's logging on."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            words = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit the format
            words = str(record.msg)
        level = logging.ERROR if record.levelno >= logging.ERROR else logging.WARNING
        self._log.log(level, "library_logged", logger=record.name, message=words, exc_info=record.exc_info)


class LineWriter:
    """Writes whole lines to a file descriptor, and never waits for whoever should read them.

    ``lost`` counts lines that could not be written; the next line that can be is preceded by one that says how many.
    """

    def __init__(self, fd: int) -> None:
        self.lost = 0
        self._cut = False  # the last thing written is the beginning of a line
        self._fd = fd
        self._lock = threading.Lock()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def msg(self, line: bytes) -> None:
        """Write a line (with its line end)."""
        with self._lock:
            if self.lost and self._write(b'{"level":"warning","event":"log_lines_lost","lines":%d}\n' % self.lost):
                self.lost = 0
            if not self._write(line):
                self.lost += 1

    log = debug = info = warning = error = critical = exception = msg

    def _write(self, line: bytes) -> bool:
        data = b"\n" + line if self._cut else line
        done = 0
        try:
            while done < len(data) and self._poll.poll(_PATIENCE_MS if done else 0):
                done += os.write(self._fd, data[done : done + _PIPE_BUF])
        except OSError:  # a closed pipe, a full disk: nobody is left to tell
            pass
        self._cut = 0 < done < len(data) or (self._cut and done == 0)
        return done == len(data)


class _Seen(NamedTuple):
    """How many more lines are allowed before ``until``, and how many were left out."""

    until: float
    left: int
    suppressed: int


class Limiter:
    """A processor that keeps floods from filling disks.

    An identical warning or error (the same event and fields) comes out ``IDENTICAL`` times a minute, any one event, whatever
    its level and fields, ``PER_EVENT`` times. The first line that comes out after some were left out says how many, as
    ``suppressed``.
    """

    IDENTICAL: Final = 3
    PER_EVENT: Final = 600
    WINDOW: Final = 60.0
    _MOST_KEYS: Final = 2000

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, int], _Seen] = {}

    def __call__(self, _logger: object, _method: str, event: Event) -> Event:
        """Let an event pass, or raise DropEvent."""
        name, level = str(event.get("event")), event.get("level")
        keys = [((name, 0), self.PER_EVENT)]
        if level not in {"debug", "info"}:
            keys.append(((name, _fields(event)), self.IDENTICAL))
        with self._lock:
            suppressed = sum(self._take(key, limit) for key, limit in keys)
        if suppressed:
            event["suppressed"] = suppressed
        return event

    def _take(self, key: tuple[str, int], limit: int) -> int:
        """Count one line; returns how many were left out before it. Raises DropEvent if it is to be left out too."""
        now = self._clock()
        seen = self._seen.pop(key, None)
        if seen is None or now >= seen.until:
            self._put(key, _Seen(now + self.WINDOW, limit - 1, 0))
            return 0 if seen is None else seen.suppressed
        if seen.left == 0:
            self._put(key, seen._replace(suppressed=seen.suppressed + 1))
            raise structlog.DropEvent
        self._put(key, seen._replace(left=seen.left - 1))
        return 0

    def _put(self, key: tuple[str, int], seen: _Seen) -> None:
        if len(self._seen) >= self._MOST_KEYS:
            del self._seen[next(iter(self._seen))]  # the one that was not seen for the longest time
        self._seen[key] = seen


def _fields(event: Event) -> int:
    try:
        return hash(repr({key: value for key, value in event.items() if key != "exc_info"}))
    except Exception:  # somebody's __repr__
        return -1


def _json(_logger: object, _method: str, event: Event) -> bytes:
    ordered = {"ts": event.pop("ts"), "level": event.pop("level"), "event": event.pop("event"), **event}
    try:
        return _ENCODER.encode(ordered) + b"\n"
    except Exception:  # a value that JSON cannot hold: say it in other words rather than not at all
        return _ENCODER.encode({_text(key): _plain(value) for key, value in ordered.items()}) + b"\n"


def _console(_logger: object, _method: str, event: Event) -> bytes:
    moment, level, name = event.pop("ts"), event.pop("level"), event.pop("event")
    exception = event.pop("exception", "")
    fields = "".join(f" {key}={_word(value)}" for key, value in event.items())
    line = f"{moment[11:23]} {level:<7} {_word(name)}{fields}\n"
    if exception:
        line += "".join(f"    {_printable(each)}\n" for each in exception.splitlines())
    return line.encode("utf-8", "backslashreplace")


def _word(value: object) -> str:
    """A value as one word of a line: quoted if it would not be one, without anything that a terminal would obey."""
    # A named tuple may have words of its own.
    text = "; ".join(_text(each) for each in value) if type(value) is list or type(value) is tuple else _text(value)
    return text if _PLAIN.fullmatch(text) else _printable(repr(text))


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _plain(value: object) -> object:
    try:
        _ENCODER.encode(value)
    except Exception:
        return _text(value)
    return value


def _text(value: object) -> str:
    try:
        return str(value).encode("utf-8", "backslashreplace").decode()
    except Exception as error:  # somebody's __str__
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


_ENCODER: Final = msgspec.json.Encoder(enc_hook=_text)
