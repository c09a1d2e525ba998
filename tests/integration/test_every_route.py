"""Who may ask for what: all routes of all listeners of real servers, by the tables in the code.

A route that is added to a table is tried here without a key, and fails unless it asks for one or is
one of the three of health.
"""

from __future__ import annotations

import http.client
import socket
import stat
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest
from http_client import admin_socket

from headrace.server.admin.plane import AdminPlane
from headrace.server.console.app import build_routes as console_routes
from headrace.server.gateway.app import build_routes
from headrace.server.gateway.foreign.app import build_foreign_routes
from headrace.server.gateway.http.limits import HEALTH_PATHS
from headrace.testing.server_process import running_server, started_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from headrace.testing.server_process import ServerProcess

pytestmark = pytest.mark.xdist_group("routes")

KEY = "sk-only-for-this-test"
SOMETHING = Mock()
NATIVE = build_routes(SOMETHING, SOMETHING, SOMETHING, SOMETHING)
FOREIGN = build_foreign_routes(SOMETHING, SOMETHING, SOMETHING)
CONSOLE = [(each.method, each.path) for each in console_routes(SOMETHING)]
CONSOLE += [("GET", "/api/events")]
ADMIN = [
    (method, path)
    for path, (method, _) in AdminPlane(
        Mock(), gateways=Mock(), journal=Mock(), restarts=Mock(), about=Mock(), clock=Mock()
    )._routes.items()
]


@pytest.fixture(scope="module")
def server(simulated: str, environment: Mapping[str, str]) -> Iterator[ServerProcess]:
    own = {**environment, "HEADRACE_SERVER_API_KEY": KEY, "HEADRACE_CONSOLE_PORT": "0"}
    with running_server(simulated, environment=own, console=True) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(environment: Mapping[str, str]) -> Iterator[ServerProcess]:
    own = {**environment, "HEADRACE_SERVER_API_KEY": KEY}
    nobody = ("--replica", "http://127.0.0.1:9")
    with running_server(*nobody, environment=own, command="gateway") as running:
        yield running


def status(port: int, method: str, path: str, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        body = b"{}" if method == "POST" else None
        connection.request(method, path, body, {"Content-Type": "application/json", **headers})
        return connection.getresponse().status
    finally:
        connection.close()


def test_only_health_is_public() -> None:
    for table in (NATIVE, FOREIGN):
        assert {route.path for route in table if route.public} == HEALTH_PATHS


def test_every_route_of_the_data_port_asks_for_a_key_or_is_of_health(
    server: ServerProcess, gateway: ServerProcess
) -> None:
    for running, table in ((server, NATIVE), (gateway, FOREIGN)):
        for route in table:
            without = status(running.port, route.method, route.path)
            wrong = status(running.port, route.method, route.path, authorization="Bearer sk-x")
            if route.path in HEALTH_PATHS:
                assert {without, wrong} <= {200, 503}, route.path
                continue
            assert (without, wrong) == (401, 401), route.path
            given = status(running.port, route.method, route.path, authorization=f"Bearer {KEY}")
            assert given != 401, route.path


def test_no_verb_of_the_admin_plane_or_the_console_is_on_a_data_port(
    server: ServerProcess, gateway: ServerProcess
) -> None:
    elsewhere = {(method, path) for method, path in (*ADMIN, *CONSOLE) if path != "/metrics"}
    for running, table in ((server, NATIVE), (gateway, FOREIGN)):
        assert not {route.path for route in table} & {path for _, path in elsewhere}
        for method, path in elsewhere:
            asked = path.replace("*", "x")
            assert status(running.port, method, asked, authorization=f"Bearer {KEY}") == 404, path


def test_every_route_of_the_console_asks_for_its_token(server: ServerProcess) -> None:
    place = server.output.partition("console    http://")[2].split()[0]
    address, _, token = place.partition("/#token=")
    port = int(address.rpartition(":")[2])
    for method, path in CONSOLE:
        for headers in ({}, {"authorization": f"Bearer {KEY}"}):
            assert status(port, method, path, **headers) == 401, path
    assert status(port, "GET", "/api/state", authorization=f"Bearer {token}") == 200


def test_the_admin_plane_is_a_socket_of_the_owner_alone(
    server: ServerProcess, environment: Mapping[str, str]
) -> None:
    path = admin_socket(server, environment)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for method, route in ADMIN:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(path))
            head = f"{method} {route.replace('*', 'x')} HTTP/1.1\r\nHost: a\r\n"
            client.send(f"{head}Content-Length: 2\r\n\r\n{{}}".encode())
            answer = client.recv(100)
        assert answer[9:12] in (b"200", b"400", b"404"), (route, answer)


def test_a_gateway_that_others_can_reach_needs_a_key(environment: Mapping[str, str]) -> None:
    arguments = ("--replica", "http://127.0.0.1:9", "--host", "0.0.0.0", "--port", "0")
    with started_server(*arguments, environment=environment, command="gateway") as running:
        assert running.wait(30) == 2
        assert "can be reached from outside and no key is set" in running.errors
