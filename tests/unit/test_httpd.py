"""The agent's HTTP server, over real loopback connections: truthful, and not to be held up by slow or rude clients."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from pynet.report import httpd
from pynet.report.httpd import CONNECTIONS, HttpServer, Listener
from pynet.report.httpwire import MAX_HEAD, Page, Reply, Request, read_request
from pynet.report.metrics import Metrics
from pynet.report.pages import health_pages, metrics_pages
from pynet.report.status import Status, StatusBoard
from structlog.testing import CapturingLogger

from tests.unit.test_status import GOOD, but


def hello(_headers: object) -> Reply:
    return Reply(200, Page(b"hello\n"))


BIG = b"x" * 4_000_000

PAGES = {"/hello": hello, "/big": lambda _headers: Reply(200, Page(BIG)), "/broken": lambda _headers: 1 // 0}


@contextlib.contextmanager
def serving(*listeners: Listener, seconds: float = 5.0, log: object = None) -> Iterator[HttpServer]:
    server = HttpServer(list(listeners), log or CapturingLogger(), seconds=seconds)  # type: ignore[arg-type]
    server.start()
    try:
        yield server
    finally:
        server.stop()


def on_loopback(pages=PAGES, name="health", port=0) -> Listener:
    return Listener(name, lambda: "127.0.0.1", port, pages)


@pytest.fixture
def port() -> Iterator[int]:
    with serving(on_loopback()) as server:
        yield server.port("health")


def ask(port: int, path: str, method: str = "GET", headers=None, address: str = "127.0.0.1"):
    connection = http.client.HTTPConnection(address, port, timeout=10)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())
    finally:
        connection.close()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def everything(sock: socket.socket) -> bytes:
    received = b""
    while data := sock.recv(65536):
        received += data
    return received


def raw(port: int, request: bytes) -> bytes:
    with connect(port) as sock:
        sock.sendall(request)
        return everything(sock)


def until(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the time allowed"
        threading.Event().wait(0.01)


# HTTP


def test_a_page_is_served_whole_and_the_connection_ends(port):
    status, body, headers = ask(port, "/hello")
    assert (status, body) == (200, b"hello\n")
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert headers["Content-Length"] == "6"
    assert headers["Connection"] == "close"
    assert headers["Date"].endswith("GMT")


def test_head_has_the_headers_of_get_and_no_body(port):
    answer = raw(port, b"HEAD /hello HTTP/1.1\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Length: 6" in head
    assert body == b""


def test_a_second_request_on_a_connection_is_not_answered(port):
    answer = raw(port, b"GET /hello HTTP/1.1\r\n\r\nGET /hello HTTP/1.1\r\n\r\n")
    assert answer.count(b"HTTP/1.1") == 1


def test_nor_is_one_that_comes_after_the_answer_and_its_page_is_not_made():
    made: list[object] = []

    def counted(headers: object) -> Reply:
        made.append(headers)
        return hello(headers)

    with serving(on_loopback({"/hello": counted})) as server, connect(server.port("health")) as sock:
        sock.sendall(b"GET /hello HTTP/1.1\r\n\r\n")
        assert everything(sock).endswith(b"hello\n")
        sock.sendall(b"GET /hello HTTP/1.1\r\n\r\n")
        until(lambda: not server._ports[0].connections)
    assert len(made) == 1


def test_the_answer_s_end_is_told_at_once(port):
    began = time.monotonic()
    raw(port, b"GET /hello HTTP/1.1\r\n\r\n")
    assert time.monotonic() - began < httpd._LINGER_SECONDS / 2


def test_query_strings_and_absolute_urls_reach_the_page(port):
    assert ask(port, "/hello?verbose=1")[0] == 200
    assert raw(port, b"GET http://127.0.0.1/hello HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_a_request_may_arrive_byte_by_byte(port):
    with connect(port) as sock:
        for byte in b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n":
            sock.send(bytes([byte]))
        assert everything(sock).endswith(b"hello\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT"])
def test_other_methods_are_refused(port, method):
    status, body, headers = ask(port, "/hello", method)
    assert (status, body) == (405, b"only GET and HEAD are allowed\n")
    assert headers["Allow"] == "GET, HEAD"


def test_a_refusal_reaches_a_client_that_is_still_sending_its_body(port):
    with connect(port) as sock:
        sock.sendall(b"POST /hello HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 100_000)
        assert everything(sock).startswith(b"HTTP/1.1 405 ")


def test_an_unknown_page_names_the_known_ones(port):
    assert ask(port, "/nothing")[:2] == (404, b"no such page; there are /big, /broken, /hello\n")


@pytest.mark.parametrize(
    "request_", [b"nonsense\r\n\r\n", b"GET /hello\r\n\r\n", b"get /hello HTTP/1.1\r\n\r\n", b"\x16\x03\x01\r\n\r\n"]
)
def test_what_is_not_http_is_refused(port, request_):
    assert raw(port, request_).startswith(b"HTTP/1.1 400 ")


def test_a_head_that_is_too_large_is_refused(port):
    assert raw(port, b"GET /hello HTTP/1.1\r\nX: " + b"x" * MAX_HEAD).startswith(b"HTTP/1.1 431 ")


def test_a_page_that_fails_gives_no_stack_trace_away_and_is_logged():
    log = CapturingLogger()
    with serving(on_loopback(), log=log) as server:
        for _ in range(2):
            assert ask(server.port("health"), "/broken")[:2] == (500, b"internal error: see the agent's log\n")
        assert ask(server.port("health"), "/hello")[0] == 200
    assert [call.args for call in log.calls if call.method_name == "exception"] == [("page_failed",)] * 2


def test_a_large_page_arrives_whole(port):
    assert ask(port, "/big")[1] == BIG


@given(st.binary(max_size=300))
@example(b"GET //[ HTTP/1.1\r\n\r\n")
@example(b"GET / HTTP/1.1\r\nbad header\r\n: x\r\n\xff: \xff\r\n\r\n")
@example(b"\n\n")
def test_any_bytes_are_a_request_a_refusal_or_incomplete(data):
    for received in (data, data + b"\r\n\r\n", b"GET " + data + b" HTTP/1.1\r\n\r\n"):
        found = read_request(bytearray(received))
        assert found is None or isinstance(found, Request | Reply)


def test_header_names_are_lower_case_and_values_are_trimmed():
    request = read_request(bytearray(b"GET /x?y HTTP/1.1\r\nAccept:  text/plain \r\n\r\n"))
    assert request == Request("GET", "/x", {"accept": "text/plain"})


# Slow and rude clients


def test_a_client_that_sends_a_byte_now_and_then_is_cut_off():
    """Slowloris: each byte comes well within any time-out for one read."""
    with serving(on_loopback(), seconds=0.5) as server, connect(server.port("health")) as sock:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 5:
                sock.send(b"G")
                sock.settimeout(0.1)
                try:
                    if not sock.recv(1):
                        break
                except TimeoutError:
                    continue
        assert 0.3 < time.monotonic() - began < 3


def test_a_client_that_does_not_read_its_answer_is_cut_off():
    with serving(on_loopback(), seconds=0.3) as server:
        with connect(server.port("health")) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall(b"GET /big HTTP/1.1\r\n\r\n")
            (its_port,) = server._ports
            until(lambda: its_port.connections)
            until(lambda: not its_port.connections)
        assert ask(server.port("health"), "/hello")[0] == 200


def test_a_client_that_never_hangs_up_is_cut_off_after_its_answer():
    with serving(on_loopback()) as server, connect(server.port("health")) as sock:
        sock.sendall(b"GET /hello HTTP/1.1\r\n\r\n")
        assert everything(sock).endswith(b"hello\n")
        until(lambda: not server._ports[0].connections, seconds=3)


def test_probes_are_answered_while_slow_clients_hold_every_place():
    with serving(on_loopback(), seconds=30) as server:
        port = server.port("health")
        with contextlib.ExitStack() as held:
            slow = [held.enter_context(connect(port)) for _ in range(3 * CONNECTIONS)]
            for sock in slow:
                with contextlib.suppress(OSError):
                    sock.send(b"GET /hel")
            began = time.monotonic()
            for _ in range(5):
                assert ask(port, "/hello")[0] == 200
            assert time.monotonic() - began < 2
            assert len(server._ports[0].connections) <= CONNECTIONS


def test_slow_clients_of_one_listener_take_no_place_of_the_other():
    with serving(on_loopback(name="metrics"), on_loopback(), seconds=30) as server, contextlib.ExitStack() as held:
        mine = held.enter_context(connect(server.port("health")))
        mine.send(b"GET /hello HTT")
        for _ in range(3 * CONNECTIONS):
            held.enter_context(connect(server.port("metrics"))).send(b"GET")
        until(lambda: len(server._ports[0].connections) == CONNECTIONS)
        mine.send(b"P/1.1\r\n\r\n")
        assert everything(mine).endswith(b"hello\n")


def test_the_oldest_connection_gives_way():
    with serving(on_loopback(), seconds=30) as server, contextlib.ExitStack() as held:
        port = server.port("health")
        first = held.enter_context(connect(port))
        until(lambda: len(server._ports[0].connections) == 1)
        for _ in range(CONNECTIONS):
            held.enter_context(connect(port))
        assert first.recv(1) == b""


def test_a_client_that_resets_harms_nobody(port):
    for request in (b"", b"GET /big HTTP/1.1\r\n\r\n"):
        sock = connect(port)
        sock.sendall(request)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close() sends a reset
        sock.close()
    assert ask(port, "/hello")[0] == 200


def test_many_clients_at_once_are_all_served(port):
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(port, "/hello")[0])) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 12


# Listening


def test_a_taken_port_is_one_clear_line_and_is_tried_again_until_it_is_free(monkeypatch):
    monkeypatch.setattr(httpd, "RETRY_SECONDS", 0.1)
    log = CapturingLogger()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with serving(on_loopback(name="metrics", port=number), on_loopback(), log=log) as server:
            assert server.problems() == (f"metrics port {number}: Address already in use",)
            assert ask(server.port("health"), "/hello")[0] == 200  # the other listener does not care
            threading.Event().wait(0.5)  # several attempts
            taken.close()
            until(lambda: not server.problems())
            assert ask(number, "/hello")[0] == 200
    failed = [call for call in log.calls if call.method_name == "warning"]
    assert [(call.args, call.kwargs["error"]) for call in failed] == [(("listen_failed",), "Address already in use")]


def test_an_address_that_the_host_does_not_have_is_a_problem_in_words():
    with serving(Listener("metrics", lambda: "192.0.2.1", 9793, {})) as server:
        assert server.problems() == ("metrics port 9793: Cannot assign requested address",)


def test_a_listener_waits_for_an_address_that_is_not_known_yet_and_follows_it(monkeypatch):
    monkeypatch.setattr(httpd, "RETRY_SECONDS", 0.05)
    address: list[str | None] = [None]
    with serving(Listener("metrics", lambda: address[0], 0, PAGES)) as server:
        assert server.problems() == ("metrics port 0: not yet listening",)
        address[0] = "127.0.0.1"
        until(lambda: server.port("metrics"))
        assert server.problems() == ()
        first = server.port("metrics")
        address[0] = None  # unknown for a moment, say while our Node is gone: what listens goes on
        threading.Event().wait(0.2)
        assert ask(first, "/hello")[0] == 200
        address[0] = "127.0.0.2"
        until(lambda: server.port("metrics") not in {0, first})
        assert ask(server.port("metrics"), "/hello", address="127.0.0.2")[0] == 200
        with pytest.raises(ConnectionRefusedError):
            connect(first)


def test_an_address_that_becomes_known_is_listened_on_at_once_when_told():
    address: list[str | None] = [None]
    with serving(Listener("metrics", lambda: address[0], 0, PAGES)) as server:
        address[0] = "127.0.0.1"
        server.look_again()
        until(lambda: server.port("metrics"), seconds=httpd.RETRY_SECONDS / 2)
        assert ask(server.port("metrics"), "/hello")[0] == 200


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_an_empty_address_listens_on_both_families(address):
    with serving(Listener("metrics", lambda: "", 0, PAGES)) as server:
        assert ask(server.port("metrics"), "/hello", address=address)[0] == 200


def test_running_out_of_descriptors_costs_no_core_and_passes(monkeypatch):
    monkeypatch.setattr(httpd, "RETRY_SECONDS", 0.2)
    log = CapturingLogger()
    with serving(on_loopback(), log=log) as server:
        number = server.port("health")
        listening = server._ports[0]

        class Exhausted:
            """A double: to run out of descriptors for real would break this very process."""

            def __init__(self, real: socket.socket) -> None:
                self.real = real

            def accept(self):
                raise OSError(24, "Too many open files")

            def __getattr__(self, name: str) -> object:
                return getattr(self.real, name)

        listening.sock = Exhausted(listening.sock)  # type: ignore[assignment]
        with contextlib.suppress(ConnectionResetError):  # by the listener's end, a moment later
            connect(number).close()
        until(lambda: server.problems() == ("health port 0: Too many open files",))
        until(lambda: not server.problems())
        assert ask(server.port("health"), "/hello")[0] == 200
    assert [call.args for call in log.calls if call.method_name == "warning"] == [("accept_failed",)]


def test_stop_closes_everything_at_once():
    with serving(on_loopback()) as server:
        number = server.port("health")
        lingering = connect(number)
        until(lambda: server._ports[0].connections)
        began = time.monotonic()
    assert time.monotonic() - began < 1
    assert lingering.recv(1) == b""
    lingering.close()
    with pytest.raises(ConnectionRefusedError):
        connect(number)


# The pages


@contextlib.contextmanager
def health(status: Status, tick: float = 0.0) -> Iterator[int]:
    board = StatusBoard(lambda: status)
    board.put(("node-7", 4), "conflict", "there is another route")
    with serving(on_loopback(health_pages(board, lambda: tick))) as server:
        yield server.port("health")


def test_livez_is_about_the_loop_s_tick():
    with health(Status(), tick=29) as port:
        assert ask(port, "/livez")[:2] == (200, b"alive\n")
    with health(GOOD, tick=31) as port:
        assert ask(port, "/livez")[:2] == (503, b"not alive: the loop has not ticked for 31 s (allowed: 30)\n")


def test_readyz_gives_one_reason_a_line():
    with health(GOOD) as port:
        assert ask(port, "/readyz")[:2] == (200, b"ready\nremark: 1 peer in state conflict\n")
    with health(but(problems=("metrics port 9793: Address already in use",), settled=False)) as port:
        assert ask(port, "/readyz")[:2] == (
            503,
            (
                b"not ready: no pass over all routes is verified yet\n"
                b"not ready: metrics port 9793: Address already in use\n"
                b"remark: 1 peer in state conflict\n"
            ),
        )


def test_status_is_json_and_200_even_if_not_ready():
    with health(Status()) as port:
        status, body, headers = ask(port, "/status")
        assert (status, headers["Content-Type"]) == (200, "application/json")
        document = msgspec.json.decode(body, type=Status)
        assert not document.ready
        assert [peer.name for peer in document.peers] == ["node-7"]


def test_health_has_no_metrics_and_metrics_no_status():
    with health(GOOD) as port:
        assert ask(port, "/metrics")[0] == 404
    with serving(on_loopback(metrics_pages(Metrics().registry), name="metrics")) as server:
        for path in ("/status", "/readyz", "/livez", "/"):
            assert ask(server.port("metrics"), path)[0] == 404


@pytest.mark.parametrize(
    ("accept", "content_type", "parse"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8", parse_text),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8", parse_text),
        # Prometheus 2.x and 3.x
        (
            "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;q=0.3",
            "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores",
            parse_openmetrics,
        ),
        ("application/openmetrics-text;version=x", "text/plain; version=0.0.4; charset=utf-8", parse_text),
        ("text/plain;version=" + "9" * 5000, "text/plain; version=0.0.4; charset=utf-8", parse_text),
    ],
)
def test_metrics_are_in_the_format_asked_for(accept, content_type, parse):
    metrics = Metrics()
    metrics.ready.set(1)
    with serving(on_loopback(metrics_pages(metrics.registry), name="metrics")) as server:
        status, body, headers = ask(server.port("metrics"), "/metrics", headers={"Accept": accept})
    assert (status, headers["Content-Type"]) == (200, content_type)
    values = {sample.name: sample.value for family in parse(body.decode()) for sample in family.samples}
    assert values["pynet_ready"] == 1


def test_a_defect_of_the_server_costs_one_connection_and_not_the_probes(monkeypatch):
    log = CapturingLogger()
    with serving(on_loopback(), log=log) as server:
        with monkeypatch.context() as patched:
            patched.setattr(httpd, "read_request", lambda _received: 1 // 0)
            assert raw(server.port("health"), b"GET /hello HTTP/1.1\r\n\r\n") == b""
        assert ask(server.port("health"), "/hello")[0] == 200
    assert [call.args for call in log.calls if call.method_name == "exception"] == [("request_failed",)]
