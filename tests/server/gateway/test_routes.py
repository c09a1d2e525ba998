"""Who may come in where: every route, without a key and with tricks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from gateway_serving import CHAT, on_both_loops, serving

from headrace.server.key_file import KeyBook, KeyEntry, read_key_file, write_key_file
from headrace.server.keys import KEY_BYTES, digest_of, new_key, open_keys, prefix_of
from headrace.testing.async_test import async_test
from headrace.types import FinishReason, PriorityClass

if TYPE_CHECKING:
    from pathlib import Path

    from gateway_serving import Served

    from headrace.model.text import TextModel
    from headrace.server.gateway.routes import Route
    from headrace.types import Request

KEY = "sk-test"
PEPPER = "ab" * 32
PUBLIC = {"/live", "/ready", "/health"}
LONG = [{"role": "user", "content": "one two three four " * 20}]
BODY = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "tokens": [40]}


def routes(served: Served) -> tuple[Route, ...]:
    front = served.gateway.listener._application
    return front._routes.routes  # type: ignore[attr-defined]


@on_both_loops
async def test_every_route_that_is_not_public_needs_a_key(text: TextModel) -> None:
    async with serving(text, keys=[KEY]) as served:
        found = routes(served)
        assert {route.path for route in found if route.public} == PUBLIC
        for route in found:
            for method in (route.method, "HEAD", "OPTIONS", "PUT"):
                answer = await served.request(method, route.path, BODY)
                if route.public:
                    assert answer.status != 401, route.path
                    continue
                assert answer.status == 401, (method, route.path)
                assert answer.headers["www-authenticate"] == "Bearer"
                if method != "HEAD":
                    assert answer.error["code"] == "invalid_api_key"
                    assert answer.error["type"] == "authentication_error"
        assert served.replica.submitted == []


TRICKS = [
    "//v1/models", "/v1//models", "/v1/models/", "/./v1/models", "/live/../v1/models",
    "/v1/models%2f", "/%761/models", "/v1/models;a=b", "/v1/models?x=/live", "/V1/models",
    "/live/", "/live%00", "/live/v1/models", "/nothing", "/v1/models/..%2f..%2flive", "/v1/models#",
    "/admin", "/v1/chat/completions/", "/docs", "/openapi.json",
]  # fmt: skip


@on_both_loops
async def test_no_spelling_of_a_path_gets_round_the_key(text: TextModel) -> None:
    async with serving(text, keys=[KEY]) as served:
        for path in TRICKS:
            for method in ("GET", "POST", "OPTIONS"):
                assert (await served.request(method, path)).status == 401, (method, path)


@on_both_loops
async def test_a_host_field_changes_nothing(text: TextModel) -> None:
    async with serving(text, keys=[KEY]) as served:
        for host in (b"a/live?", b"a/?", b"a#", b"a\\live", b"a,b", b"a b"):
            raw = await served.raw(
                b"GET /v1/models HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n"
            )
            assert raw.startswith(b"HTTP/1.1 400"), host


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer {KEY}"},
        {"x_api_key": KEY},
        {"authorization": f"Bearer other{KEY}"[:0] + f"Bearer {KEY} "},
    ],
)
@async_test
async def test_a_key_is_taken_from_either_field(text: TextModel, headers: dict[str, str]) -> None:
    async with serving(text, keys=["other", KEY]) as served:
        assert (await served.request("GET", "/v1/models", **headers)).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": KEY},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": f"Basic {KEY}"},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": f"Bearer {KEY[:-1]}"},
        {"authorization": "Bearer k\xe9y"},
        {"x_api_key": ""},
        {"x_api_key": "wrong"},
        {"cookie": KEY},
    ],
)
@async_test
async def test_a_wrong_key_is_refused(text: TextModel, headers: dict[str, str]) -> None:
    async with serving(text, keys=[KEY]) as served:
        assert (await served.request("GET", "/v1/models", **headers)).status == 401


@async_test
async def test_a_request_without_a_key_is_refused_before_its_body_is_read(text: TextModel) -> None:
    async with serving(text, keys=[KEY]) as served:
        client = await served.connect()
        client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 8000000\r\n\r\n"
        )
        answer = await client.answer("POST")
        assert (answer.status, answer.headers["connection"]) == (401, "close")


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    write_key_file(
        path,
        KeyBook(
            pepper=PEPPER,
            cache_secret="cd" * 32,
            keys=(
                entry("one", "red"),
                entry("two", "red", highest=PriorityClass.BATCH),
                entry("three", "blue"),
                entry("boss", "boss", trusted=True),
                entry("limited", "red", max_concurrent=1),
                entry("gone", "red", revoked=1),
            ),
        ),
    )
    return path


def key_of(name: str) -> str:
    return new_key(name.encode().ljust(KEY_BYTES, b"."))


def entry(name: str, tenant: str, **fields: object) -> KeyEntry:
    key = key_of(name)
    return KeyEntry(
        name=name,
        tenant=tenant,
        hmac=digest_of(key, PEPPER),
        prefix=prefix_of(key),
        created=0,
        **fields,  # type: ignore[arg-type]
    )


async def asked_by(served: Served, name: str, **fields: str) -> Request:
    """Ask with a key; return the request that reaches the replica."""
    client = await served.connect()
    client.ask("POST", CHAT, {"messages": LONG}, authorization=bearer(name), **fields)
    return await served.replica.next_request()


def bearer(name: str) -> str:
    return f"Bearer {key_of(name)}"


@async_test
async def test_a_tenant_shares_its_blocks_with_nobody_else(text: TextModel, key_file: Path) -> None:
    async with serving(text, keys=open_keys((), key_file)) as served:
        one, two, three = [await asked_by(served, name) for name in ("one", "two", "three")]
        assert one.prompt == two.prompt == three.prompt
        assert [each.tenant for each in (one, two, three)] == ["red", "red", "blue"]
        assert one.chain_root == two.chain_root != three.chain_root
        assert one.chain == two.chain
        assert not {*one.chain} & {*three.chain}
        assert (one.priority, two.priority) == (PriorityClass.STANDARD, PriorityClass.BATCH)


@async_test
async def test_only_a_trusted_key_speaks_for_others(text: TextModel, key_file: Path) -> None:
    async with serving(text, keys=open_keys((), key_file)) as served:
        assert (await asked_by(served, "boss", x_headrace_tenant="blue")).tenant == "blue"
        assert (await asked_by(served, "one", x_headrace_tenant="blue")).tenant == "red"
        wrong = {"authorization": bearer("boss"), "x_headrace_tenant": "a b"}
        answer = await served.request("GET", "/v1/models", **wrong)
        assert (answer.status, answer.error["param"]) == (400, "x-headrace-tenant")


@async_test
async def test_a_key_that_ends_is_refused_by_a_running_gateway(
    text: TextModel, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.server.keys.LOOK_SECONDS", 0.01)
    keys = open_keys((), key_file)
    async with serving(text, keys=keys) as served:
        one = {"authorization": bearer("one")}
        assert (await served.request("GET", "/v1/models", **one)).status == 200
        gone = await served.request("GET", "/v1/models", authorization=bearer("gone"))
        assert (gone.status, "revoked" in gone.error["message"]) == (401, True)
        book = read_key_file(key_file)
        write_key_file(key_file, KeyBook(pepper=PEPPER, cache_secret=book.cache_secret))
        following = asyncio.create_task(keys.follow())
        while (await served.request("GET", "/v1/models", **one)).status == 200:
            pass
        following.cancel()


@async_test
async def test_a_key_with_a_limit_has_only_so_many_requests_open(
    text: TextModel, key_file: Path
) -> None:
    async with serving(text, keys=open_keys((), key_file)) as served:
        first = await asked_by(served, "limited")
        limited = {"authorization": bearer("limited")}
        busy = await served.request("GET", "/v1/models", **limited)
        assert (busy.status, busy.error["code"]) == (429, "rate_limit_exceeded")
        served.replica.say(first, [], finish=FinishReason.LENGTH)
        while (await served.request("GET", "/v1/models", **limited)).status == 429:
            pass


@async_test
async def test_unknown_paths_and_methods_say_so(text: TextModel) -> None:
    async with serving(text) as served:
        missing = await served.request("GET", "/nothing")
        assert (missing.status, missing.error["code"]) == (404, "not_found")
        wrong = await served.request("GET", CHAT)
        assert (wrong.status, wrong.error["code"]) == (405, "method_not_allowed")
        assert wrong.headers["allow"] == "POST, OPTIONS"
        for method in ("PUT", "DELETE", "PATCH", "TRACE"):
            assert (await served.request(method, "/live")).status == 405


@async_test
async def test_a_request_id_is_echoed_or_drawn(text: TextModel) -> None:
    async with serving(text) as served:
        own = await served.request("GET", "/live", x_request_id="abc-123:x/y")
        assert own.headers["x-request-id"] == "abc-123:x/y"
        seen = set()
        for odd in ("", "a b", "x" * 129, "a\tb", "\xe9", "<script>"):
            drawn = (await served.request("GET", "/live", x_request_id=odd)).headers["x-request-id"]
            assert len(drawn) == 32
            assert int(drawn, 16) >= 0
            seen.add(drawn)
        assert len(seen) == 6
        refused = await served.request("GET", "/nothing")
        assert len(refused.headers["x-request-id"]) == 32
