"""Replica URLs as people give them."""

from __future__ import annotations

import pytest

from headrace.errors import UsageError
from headrace.server.gateway.foreign.address import parse_aliases, parse_replica, parse_replicas


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


def test_options_follow_the_url() -> None:
    replica = parse_replica("http://a:1/v1,model=org/x=y,alias=x,weight=2.5,canary=5%,server=vllm")
    assert (replica.name, replica.model, replica.alias) == ("a:1", "org/x=y", "x")
    assert (replica.weight, replica.canary, replica.server) == (2.5, 0.05, "vllm")
    assert parse_replica("http://a:1,canary=0.25").canary == 0.25


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("wait=2", "options are model=, alias=, weight=, canary=, server=, migration="),
        ("weight", "is no option"),
        ("weight=", "is no option"),
        ("", "is no option"),
        ("weight=1,weight=2", "twice"),
        ("weight=0", "0.01 to 100"),
        ("weight=nan", "0.01 to 100"),
        ("weight=two", "0.01 to 100"),
        ("canary=0", "write it like 5%"),
        ("canary=101%", "write it like 5%"),
        ("server=tgx", "known are vllm"),
        ("migration=yes", "use exact, best_effort, off"),
    ],
)
def test_wrong_options_are_told(option: str, problem: str) -> None:
    with pytest.raises(UsageError, match="--replica http://a:1") as caught:
        parse_replica(f"http://a:1,{option}")
    assert problem in str(caught.value)


def test_shares_of_canaries_must_leave_something() -> None:
    with pytest.raises(UsageError, match="120%"):
        parse_replicas(["http://a:1,canary=60%", "http://b:1,canary=60%", "http://c:1"])
    with pytest.raises(UsageError, match="every replica is a canary"):
        parse_replicas(["http://a:1,canary=60%"])


def test_aliases_are_read() -> None:
    assert parse_aliases(["a=b", "c=d=e"]) == {"a": "b", "c": "d=e"}


@pytest.mark.parametrize(
    ("aliases", "problem"),
    [
        (["a"], "write it like"),
        (["a="], "write it like"),
        (["=a"], "write it like"),
        (["a=a"], "write it like"),
        (["a=b", "a=c"], "twice"),
        (["a=b", "b=c"], "b is an alias"),
    ],
)
def test_wrong_aliases_are_told(aliases: list[str], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        parse_aliases(aliases)
