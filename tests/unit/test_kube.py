"""Credentials as they rotate, requests as they fail: against a server on loopback, with TLS where it matters."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
import yaml
from pynet.drivers import credentials as creds
from pynet.drivers.apiwire import MalformedError, TruncatedError
from pynet.drivers.credentials import Access, Credentials, CredentialsError
from pynet.drivers.kube import Api, ApiError
from pynet.drivers.tls import tls_context
from pynet.observe.cluster import KUBERNETES_ENDPOINTS, SERVICE_CIDRS, kubernetes_endpoints, list_service_cidrs

from tests.support.fake_api import JSON, NODES, PROTOBUF, Exchange, FakeApi

SECRET = "s3cr3t-t0ken"
WHERE = "/api/v1/thing"


@pytest.fixture
def fake():
    with FakeApi() as server:
        server.others[WHERE] = {"kind": "Thing", "n": 1}
        yield server


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    """A CA; a server's certificate for 127.0.0.1, ::1 and api.example; a client's certificate."""
    folder = tmp_path_factory.mktemp("keys")
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    make = [[*new, "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.crt"]]
    for name, names in (("server", "IP:127.0.0.1,IP:::1,DNS:api.example"), ("client", "DNS:client")):
        extra = ["-addext", f"subjectAltName={names}", "-addext", "basicConstraints=critical,CA:FALSE"]
        signed = ["-CA", "ca.crt", "-CAkey", "ca.key"]
        make.append([*new, "-subj", f"/CN={name}", *signed, *extra, "-keyout", f"{name}.key", "-out", f"{name}.crt"])
    make.append([*new, "-subj", "/CN=other-ca", "-keyout", "other.key", "-out", "other.crt"])
    for arguments in make:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def secure(keys):
    with FakeApi(tls=(keys / "server.crt", keys / "server.key")) as server:
        server.others[WHERE] = {"kind": "Thing", "n": 1}
        yield server


def of(access: Access) -> Credentials:
    return Credentials(lambda: access)


def api_of(server: FakeApi, **access) -> Api:
    return Api(of(Access(server.url, **access)))


def tokens(folder: Path, text: str = SECRET) -> Path:
    path = folder / "token"
    path.write_text(text + "\n")
    return path


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


# ---- credentials


def test_service_account_of_a_pod(monkeypatch, tmp_path):
    tokens(tmp_path)
    ca = "-----BEGIN CERTIFICATE-----"
    (tmp_path / "ca.crt").write_text(ca)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    access = creds.in_cluster(folder=tmp_path).current()
    assert (access.server, access.token, access.ca) == ("https://10.96.0.1:443", SECRET, ca)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    assert creds.in_cluster(folder=tmp_path).current().server == "https://[fd00::1]:443"
    assert creds.in_cluster(folder=tmp_path, server="https://api:6443/").current().server == "https://api:6443"


def test_outside_of_a_pod_the_error_says_what_to_give(monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(CredentialsError, match=r"--kubeconfig FILE, or --api-server URL"):
        creds.in_cluster()


@pytest.mark.parametrize(
    "url", ["api:6443", "ftp://api", "https://", "https://fd00::1:6443", "https://a:b@c", "https://h:99999", ""]
)
def test_wrong_server_is_refused_with_what_is_allowed(url):
    with pytest.raises(CredentialsError, match=r"want http\(s\)://HOST"):
        creds.from_token_files(url)


def test_token_is_read_again_each_minute_and_after_a_refusal(tmp_path):
    path = tokens(tmp_path, "one")
    clock = Clock()
    source = creds.from_token_files("http://h", path)
    source._clock = clock
    first = source.current()
    tokens(tmp_path, "two")
    clock.now += 59
    assert source.current().token == "one"
    clock.now += 2
    assert source.current().token == "two"
    tokens(tmp_path, "three")
    assert source.refresh(first).token == "two"  # what was refused is not what we use now
    assert source.refresh(source.current()).token == "three"


def test_token_that_vanishes_leaves_the_last_one_in_use(tmp_path):
    path = tokens(tmp_path)
    source = creds.from_token_files("http://h", path)
    first = source.current()
    path.unlink()
    assert source.refresh(first) == first
    assert source.error == f"token file {path}: No such file or directory"
    tokens(tmp_path, "back")
    assert source.refresh(first).token == "back"
    assert source.error == ""


@pytest.mark.parametrize(
    ("text", "words"), [("", "empty"), ("a b", "characters"), ("a\x01b", "characters"), ("é", "characters")]
)
def test_token_that_no_header_can_carry_is_refused_and_not_shown(tmp_path, text, words):
    with pytest.raises(CredentialsError, match=words) as caught:
        creds.from_token_files("http://h", tokens(tmp_path, text)).current()
    assert "a b" not in str(caught.value)


def test_secrets_are_in_no_representation():
    access = Access("https://h", token=SECRET, key="KEY-" + SECRET, certificate=SECRET)
    assert SECRET not in f"{access!r} {access} {[access]}"


def test_expired_credentials_are_loaded_again_but_not_all_the_time():
    loads = []

    def load():
        loads.append(1)
        return Access("http://h", token=f"t{len(loads)}", expires=time.time() + 5)

    clock = Clock()
    source = Credentials(load, pause=10, clock=clock)
    assert [source.current().token for _ in range(3)] == ["t1"] * 3
    clock.now += 11
    assert [source.current().token for _ in range(3)] == ["t2"] * 3
    assert source.refresh(source.current()).token == "t2"
    clock.now += 11
    assert source.refresh(source.current()).token == "t3"


# ---- kubeconfig, by the child process


def kubeconfig(folder: Path, cluster: dict, user: dict | None) -> Path:
    path = folder / "kubeconfig"
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}] if user is not None else [],
    }
    path.write_text(yaml.safe_dump(document))
    return path


def b64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def plugin(folder: Path, script: str) -> dict:
    path = folder / "plugin"
    path.write_text(f"#!{sys.executable}\n{script}\n")
    path.chmod(0o755)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(path), "interactiveMode": "Never"}}


def credential(**status) -> str:
    document = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
    return f"import json; print({json.dumps(document)!r})"


def test_kubeconfig_with_embedded_data(tmp_path, keys):
    cluster = {
        "server": "https://api:6443/",
        "certificate-authority-data": b64(keys / "ca.crt"),
        "tls-server-name": "api.example",
    }
    user = {"client-certificate-data": b64(keys / "client.crt"), "client-key-data": b64(keys / "client.key")}
    path = kubeconfig(tmp_path, cluster, user)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    access = creds.from_kubeconfig(path, scratch=scratch).current()
    assert access == Access(
        "https://api:6443",
        ca=(keys / "ca.crt").read_text(),
        certificate=(keys / "client.crt").read_text(),
        key=(keys / "client.key").read_text(),
        tls_server_name="api.example",
    )
    assert list(scratch.iterdir()) == []


def test_kubeconfig_with_a_token_file_beside_it(tmp_path):
    tokens(tmp_path, "one")
    path = kubeconfig(tmp_path, {"server": "https://api:6443", "insecure-skip-tls-verify": True}, {"tokenFile": "token"})
    source = creds.from_kubeconfig(path)
    first = source.current()
    assert (first.token, first.insecure, first.reread) == ("one", True, 60)
    tokens(tmp_path, "two")
    source._pause = 0
    assert source.refresh(first).token == "two"


def test_exec_plugin_gives_token_and_expiry(tmp_path):
    user = plugin(tmp_path, credential(token=SECRET, expirationTimestamp="2099-01-01T00:00:00Z"))
    access = creds.from_kubeconfig(kubeconfig(tmp_path, {"server": "https://api:6443"}, user)).current()
    assert (access.token, access.expires) == (SECRET, 4070908800.0)


def test_exec_plugin_that_fails_is_said_in_one_line(tmp_path):
    user = plugin(tmp_path, "import sys; sys.exit('no ticket\\nlog in first')")
    with pytest.raises(CredentialsError) as caught:
        creds.from_kubeconfig(kubeconfig(tmp_path, {"server": "https://api:6443"}, user)).current()
    assert "no ticket log in first" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cluster", "user", "words"),
    [
        ({"server": "https://api", "proxy-url": "http://proxy"}, {"token": "t"}, "proxy-url is not supported"),
        ({"server": "https://api"}, {"username": "u", "password": SECRET}, "user name and password are not supported"),
        ({"server": "https://api", "certificate-authority": "missing.crt"}, {"token": "t"}, "missing.crt"),
        ({"server": "ftp://api"}, {"token": "t"}, "want http"),
    ],
)
def test_kubeconfig_that_cannot_be_used_says_why(tmp_path, cluster, user, words):
    with pytest.raises(CredentialsError, match=words) as caught:
        creds.from_kubeconfig(kubeconfig(tmp_path, cluster, user)).current()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b"{", "expected"),
        (b"a: b: c", "line 1, column 5"),
        (b"[]", "not a kubeconfig"),
        (b"hello", "not a kubeconfig"),
        (b"clusters: 5", "not a kubeconfig"),
        (b"\0\xff", "not text"),
    ],
)
def test_file_that_is_no_kubeconfig(tmp_path, text, words):
    path = tmp_path / "kubeconfig"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(CredentialsError, match=f"{path}: .*{words}"):
        creds.from_kubeconfig(path).current()


def test_folder_is_no_kubeconfig(tmp_path):
    with pytest.raises(CredentialsError, match=f"{tmp_path}: not a file"):
        creds.from_kubeconfig(tmp_path).current()


def test_agent_process_does_not_import_the_kubernetes_package(tmp_path):
    path = kubeconfig(tmp_path, {"server": "http://api"}, {"token": "t"})
    script = (
        "import sys; from pathlib import Path; from pynet.drivers import credentials; from pynet.observe import cluster, nodes;"
        f"credentials.from_kubeconfig(Path({str(path)!r})).current(); sys.exit('kubernetes' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# ---- TLS


def test_tls_with_the_clusters_ca(secure, keys):
    assert api_of(secure, ca=(keys / "ca.crt").read_text()).get_json(WHERE) == {"kind": "Thing", "n": 1}


def test_server_of_another_ca_is_not_talked_to_and_the_reason_is_said_once(secure, keys):
    with pytest.raises(ApiError) as caught:
        api_of(secure, ca=(keys / "other.crt").read_text(), token=SECRET).get_json(WHERE)
    assert (caught.value.code, caught.value.status) == ("tls", 0)
    assert str(caught.value).startswith(f"{secure.url}: TLS: certificate verify failed: ")
    assert not re.search(r"SSL|_ssl\.c|tls", str(caught.value))
    assert secure.requests == []


def test_server_name_of_the_kubeconfig_is_the_one_that_counts(secure, keys):
    ca = (keys / "ca.crt").read_text()
    assert api_of(secure, ca=ca, tls_server_name="api.example").get_json(WHERE)
    with pytest.raises(ApiError, match="certificate"):
        api_of(secure, ca=ca, tls_server_name="other.example").get_json(WHERE)


def test_insecure_asks_for_no_certificate(secure):
    assert api_of(secure, insecure=True).get_json(WHERE)


def test_client_certificate_is_shown_and_never_on_a_disk(secure, keys, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    secure._server.socket.context.load_verify_locations(keys / "ca.crt")
    secure._server.socket.context.verify_mode = 2
    pem = {"certificate": (keys / "client.crt").read_text(), "key": (keys / "client.key").read_text()}
    assert api_of(secure, ca=(keys / "ca.crt").read_text(), **pem).get_json(WHERE)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ApiError):
        api_of(secure, ca=(keys / "ca.crt").read_text()).get_json(WHERE)


def test_only_the_clusters_ca_is_trusted_and_no_file_stays_open(keys):
    pem = {
        name: (keys / file).read_text()
        for name, file in (("ca", "ca.crt"), ("certificate", "client.crt"), ("key", "client.key"))
    }
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert tls_context(Access("https://h", **pem)).cert_store_stats()["x509"] == 1
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert tls_context(Access("http://h", **pem)) is None


@pytest.mark.parametrize(
    "access", [{"ca": "nonsense"}, {"certificate": SECRET, "key": SECRET}, {"certificate": "é", "key": "ü"}]
)
def test_wrong_pem_is_one_line_without_the_secret(access):
    api = Api(of(Access("https://127.0.0.1:1", **access)))
    with pytest.raises(ApiError) as caught:
        api.get_json(WHERE)
    assert caught.value.code == "credentials"
    assert SECRET not in str(caught.value)


def test_a_ca_file_without_a_certificate_is_named(tmp_path):
    path = tmp_path / "ca.crt"
    path.write_text(SECRET)
    with pytest.raises(creds.CredentialsError) as caught:
        creds.from_token_files("https://127.0.0.1:1", None, path).current()
    assert str(caught.value) == f"CA file {path}: no certificate in PEM"


def test_new_ca_is_read_after_a_handshake_that_failed(secure, keys, tmp_path):
    path = tmp_path / "ca.crt"
    path.write_text((keys / "other.crt").read_text())
    api = Api(creds.from_token_files(secure.url, None, path))
    for _ in range(2):
        with pytest.raises(ApiError, match="TLS"):
            api.get_json(WHERE)
        path.write_text((keys / "ca.crt").read_text())
    assert api.get_json(WHERE)


def test_new_ca_file_means_new_connections(secure, keys, tmp_path):
    path = tmp_path / "ca.crt"
    path.write_text((keys / "other.crt").read_text())
    source = creds.from_token_files(secure.url, None, path)
    source._clock = clock = Clock()
    api = Api(source)
    source.current()
    path.write_text((keys / "ca.crt").read_text())
    clock.now += 61
    assert api.get_json(WHERE)
    path.write_text((keys / "other.crt").read_text())
    clock.now += 61
    with pytest.raises(ApiError, match="TLS"):
        api.get_json(WHERE)


# ---- requests


def test_requests_carry_token_and_type_and_are_counted(fake):
    counted = []
    api = Api(of(Access(fake.url, token=SECRET)), on_request=lambda verb, code: counted.append((verb, code)))
    fake.script("post", lambda e: e.answer(201, b'{"made": 1}'))
    fake.script("patch", lambda e: e.answer(200, b"{}"))
    assert api.get_json(WHERE) == {"kind": "Thing", "n": 1}
    assert api.post_json("/events", {"a": 1}) == {"made": 1}
    assert api.patch_json("/node/status", {"b": 2}, "application/strategic-merge-patch+json") == {}
    with pytest.raises(ApiError, match="/nowhere not found"):
        api.get_json("/nowhere")
    assert counted == [("get", "200"), ("post", "201"), ("patch", "200"), ("get", "404")]
    assert {request.token for request in fake.requests} == {SECRET}
    assert [request.headers.get("content-type") for request in fake.requests[1:3]] == [
        JSON,
        "application/strategic-merge-patch+json",
    ]
    assert json.loads(fake.requests[2].body) == {"b": 2}


def test_path_of_the_servers_url_comes_first(fake):
    fake.others["/k8s/clusters/c" + WHERE] = {"n": 2}
    assert Api(of(Access(fake.url + "/k8s/clusters/c"))).get_json(WHERE) == {"n": 2}


def test_one_connection_serves_many_requests(fake):
    api = api_of(fake)
    ports = set()

    def note(exchange: Exchange):
        ports.add(exchange.client_address[1])
        exchange.answer(200, b"{}")

    fake.script("get", *[note] * 5)
    for _ in range(5):
        api.get_json(WHERE)
    assert len(ports) == 1


def test_refused_token_is_read_again_and_the_request_made_once_more(fake, tmp_path):
    path = tokens(tmp_path, "old")
    api = Api(creds.from_token_files(fake.url, path))
    fake.tokens = {"old"}
    assert api.get_json(WHERE)
    fake.tokens = {"new"}
    tokens(tmp_path, "new")
    assert api.get_json(WHERE)
    assert [request.token for request in fake.requests] == ["old", "old", "new"]
    fake.tokens = {"newer"}
    with pytest.raises(ApiError) as caught:
        api.get_json(WHERE)
    assert caught.value.status == 401
    assert str(caught.value) == "401: Unauthorized: our credentials are not, or no longer, accepted"
    assert len(fake.requests) == 4
    path.unlink()
    with pytest.raises(
        ApiError, match=rf"accepted; they could not be read again: token file {path}: No such file or directory$"
    ):
        api.get_json(WHERE)


def test_refusal_is_the_servers_own_words_in_either_encoding(fake):
    api = api_of(fake)
    fake.script("get", lambda e: e.refuse(403, "Forbidden", "nodes is forbidden:\n  no rights"))
    with pytest.raises(ApiError) as caught:
        api.get_json(WHERE)
    assert (caught.value.status, caught.value.reason) == (403, "nodes is forbidden: no rights")
    fake.script("list", lambda e: e.refuse(403, "Forbidden", "in protobuf"))
    with pytest.raises(ApiError, match="in protobuf"):
        api.open_stream("list", NODES, accept=PROTOBUF, read_timeout=5)
    fake.script("get", lambda e: e.answer(500, b"<html>" + b"x" * 100_000, "text/html"))
    with pytest.raises(ApiError, match="500: Internal Server Error"):
        api.get_json(WHERE)


@pytest.mark.parametrize(
    ("headers", "status", "seconds"),
    [
        ({"Retry_After": "7"}, 0, 7),
        ({}, 3, 3),
        ({"Retry_After": "99999"}, 0, 60),
        ({"Retry_After": "tomorrow"}, 2, 2),
        ({}, 0, 0),
    ],
)
def test_retry_after_is_taken_from_header_or_status_and_bounded(fake, headers, status, seconds):
    fake.script("get", lambda e: e.refuse(429, "TooManyRequests", "slow down", status, **headers))
    with pytest.raises(ApiError) as caught:
        api_of(fake).get_json(WHERE)
    assert (caught.value.status, caught.value.retry_after) == (429, seconds)


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_redirect_is_not_followed(fake, code):
    with FakeApi() as elsewhere:
        fake.script("get", lambda e: e.answer(code, b"", Location=elsewhere.url + WHERE))
        with pytest.raises(ApiError, match=f"redirected to 127.0.0.1:{elsewhere.port}: not followed"):
            api_of(fake, token=SECRET).get_json(WHERE)
        assert elsewhere.requests == []


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize(
    ("server", "code", "words"),
    [
        (lambda: f"http://127.0.0.1:{closed_port()}", "refused", "Connection refused"),
        (lambda: "http://no-such-host.invalid", "dns", "not resolved"),
    ],
)
def test_server_that_is_not_there(server, code, words):
    counted = []
    api = Api(of(Access(server(), token=SECRET)), on_request=lambda *labels: counted.append(labels))
    with pytest.raises(ApiError, match=words) as caught:
        api.get_json(WHERE)
    assert (caught.value.status, caught.value.code) == (0, code)
    assert counted == [("get", code)]
    assert SECRET not in repr(caught.value)


def test_connection_that_never_comes_about_is_given_up(monkeypatch):
    # A backlog that is full: SYNs are dropped, as by a firewall.
    monkeypatch.setattr("pynet.drivers.kube.CONNECT_TIMEOUT", 0.2)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        fill = [socket.socket() for _ in range(3)]
        for each in fill:
            each.setblocking(False)
            each.connect_ex(server.getsockname())
        with pytest.raises(ApiError, match="no connection within") as caught:
            Api(of(Access(f"http://127.0.0.1:{server.getsockname()[1]}"))).get_json(WHERE)
        for each in fill:
            each.close()
    assert caught.value.code == "timeout"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (lambda e: e.reset(), "broken"),
        (lambda e: e.cut(), "broken"),
        (lambda e: e.hang(), "timeout"),
        (
            lambda e: (
                e.send_response(200),
                e.send_header("Content-Length", "9"),
                e.end_headers(),
                e.wfile.write(b"{}"),
                e.cut(),
            ),
            "broken",
        ),
        (lambda e: e.answer(200, b"{nope"), "broken"),
        (lambda e: e.answer(200, b" " * (5 << 20)), "broken"),
        (lambda e: (e.wfile.write(b"garbage\r\n\r\n"), e.cut()), "broken"),
    ],
)
def test_answer_that_breaks_is_an_api_error(fake, monkeypatch, fault, code):
    monkeypatch.setattr("pynet.drivers.kube.READ_TIMEOUT", 0.2)
    fake.script("get", fault)
    with pytest.raises(ApiError) as caught:
        api_of(fake).get_json(WHERE)
    assert (caught.value.status, caught.value.code) == (0, code)


def test_peer_addresses_are_those_really_connected(fake):
    api = api_of(fake)
    assert api.peer_addresses() == set()
    api.get_json(WHERE)
    assert api.peer_addresses() == {socket.inet_aton("127.0.0.1")}


def test_ipv6_server_and_its_address():
    with FakeApi(family=socket.AF_INET6) as server:
        server.others[WHERE] = {"n": 6}
        api = api_of(server)
        assert api.get_json(WHERE) == {"n": 6}
        assert api.peer_addresses() == {socket.inet_pton(socket.AF_INET6, "::1")}


# ---- streams


@pytest.fixture
def stream(fake):
    opened = []

    def open_one(*faults):
        fake.script("list", *faults)
        opened.append(api_of(fake).open_stream("list", NODES, accept=PROTOBUF, read_timeout=5, gzip=True))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


def test_stream_is_inflated_as_it_arrives(stream):
    data = os.urandom(100_000) + b"x" * 3_000_000
    packed = gzip.compress(data)

    def slow(exchange: Exchange):
        exchange.begin(PROTOBUF, Content_Encoding="gzip")
        exchange.chunk(packed[:50_000])
        release.wait(5)
        exchange.chunk(packed[50_000:])
        exchange.finish_chunks()

    release = threading.Event()
    opened = stream(slow)
    chunks = opened.chunks()
    got = next(chunks)
    release.set()
    pieces = [got, *chunks]
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= 256 << 10


def gzip_of(data: bytes) -> bytes:
    return gzip.compress(data)


@pytest.mark.parametrize(
    ("packed", "error"),
    [
        (gzip_of(b"x" * 9999)[:-9], TruncatedError),
        (b"", TruncatedError),
        (b"no gzip at all", MalformedError),
        (gzip_of(b"y")[:-4] + b"0000", MalformedError),
    ],
)
def test_gzip_cut_short_or_damaged_is_malformed(stream, packed, error):
    opened = stream(lambda e: e.answer(200, packed, PROTOBUF, Content_Encoding="gzip"))
    with pytest.raises(error):
        b"".join(opened.chunks())


def test_encoding_that_nobody_asked_for_is_malformed(stream):
    opened = stream(lambda e: e.answer(200, b"x", PROTOBUF, Content_Encoding="br"))
    with pytest.raises(MalformedError, match="br"):
        next(opened.chunks())


def test_chunked_stream_that_ends_without_its_last_chunk_is_broken(stream):
    opened = stream(lambda e: (e.begin(PROTOBUF), e.chunk(b"abc"), e.cut()))
    with pytest.raises(ApiError) as caught:
        b"".join(opened.chunks())
    assert caught.value.code == "broken"


def test_body_shorter_than_promised_is_broken(stream):
    opened = stream(lambda e: (e.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n1234"), e.cut()))
    with pytest.raises(ApiError, match="5 bytes early"):
        b"".join(opened.chunks())


@pytest.mark.parametrize("chunked", [False, True])
def test_stream_read_to_its_end_leaves_its_connection_to_the_next(fake, chunked):
    api = api_of(fake)
    ports = set()

    def note(exchange: Exchange):
        ports.add(exchange.client_address[1])
        if chunked:
            exchange.begin(PROTOBUF)
            exchange.chunk(b"abc")
            exchange.finish_chunks()
        else:
            exchange.answer(200, b"abc", PROTOBUF)

    fake.script("list", *[note] * 3)
    for _ in range(3):
        opened = api.open_stream("list", NODES, accept=PROTOBUF, read_timeout=5)
        assert b"".join(opened.chunks()) == b"abc"
        opened.close()
    assert len(ports) == 1


@pytest.mark.parametrize("tls", [False, True])
def test_stream_is_broken_off_from_another_thread_at_once(request, tls):
    server = request.getfixturevalue("secure" if tls else "fake")
    reading = threading.Event()

    def quiet(exchange: Exchange):
        exchange.begin(PROTOBUF)
        exchange.chunk(b"abc")
        exchange.hang()

    server.script("watch", quiet)
    api = api_of(server, insecure=True) if tls else api_of(server)
    opened = api.open_stream("watch", NODES + "?watch=1", accept=PROTOBUF, read_timeout=30)
    failures = []

    def read():
        try:
            for _ in opened.chunks():
                reading.set()
        except ApiError as error:
            failures.append(error.code)

    thread = threading.Thread(target=read)
    thread.start()
    assert reading.wait(5)
    server.script("get", lambda e: e.answer(200, b"{}"))
    began = time.monotonic()
    api.interrupt()
    thread.join(5)
    assert not thread.is_alive()
    assert time.monotonic() - began < 1
    assert failures == ["broken"]
    opened.close()
    assert api.get_json(WHERE) == {}  # requests that are no streams go on


def test_waiting_for_headers_is_broken_off_too(fake):
    asked = threading.Event()
    fake.script("watch", lambda e: (asked.set(), e.hang()))
    api = api_of(fake)
    failures = []

    def ask():
        try:
            api.open_stream("watch", NODES + "?watch=1", accept=PROTOBUF, read_timeout=30)
        except ApiError as error:
            failures.append(error.code)

    thread = threading.Thread(target=ask)
    thread.start()
    assert asked.wait(5)
    api.interrupt()
    thread.join(5)
    assert failures == ["broken"]


def test_other_requests_are_not_broken_off_with_the_streams(fake):
    asked, go_on = threading.Event(), threading.Event()
    fake.script("get", lambda e: (asked.set(), go_on.wait(5), e.answer(200, b'{"n": 3}')))
    api = api_of(fake)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(api.get_json(WHERE)))
    thread.start()
    assert asked.wait(5)
    api.interrupt()
    go_on.set()
    thread.join(5)
    assert answers == [{"n": 3}]


# ---- rare objects


def test_service_ranges(fake):
    fake.others[SERVICE_CIDRS] = {
        "items": [{"spec": {"cidrs": ["10.96.0.0/16", "fd00:96::/112"]}}, {"spec": {"cidrs": ["10.97.0.0/16"]}}]
    }
    assert list_service_cidrs(api_of(fake)) == ["10.96.0.0/16", "fd00:96::/112", "10.97.0.0/16"]
    fake.others[SERVICE_CIDRS] = {"items": None}
    assert list_service_cidrs(api_of(fake)) == []


def test_endpoints_of_the_api_servers(fake):
    fake.others[KUBERNETES_ENDPOINTS] = {
        "endpoints": [{"addresses": ["192.0.2.1"]}, {"addresses": ["192.0.2.2"], "conditions": {}}]
    }
    assert kubernetes_endpoints(api_of(fake)) == ["192.0.2.1", "192.0.2.2"]
    fake.others[KUBERNETES_ENDPOINTS] = {"endpoints": None}
    assert kubernetes_endpoints(api_of(fake)) == []


@pytest.mark.parametrize("code", [403, 404])
def test_objects_that_are_not_shown_are_absent(fake, code):
    fake.script("get", *[lambda e: e.refuse(code, "No", "no")] * 2)
    assert list_service_cidrs(api_of(fake)) is None
    assert kubernetes_endpoints(api_of(fake)) == []


def test_objects_that_fail_to_be_read_are_not_absent(fake):
    fake.script("get", lambda e: e.refuse(500, "No", "no"), lambda e: e.answer(200, b'{"items": 5}'))
    with pytest.raises(ApiError, match="500"):
        list_service_cidrs(api_of(fake))
    with pytest.raises(ApiError, match="servicecidrs"):
        list_service_cidrs(api_of(fake))


def test_access_survives_the_way_through_json():
    access = Access("https://h", token="t", expires=1.5, tls_server_name="x")
    assert msgspec.json.decode(msgspec.json.encode(access), type=Access) == access
