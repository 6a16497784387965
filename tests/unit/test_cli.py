"""The command line, as real processes: exit statuses, lazy imports, and `pynet status` against a real server."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from pynet import __version__
from pynet.__main__ import COMMANDS
from pynet.commands import status as status_command
from pynet.commands.output import duration, table
from pynet.report.httpwire import JSON, Page, Reply
from pynet.report.pages import health_pages
from pynet.report.status import Status, StatusBoard

from tests.unit.test_httpd import Listener, on_loopback, serving
from tests.unit.test_status import GOOD, but

PAGE = Path(__file__).parents[2] / "docs/reference/cli.md"


def pynet(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pynet", *arguments], capture_output=True, text=True, check=False, timeout=60, **options
    )


# Arguments


def test_help_lists_every_command_with_what_it_does():
    done = pynet("--help")
    assert done.returncode == 0
    for name, summary in COMMANDS.items():
        assert name in done.stdout
        assert summary.split(",")[0].split(":")[0] in " ".join(done.stdout.split())
    assert set(COMMANDS) == {"agent", "status", "plan", "cleanup", "lab", "version"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_refuses_unknown_flags_with_64(name):
    done = pynet(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: pynet {name}" in done.stdout
    done = pynet(name, "--no-such-flag")
    assert done.returncode == 64
    assert "unrecognized arguments: --no-such-flag" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("routes",), "invalid choice: 'routes'"),
        (("--verbose",), "required: COMMAND"),
        (("version", "extra"), "unrecognized arguments: extra"),
        (("version", "--output", "yaml"), "invalid choice: 'yaml'"),
        (("status", "--port", "many"), "'many' is not a port, 1 to 65535"),
        (("status", "--port", "99999"), "'99999' is not a port, 1 to 65535"),
        (("status", "--port", "-1"), "'-1' is not a port, 1 to 65535"),
    ],
)
def test_wrong_usage_exits_with_64_and_says_what_is_wrong(arguments, words):
    done = pynet(*arguments)
    assert done.returncode == 64
    assert done.stdout == ""
    assert "usage: pynet" in done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("status", "--config"), ("agent", "--node-name", "n", "--config")])
def test_a_wrong_configuration_exits_with_64_and_one_line(tmp_path, arguments):
    file = tmp_path / "pynet.yaml"
    file.write_text("routes: {metric: 300}\n")
    done = pynet(*arguments, str(file))
    assert done.returncode == 64
    assert done.stdout == ""
    assert done.stderr == f"pynet: {file}: routes.metric is 300; allowed: a whole number 1..254\n"


@pytest.mark.parametrize("command", ["agent", "plan"])
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "--node-name is not given and $NODE_NAME is not set"),
        (("--node-name", "Node-1"), "--node-name is 'Node-1'; allowed: lower-case letters"),
        (("--node-name", "a..b"), "--node-name is 'a..b'; allowed: "),
        (("--node-name", "n", "--token-file", "t"), "--token-file is given without --api-server"),
        (("--node-name", "n", "--ca-file", "c"), "--ca-file is given without --api-server"),
        (
            ("--node-name", "n", "--kubeconfig", "k", "--api-server", "https://h"),
            "--kubeconfig is given together with --api-server",
        ),
        (("--node-name", "n", "--config", ""), "--config is empty"),
    ],
)
def test_flags_that_cannot_be_meant_are_one_line_with_64(command, flags, words):
    done = pynet(command, *flags, env={name: value for name, value in os.environ.items() if name != "NODE_NAME"})
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.startswith(f"pynet: {words}")
    assert done.stderr.count("\n") == 1


def test_a_run_dir_that_is_no_folder_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "pynet.yaml").write_text(f"runDir: {tmp_path}/file\n")
    done = pynet("agent", "--node-name", "n", "--config", str(tmp_path / "pynet.yaml"), "--api-server", "http://127.0.0.1:1")
    assert (done.returncode, done.stderr) == (1, f"pynet agent: {tmp_path}/file (runDir) is not a folder\n")


def test_a_defect_is_not_taken_for_wrong_usage(tmp_path):
    code = "import pynet.__main__ as m, pynet.commands.version as v; v.run = lambda args: 1 // 0; m.main(['version'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


# What is imported


def imported(*arguments: str) -> set[str]:
    """Modules that a run of pynet imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pynet", *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


HEAVY = {"structlog", "prometheus_client", "urllib3", "tenacity", "pyroute2", "kubernetes", "yaml"}


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (("--help",), HEAVY | {"msgspec"}),
        (("version",), HEAVY | {"msgspec"}),
        (("status", "--help"), HEAVY),
        (("agent", "--help"), {"pyroute2", "kubernetes", "yaml"}),
    ],
)
def test_a_command_imports_no_more_than_it_needs(arguments, unwanted):
    names = imported(*arguments)
    assert not {name.split(".")[0] for name in names} & unwanted
    assert not {name for name in names if name.startswith("rich.")}  # `rich` itself is tried, and not there


def test_the_agent_s_reports_import_neither_kubernetes_nor_pyroute2_nor_yaml():
    code = "import sys, pynet.config, pynet.report.logs, pynet.report.pages, pynet.report.httpd; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {name.split(".")[0] for name in done.stdout.split()} & {"kubernetes", "pyroute2", "yaml"}


# Signals and pipes


