"""Who may come in where: every route, without a key and with tricks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from gateway_serving import CHAT, on_both_loops, serving

from headrace.server.gateway.http.messages import RequestHead
from headrace.server.gateway.routes import Keys
from headrace.testing.async_test import async_test

if TYPE_CHECKING:
    from gateway_serving import Served

    from headrace.model.text import TextModel
    from headrace.server.gateway.routes import Route

KEY = "sk-test"
PUBLIC = {"/live", "/ready", "/health"}
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


def test_without_keys_everyone_may_come_in() -> None:
    head = RequestHead("GET", "/", {}, keep_alive=True, http10=False)
    assert Keys(()).accept(head)
    assert not Keys([KEY]).accept(head)


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
