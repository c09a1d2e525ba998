"""Where a server may listen."""

from __future__ import annotations

import socket
from contextlib import suppress

import pytest

from headrace.errors import AddressInUse, UsageError
from headrace.server.address import bind, bind_all, check_exposure, is_loopback, url_of
from headrace.server.settings import ServerConfig


def test_the_default_host_is_this_machine_only():
    assert ServerConfig().host == "127.0.0.1"
    check_exposure(ServerConfig())


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.1", False),
    ],
)
def test_loopback_addresses_are_known(host: str, expected: bool):
    assert is_loopback(host) is expected


def test_a_host_that_others_reach_needs_a_key_or_a_flag():
    with pytest.raises(UsageError, match="--insecure-no-auth"):
        check_exposure(ServerConfig(host="0.0.0.0"))
    check_exposure(ServerConfig(host="0.0.0.0", api_key="k"))
    check_exposure(ServerConfig(host="0.0.0.0", key_file="keys.json"))
    check_exposure(ServerConfig(host="0.0.0.0", insecure_no_auth=True))


def test_a_bound_socket_takes_connections_before_anybody_accepts():
    with bind("127.0.0.1", 0) as listening:
        host, port = listening.getsockname()
        assert url_of(listening) == f"http://127.0.0.1:{port}"
        with socket.create_connection((host, port), timeout=5):
            pass


def test_a_port_in_use_is_named():
    with bind("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(AddressInUse, match=f"127.0.0.1:{port} is in use"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "a b", "x" * 300])
def test_hosts_that_are_not_this_machine_are_refused(host: str):
    with pytest.raises(UsageError, match=r"cannot listen|is not an address"):
        bind(host, 0)


def test_several_sockets_share_a_port_and_nobody_else_gets_it():
    sockets = bind_all("127.0.0.1", 0, 3)
    try:
        port = sockets[0].getsockname()[1]
        assert {each.getsockname()[1] for each in sockets} == {port}
        for number in (1, 2):
            with pytest.raises(AddressInUse):
                bind_all("127.0.0.1", port, number)
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(32)]
        accepted = []
        for each in sockets:
            each.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    accepted.append(each.accept()[0])
        assert len(accepted) == 32
        for each in (*clients, *accepted):
            each.close()
    finally:
        for each in sockets:
            each.close()
