"""Replica URLs as people give them."""

from __future__ import annotations

import pytest

from headrace.errors import UsageError
from headrace.server.gateway.foreign.address import parse_replica, parse_replicas


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://127.0.0.1:8001", "127.0.0.1:8001"),
        ("http://127.0.0.1:8001/", "127.0.0.1:8001"),
        ("http://Host.example:8001/v1", "host.example:8001"),
        ("http://host.example", "host.example:80"),
        ("https://host.example/pool/a/v1/", "host.example:443/pool/a"),
        ("http://[::1]:8001", "[::1]:8001"),
    ],
)
def test_a_url_names_a_replica(url: str, name: str) -> None:
    assert parse_replica(url).name == name


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("127.0.0.1:8001", "does not begin with http"),
        ("localhost", "does not begin with http"),
        ("ftp://host:21", "does not begin with http"),
        ("http://", "does not begin with http"),
        ("http://:8001", "no host"),
        ("http://host:99999", "ort"),
        ("http://host:eight", "ort"),
        ("http://host:0", "port 0"),
        ("http://host:80/v1?x=1", "query"),
        ("http://host:80/v1#x", "query or fragment"),
        ("http://user:secret@host:80", "password"),
        ("http://ho st:80", "no host"),
        ("http://host:80/a b", "path"),
        ("http://host:80/a\r\nx: y", ""),
    ],
)
def test_what_is_no_url_is_refused_with_the_way_to_write_it(url: str, problem: str) -> None:
    with pytest.raises(UsageError, match=r"write it like http://127\.0\.0\.1:8001") as caught:
        parse_replica(url)
    assert problem in str(caught.value)


def test_a_replica_is_named_once() -> None:
    with pytest.raises(UsageError, match="same server as http://a:1"):
        parse_replicas(["http://a:1", "http://b:1", "http://a:1/v1"])


def test_no_replica_is_refused() -> None:
    with pytest.raises(UsageError, match="--replica http://HOST:PORT"):
        parse_replicas([])
