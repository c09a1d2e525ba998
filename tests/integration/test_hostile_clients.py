"""Clients that mean no good, at a gateway in a process of its own: F12 to F16 and F24 to F26.

What a listener does in one loop is in tests/server/gateway (test_http.py, test_streams.py); here it
is seen from outside: memory, descriptors, processor time, and good clients meanwhile.
"""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from http_client import admin_socket, complete, get, metric, stream

from headrace.testing.hostile import hostile_requests
from headrace.testing.server_process import (
    pss_bytes,
    running_server,
    started_server,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from headrace.testing.server_process import ServerProcess

pytestmark = pytest.mark.xdist_group("hostile")

SOON = {
    "HEADRACE_CONSOLE_PORT": "0",
    "HEADRACE_HTTP_HEADER_TIMEOUT": "0.6",
    "HEADRACE_HTTP_BODY_TIMEOUT": "0.6",
    "HEADRACE_HTTP_BODY_GRACE": "0.2",
    "HEADRACE_HTTP_IDLE_TIMEOUT": "0.6",
    "HEADRACE_HTTP_WRITE_TIMEOUT": "0.6",
    "HEADRACE_HTTP_SWEEP_PERIOD": "0.1",
}
STATUS = re.compile(rb"HTTP/1\.1 \d")
POST = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def target(simulated: str, environment: Mapping[str, str]) -> Iterator[ServerProcess]:
    """A server with all its listeners, whose patience is short."""
    with running_server(simulated, environment={**environment, **SOON}, console=True) as running:
        yield running


def dial(port: int, *, receive_bytes: int | None = None) -> socket.socket:
    client = socket.socket()
    if receive_bytes is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    client.settimeout(10)
    client.connect(("127.0.0.1", port))
    return client


def heard(client: socket.socket) -> bytes:
    """All that comes until the end of the connection, however it ends."""
    data = b""
    with suppress(ConnectionResetError):
        while piece := client.recv(1 << 16):
            data += piece
    return data


def gateway_pid(server: ServerProcess) -> int:
    return server.children()["gateway"]


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_idle(server: ServerProcess) -> bool:
    names = ("headrace_engine_running", "headrace_generations_running")
    used = metric(server, "headrace_kv_blocks", state="used")
    return used + sum(metric(server, name) for name in names) == 0


@contextmanager
def steady_stream(server: ServerProcess) -> Iterator[None]:
    """A good client, whose stream must come whole and right whatever happens meanwhile."""
    alone = complete(server, "steady", max_tokens=100, seed=3)[1]["choices"][0]["text"]
    with stream(server, "steady", max_tokens=100, seed=3) as events:
        heard = [next(events)]
        yield
        heard += events
    assert heard.pop() is None
    assert "".join(event["choices"][0]["text"] for event in heard if event) == alone


def test_a_thousand_clients_that_come_and_go_disturb_nobody(target: ServerProcess):
    complete(target, max_tokens=1)
    pid = gateway_pid(target)
    before = descriptors(pid)
    body = b'{"prompt":"x","max_tokens":50}'
    ask = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with steady_stream(target):
        for i in range(1000):
            with dial(target.port) as client:
                client.send((b"", b"GET /li", ask, POST)[i % 4])
    wait_until(lambda: is_idle(target))
    wait_until(lambda: descriptors(pid) <= before)
    assert gateway_pid(target) == pid


@pytest.mark.heavy
def test_a_client_that_stops_reading_costs_bounded_memory_and_then_its_stream(
    target: ServerProcess,
):
    pid = gateway_pid(target)
    before = pss_bytes(pid)
    tokens = metric(target, "headrace_engine_output_tokens_total")
    body = json.dumps(
        {"prompt": "x", "max_tokens": 900, "n": 16, "stream": True, "ignore_eos": True}
    ).encode()
    with ExitStack() as stack:
        stalled = [stack.enter_context(dial(target.port, receive_bytes=2048)) for _ in range(3)]
        for client in stalled:
            client.send(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        with steady_stream(target):
            pass
        wait_until(lambda: is_idle(target))  # given up: 48 x 900 tokens would take far longer
        assert pss_bytes(pid) - before < 12 << 20
    assert metric(target, "headrace_engine_output_tokens_total") - tokens < 48 * 600


@pytest.mark.parametrize("chunked", [False, True])
def test_a_huge_body_is_refused_before_it_is_kept(target: ServerProcess, chunked: bool):
    pid = gateway_pid(target)
    before = pss_bytes(pid)
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 100000000"
    piece = b"x" * 65536
    sent = 0
    with dial(target.port) as client, suppress(ConnectionError):
        client.send(POST + length + b"\r\n\r\n")
        while sent < 100_000_000 and not readable(client):
            client.sendall(b"10000\r\n" + piece + b"\r\n" if chunked else piece)
            sent += len(piece)
        assert client.recv(100).startswith(b"HTTP/1.1 413")
    limit = 8 << 20
    assert sent < limit + (8 << 20)  # and what the sockets hold
    assert pss_bytes(pid) - before < (limit + (4 << 20) if chunked else 2 << 20)


def readable(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return bool(client.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
    finally:
        client.settimeout(10)


def test_a_gzip_bomb_is_refused_unread(target: ServerProcess):
    with dial(target.port) as client:
        client.send(POST + b"Content-Encoding: gzip\r\nContent-Length: 8000000\r\n\r\n\x1f\x8b")
        assert heard(client).startswith(b"HTTP/1.1 415")


def test_slow_clients_are_closed_and_good_ones_served(target: ServerProcess):
    """Half a head, a body by the byte, and idle connections: none outlives its time."""
    pid = gateway_pid(target)
    before = descriptors(pid)
    with ExitStack() as stack, steady_stream(target):
        slow = [stack.enter_context(dial(target.port)) for _ in range(150)]
        for i, client in enumerate(slow):
            client.send((b"", b"GET /live HT", POST + b"Content-Length: 900\r\n\r\n")[i % 3])
        begun = time.monotonic()
        drip = slow[2::3]
        while drip:
            drip = [client for client in drip if send_byte(client)]
            assert time.monotonic() - begun < 5
        for client in slow:
            assert heard(client) in (b"", b"HTTP/1.1 100 Continue\r\n\r\n")
        assert time.monotonic() - begun < 5
    wait_until(lambda: descriptors(pid) <= before + 1)


def send_byte(client: socket.socket) -> bool:
    time.sleep(0.001)
    try:
        return client.send(b" ") == 1 and not readable(client) and not is_closed(client)
    except ConnectionError:
        return False


def is_closed(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    finally:
        client.settimeout(10)


@pytest.mark.heavy
def test_a_flood_past_the_limit_of_descriptors_neither_stops_health_nor_burns(
    simulated: str, environment: Mapping[str, str]
):
    with (
        started_server(simulated, "--port", "0", environment={**environment, **SOON}) as server,
        ExitStack() as stack,
    ):
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (160, 160))  # children have it too
        server.wait_until_ready()
        assert "too few file descriptors" in server.errors
        pid = gateway_pid(server)
        with steady_stream(server):
            held = [stack.enter_context(dial(server.port)) for _ in range(55)]
            for client in held:
                client.send(b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n")
            for _ in range(300):
                stack.enter_context(dial(server.port))
            used = cpu_seconds(pid)
            wait_until(lambda: answers(server, "/health"))
            assert descriptors(pid) < 160
            assert cpu_seconds(pid) - used < 2
        stack.close()
        wait_until(lambda: answers(server, "/v1/models"))
        assert "EMFILE" not in server.errors
        assert "Too many open files" not in server.errors


def answers(server: ServerProcess, path: str) -> bool:
    try:
        return get(server, path)[0] == 200
    except OSError:
        return False


def listeners(server: ServerProcess, environment: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    console = server.output.partition("console    http://")[2].partition("/")[0]
    admin = admin_socket(server, environment)
    return {
        "data port": (f"127.0.0.1:{server.port}", "a"),
        "console": (console, console),
        "admin": (str(admin), "a"),
    }


def test_no_listener_takes_what_is_no_proper_request(
    target: ServerProcess, environment: Mapping[str, str]
):
    """The smuggling set, in front of a request that must not be served (F26)."""
    behind = b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n"
    paths = {"data port": ("/live", "/tokenize"), "console": ("/", "/x"), "admin": ("/state", "/x")}
    for name, (address, host) in listeners(target, environment).items():
        get_path, post_path = paths[name]
        for what, hostile in hostile_requests(host=host, get=get_path, post=post_path).items():
            with connected_to(address) as client, suppress(BrokenPipeError):
                client.sendall(hostile.data + behind)
                client.shutdown(socket.SHUT_WR)
                answer = heard(client)
                assert answer.startswith(b"HTTP/1.1 4"), (name, what, answer[:80])
                assert len(STATUS.findall(answer)) == 1, (name, what)
    assert complete(target, max_tokens=1)[0] == 200


def connected_to(address: str) -> socket.socket:
    if not address.startswith("/"):
        return dial(int(address.rpartition(":")[2]))
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    client.connect(address)
    return client
