"""Logs: one line an event, whatever is logged, and never anything that stops who logs."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from pynet.core.model import Prefix
from pynet.report import logs
from pynet.report.logs import Limiter, LineWriter, new_logger, take_over


@pytest.fixture
def file(tmp_path):
    """(descriptor to log to, function that gives the lines so far)."""
    path = tmp_path / "log"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    yield fd, lambda: path.read_bytes().decode().splitlines()
    os.close(fd)


def records(lines) -> list[dict]:
    return [json.loads(line) for line in lines()]


# Lines


def test_json_is_the_style_where_there_is_no_terminal_and_its_keys_are_in_order(file):
    fd, lines = file
    new_logger(fd=fd).info("route_replaced", prefix="10.244.1.0/24", peer="node-7")
    (line,) = lines()
    record = json.loads(line)
    assert list(record) == ["ts", "level", "event", "prefix", "peer"]
    assert record["ts"].endswith("Z")
    assert (record["level"], record["event"], record["peer"]) == ("info", "route_replaced", "node-7")


def test_console_is_the_style_of_a_terminal():
    leader, follower = os.openpty()
    new_logger(fd=follower).warning("removal_held", reason="40 of 50 routes")
    shown = os.read(leader, 4096).decode()
    assert shown.rstrip().endswith("warning removal_held reason='40 of 50 routes'")
    os.close(leader)
    os.close(follower)


def test_console_shows_lists_without_brackets_and_quotes(file):
    fd, lines = file
    log = new_logger(style="console", fd=fd)
    log.warning("not_ready", reasons=["conflist: not there", "no answer"], peer=("node-3", 4))
    (line,) = lines()
    assert line.endswith("not_ready reasons='conflist: not there; no answer' peer='node-3; 4'")


@pytest.mark.parametrize(("level", "seen"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_level_leaves_out_what_is_below(file, level, seen):
    fd, lines = file
    log = new_logger(level=level, style="json", fd=fd)
    for each in ("debug", "info", "warning", "error"):
        getattr(log, each)("something_happened")
    assert len(lines()) == seen


def test_an_unknown_level_is_refused():
    with pytest.raises(KeyError):
        new_logger(level="loud")


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


ODD = [
    Unprintable(),
    object(),
    b"\x00\xff",
    "\ud800",
    10**400,
    float("nan"),
    {1, 2},
    Prefix(b"\n\0\0\0", 8),
    {(1, 2): 3},
    OSError(5, "x"),
]


@pytest.mark.parametrize("style", ["json", "console"])
@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
def test_any_value_can_be_logged_in_one_line(file, style, value):
    fd, lines = file
    log = new_logger(style=style, fd=fd)
    log.error("odd", value=value, fine="yes")
    (line,) = lines()
    assert "odd" in line
    assert "yes" in line
    if style == "json":
        assert json.loads(line)["fine"] == "yes"


def test_a_value_that_contains_itself_can_be_logged(file):
    fd, lines = file
    loop: list[object] = []
    loop.append(loop)
    new_logger(style="json", fd=fd).info("odd", loop=loop)
    assert records(lines)[0]["loop"] == "[[...]]"


@given(
    st.dictionaries(st.from_regex(r"[a-z_]{1,10}", fullmatch=True), st.text() | st.binary() | st.floats() | st.lists(st.text()))
)
def test_whatever_the_fields_a_line_is_one_json_object(fields):
    for key in ("event", "level", "self", "event_kw", "exc_info", "stack_info", "exception"):
        fields.pop(key, None)
    reading, writing = os.pipe()
    try:
        new_logger(style="json", fd=writing).info("x", **fields)
        line = os.read(reading, 1 << 16)
        assert line.endswith(b"\n")
        assert json.loads(line).keys() >= fields.keys()
        assert line.count(b"\n") == 1
    finally:
        os.close(reading)
        os.close(writing)


def test_an_exception_is_a_field_of_the_one_line(file):
    fd, lines = file
    log = new_logger(style="json", fd=fd)
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        log.exception("pass_crashed")
    (record,) = records(lines)
    assert record["level"] == "error"
    assert record["exception"].endswith("ZeroDivisionError: division by zero")


def test_console_shows_nothing_that_a_terminal_obeys(file):
    fd, lines = file
    log = new_logger(style="console", fd=fd)
    log.info("evil\x1b[2J", name="a\x1b[31m\nb\u202e")
    log.error("worse", exc_info=ValueError("\x1b[0m\r"))
    text = "".join(lines())
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\r" not in text


# Never in the way


def test_a_closed_pipe_loses_lines_and_nothing_else():
    reading, writing = os.pipe()
    os.close(reading)
    log = new_logger(style="json", fd=writing)
    for _ in range(3):
        log.info("nobody_listens")
    os.close(writing)
    log.info("not_even_a_descriptor")


def test_a_pipe_that_nobody_empties_does_not_hold_up_the_loop_and_the_loss_is_told():
    reading, writing = os.pipe()
    log = new_logger(style="json", fd=writing)
    began = time.monotonic()
    for number in range(500):
        log.info("event", number=number, padding="x" * 1000)
    assert time.monotonic() - began < 5
    received = os.read(reading, 1 << 20)
    log.info("after")
    received += os.read(reading, 1 << 20)
    told = [json.loads(line) for line in received.decode().splitlines() if line]
    arrived = [each for each in told if each["event"] == "event"]
    assert 0 < len(arrived) < 500
    assert told[-2:][0] == {"level": "warning", "event": "log_lines_lost", "lines": 500 - len(arrived)}
    assert told[-1]["event"] == "after"
    os.close(reading)
    os.close(writing)


def test_a_line_longer_than_a_pipe_arrives_if_somebody_reads():
    reading, writing = os.pipe()
    received = bytearray()

    def read() -> None:
        while data := os.read(reading, 65536):
            received.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    new_logger(style="json", fd=writing).info("long", text="x" * 300_000)
    os.close(writing)
    reader.join()
    os.close(reading)
    assert len(json.loads(received)["text"]) == 300_000


def test_a_line_that_was_cut_ends_before_the_next_one_begins():
    reading, writing = os.pipe()
    writer = LineWriter(writing)
    writer.msg(b"x" * 200_000 + b"\n")
    assert writer.lost == 1
    os.read(reading, 1 << 20)
    writer.msg(b"next\n")
    assert os.read(reading, 1 << 20).splitlines() == [b"", b'{"level":"warning","event":"log_lines_lost","lines":1}', b"next"]
    os.close(reading)
    os.close(writing)


def test_a_full_disk_loses_lines_and_nothing_else():
    full = os.open("/dev/full", os.O_WRONLY)
    log = new_logger(style="json", fd=full)
    log.error("disk_full")
    os.close(full)


def test_threads_do_not_mix_their_lines(file):
    fd, lines = file
    log = new_logger(style="json", fd=fd)
    threads = [
        threading.Thread(target=lambda n=n: [log.info("from", n=n, i=i, pad="x" * 500) for i in range(50)]) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(records(lines)) == 400


# Floods


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def passing(limiter: Limiter, level: str, event: str, **fields: object) -> dict | None:
    with contextlib.suppress(structlog.DropEvent):
        return dict(limiter(None, level, {"event": event, "level": level, **fields}))
    return None


def test_an_identical_warning_comes_out_three_times_a_minute_and_what_was_left_out_is_told():
    clock = Clock()
    limiter = Limiter(clock)
    assert [bool(passing(limiter, "warning", "watch_failed", error="refused")) for _ in range(10)] == [True] * 3 + [False] * 7
    assert passing(limiter, "warning", "watch_failed", error="timeout") == {
        "event": "watch_failed", "level": "warning", "error": "timeout"
    }  # fmt: skip
    clock.now = 59.9
    assert passing(limiter, "warning", "watch_failed", error="refused") is None
    clock.now = 60
    assert passing(limiter, "warning", "watch_failed", error="refused")["suppressed"] == 8
    assert "suppressed" not in passing(limiter, "warning", "watch_failed", error="refused")


def test_identical_news_that_is_no_warning_is_not_left_out():
    limiter = Limiter(Clock())
    assert all(passing(limiter, "info", "route_added", prefix="10.0.0.0/24") for _ in range(100))


@pytest.mark.parametrize("level", ["info", "error"])
def test_no_event_comes_out_more_than_600_times_a_minute(level):
    clock = Clock()
    limiter = Limiter(clock)
    assert len([n for n in range(1000) if passing(limiter, level, "route_added", n=n)]) == 600
    assert passing(limiter, level, "another")
    clock.now = 60
    assert passing(limiter, level, "route_added", n=0)["suppressed"] == 400


def test_what_is_remembered_for_it_is_bounded():
    limiter = Limiter(Clock())
    for number in range(10_000):
        passing(limiter, "error", f"event_{number}", number=number)
    assert len(limiter._seen) <= 2000


def test_fields_that_cannot_be_shown_count_as_the_same():
    limiter = Limiter(Clock())
    assert [bool(passing(limiter, "error", "odd", x=Unprintable())) for _ in range(4)] == [True, True, True, False]


# Everything else that speaks


@pytest.fixture
def taken_over(file):
    fd, lines = file
    before = logging.getLogger().handlers[:], logging.getLogger().level, threading.excepthook, sys.excepthook
    with warnings.catch_warnings():
        take_over(new_logger(style="json", fd=fd))
        yield lambda: records(lines)
    logging.captureWarnings(capture=False)
    logging.getLogger().handlers[:], level, threading.excepthook, sys.excepthook = before
    logging.getLogger().setLevel(level)


def test_libraries_warnings_and_crashed_threads_come_out_as_lines(taken_over):
    logging.getLogger("urllib3").info("not of interest")
    logging.getLogger("urllib3").warning("pool of %s is full", "x")
    (bridge,) = (each for each in logging.getLogger().handlers if isinstance(each, logs._Bridge))
    bridge.emit(
        logging.LogRecord("urllib3", logging.ERROR, "", 0, "%d", ("no number",), None)
    )  # pytest's own handlers refuse it
    warnings.simplefilter("always")
    warnings.warn("old habits", stacklevel=1)
    thread = threading.Thread(target=lambda: 1 // 0, name="watcher")
    thread.start()
    thread.join()
    pool, bad, warned, crashed = taken_over()
    assert (pool["event"], pool["level"], pool["logger"], pool["message"]) == (
        "library_logged", "warning", "urllib3", "pool of x is full"
    )  # fmt: skip
    assert (bad["level"], bad["message"]) == ("error", "%d")
    assert "old habits" in warned["message"]
    assert (crashed["event"], crashed["level"], crashed["thread"]) == ("thread_crashed", "critical", "watcher")
    assert "ZeroDivisionError" in crashed["exception"]


def test_a_crash_of_the_process_is_one_line_on_standard_error():
    code = "from pynet.report.logs import *; take_over(new_logger(style='json')); raise ValueError('why')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, cwd=Path(__file__).parents[2] / "agent"
    )
    assert done.returncode == 1
    assert done.stdout == b""
    (record,) = [json.loads(line) for line in done.stderr.decode().splitlines()]
    assert record["event"] == "crashed"
    assert record["exception"].endswith("ValueError: why")