def test_a_reader_that_has_seen_enough_ends_the_command_quietly():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "pynet", "version"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=60
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_disk_under_the_output_is_one_line():
    with Path("/dev/full").open("w", encoding="ascii") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pynet", "version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )
    assert done.returncode == 1
    assert done.stderr == "pynet: what it has to say cannot be written: No space left on device\n"


def test_closed_standard_streams_are_no_defect():
    done = subprocess.run(["sh", "-c", f"{sys.executable} -m pynet version >&-"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_ends_a_command_with_130_and_no_stack_trace():
    reached = threading.Event()

    def never(_headers: object) -> Reply:
        reached.set()
        running.wait(30)
        return Reply(200, Page(b""))

    with serving(on_loopback({"/status": never})) as server:
        port = str(server.port("health"))
        running = subprocess.Popen([sys.executable, "-m", "pynet", "status", "--port", port], stderr=subprocess.PIPE, text=True)
        assert reached.wait(30)
        running.send_signal(signal.SIGINT)
        assert running.wait(10) == 130
        assert running.stderr is not None
        assert "Traceback" not in running.stderr.read()
        running.stderr.close()


# pynet version


def test_version_tells_pynet_python_and_kernel():
    expected = {"pynet": __version__, "python": platform.python_version(), "kernel": platform.release()}
    assert json.loads(pynet("version", "--output", "json").stdout) == expected
    lines = pynet("version").stdout.splitlines()
    assert [line.split() for line in lines] == [list(each) for each in expected.items()]


# pynet status


def agent_with(status: Status) -> Listener:
    board = StatusBoard(lambda: status)
    board.put(("node-7", 4), "conflict", "there is another route")
    return on_loopback(health_pages(board, lambda: 0.0))


@pytest.mark.parametrize(("status", "code", "word"), [(GOOD, 0, "READY"), (but(settled=False), 1, "NOT READY")])
def test_status_exits_by_readiness_and_shows_it(status, code, word):
    with serving(agent_with(status)) as server:
        done = pynet("status", "--port", str(server.port("health")))
        assert done.returncode == code, done.stderr
        assert done.stdout.startswith(f"{word}  node node-1")
        assert "there is another route" in done.stdout
        done = pynet("status", "--output", "json", "--port", str(server.port("health")))
        assert done.returncode == code
        assert msgspec.json.decode(done.stdout, type=Status).ready == (code == 0)


def test_status_finds_the_agent_by_its_configuration(tmp_path):
    with serving(agent_with(GOOD)) as server:
        file = tmp_path / "pynet.yaml"
        file.write_text(f"health: {{port: {server.port('health')}}}\n")
        assert pynet("status", "--config", str(file)).returncode == 0
        assert pynet("status", "--config", str(file), "--address", "127.0.0.9").returncode == 3


def test_status_of_no_agent_exits_with_3_and_one_line():
    with serving(on_loopback({})) as server:
        port = server.port("health")
    done = pynet("status", "--port", str(port))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"pynet status: no agent at 127.0.0.1 port {port}: Connection refused\n"


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (Page(b"hello", JSON), "what answers there is not a pynet agent ("),
        (Page(b'{"ready": "yes"}', JSON), "what answers there is not a pynet agent ("),
        (Page(b"\xff", JSON), "what answers there is not a pynet agent ("),
        (None, "it answers 404 Not Found"),
    ],
)
def test_status_of_something_else_exits_with_3_and_one_line(page, words):
    with serving(on_loopback({"/status": lambda _headers: Reply(200, page)} if page else {})) as server:
        done = pynet("status", "--port", str(server.port("health")))
    assert (done.returncode, done.stdout) == (3, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [("--address", "no such host"), ("--address", "")])
def test_status_of_an_impossible_address_exits_with_3_and_one_line(arguments):
    done = pynet("status", *arguments)
    assert done.returncode == 3
    assert done.stderr.startswith("pynet status: no agent at ")
    assert done.stderr.count("\n") == 1


def test_an_agent_that_does_not_answer_is_given_up(monkeypatch, capsys):
    monkeypatch.setattr(status_command, "_TIMEOUT", 0.2)
    with serving(on_loopback({"/status": lambda _headers: Reply(200, Page(b"{}"))})) as server:
        server._stopping = True  # its thread ends; the port stays open, and nobody answers
        os.eventfd_write(server._wake, 1)
        server._thread.join()
        with pytest.raises(status_command._NotReachedError, match="timed out"):
            status_command._fetch("127.0.0.1", server.port("health"))


# Text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-1, "0.0s"), (0.84, "0.8s"), (9.9, "9.9s"), (42.7, "42s"), (60, "1m"), (719, "11m"), (3600, "1h"), (11520, "3h12m"),
     (86400, "1d"), (447000, "5d4h")],
)  # fmt: skip
def test_durations_are_as_a_person_says_them(seconds, words):
    assert duration(seconds) == words


def test_table_columns_are_as_wide_as_they_must_be():
    assert table([("A", "BB", "C"), ("aaa", "b", "the last\n")]) == ["A    BB  C", r"aaa  b   the last\n"]


# The reference page


def test_the_reference_page_has_every_command_with_every_flag():
    page = PAGE.read_text()
    for name in COMMANDS:
        section = page.split(f"\n## pynet {name}\n")[1].split("\n## ")[0]
        words = pynet(name, "--help", env={**os.environ, "COLUMNS": "200"}).stdout
        flags = set(re.findall(r"--[a-z-]+", words)) - {"--help"}
        assert flags == set(re.findall(r"^\| `(--[a-z-]+)`", section, re.MULTILINE)), name
