"""The console over real sockets: who may ask, what is passed on, and what tabs share."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import h11
import msgspec
import pytest
from console_serving import TOKEN, Served, serving_console

from headrace.errors import AuthenticationFailed
from headrace.monitoring.shapes import DrainOrder, JournalEntry, ScaleOrder
from headrace.server.console.page import load_page
from headrace.server.gateway.http.messages import EVENT_STREAM
from headrace.testing.async_test import async_test

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GETS = ["/api/state", "/api/events", "/api/journal", "/api/explain/chatcmpl-0001"]
POSTS = ["/api/drain", "/api/scale", "/api/chat"]
CHAT = b'{"messages":[{"role":"user","content":"hi"}],"stream":true}'
EVIL = "http://evil.example"


async def until(condition: Callable[[], Any]) -> None:
    """Let the loop turn until a condition holds; the test's own limit ends it."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


@async_test
async def test_the_page_is_public_and_may_load_nothing_from_elsewhere(tmp_path: Path):
    async with serving_console(tmp_path) as served:
        for path in load_page():
            reply = await served.ask("GET", path, token="")
            assert reply.status == 200, path
            assert reply.body == load_page()[path].body
            assert reply.headers["content-security-policy"].startswith("default-src 'self';")
            assert "unsafe" not in reply.headers["content-security-policy"]
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert reply.headers["cache-control"] == "no-store"


def test_the_page_names_only_files_that_it_has():
    page = load_page()
    named = {
        name
        for path, response in page.items()
        for name in re.findall(rb'(?:href|src)="(/[^"]*)"', response.body)
    }
    imported = {
        b"/js/" + name
        for response in page.values()
        for name in re.findall(rb'from "\./([^"]+)"', response.body)
    }
    assert {name.decode() for name in named | imported} <= set(page)
    assert "/js/main.js" in page


def test_the_page_has_no_inline_script_or_style_and_no_foreign_address():
    for path, response in load_page().items():
        text = response.body.decode()
        assert not re.search(r"<script(?![^>]*\bsrc=)|\bstyle=|\bon\w+=\"", text), path
        urls = set(re.findall(r"https?://[^\s\"'<>)]+", text))
        assert urls <= {"http://www.w3.org/2000/svg"}, path
        assert "innerHTML" not in text


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", TOKEN[:-1]])
def test_nothing_under_api_is_answered_without_the_token(tmp_path: Path, token: str):
    @async_test
    async def run() -> None:
        async with serving_console(tmp_path) as served:
            asked = [("GET", path, b"") for path in GETS] + [("POST", path, CHAT) for path in POSTS]
            for method, path, body in asked:
                reply = await served.ask(method, path, body, token=token)
                assert reply.status == 401, path
                assert "headrace ps" in reply.message
            assert served.fake.requests == []

    run()


@pytest.mark.parametrize(
    "path", ["/api/../api/state", "//api/state", "/%61pi/state", "/API/state", "/js/../api/state"]
)
def test_no_spelling_of_a_path_gets_round_the_token(tmp_path: Path, path: str):
    @async_test
    async def run() -> None:
        async with serving_console(tmp_path) as served:
            assert (await served.ask("GET", path, token="")).status in (401, 404)
            assert served.fake.requests == []

    run()


@async_test
async def test_a_foreign_host_name_is_refused_even_with_the_token(tmp_path: Path):
    """DNS rebinding, as in CVE-2025-62593."""
    async with serving_console(tmp_path) as served:
        for host in ("evil.example", f"evil.example:{served.port}", "127.0.0.1:1", "localhost"):
            for path in ("/", "/api/state"):
                assert (await served.ask("GET", path, Host=host)).status == 403, host
        for host in ("localhost", "LOCALHOST", "[::1]"):
            reply = await served.ask("GET", "/api/state", Host=f"{host}:{served.port}")
            assert reply.status == 200


@async_test
async def test_a_page_of_another_site_may_not_ask(tmp_path: Path):
    async with serving_console(tmp_path) as served:
        own = f"http://127.0.0.1:{served.port}"
        order = b'{"floor":1,"ceiling":2}'
        for origin in (EVIL, "null", "http://127.0.0.1:1", own.replace("http:", "https:")):
            assert (await served.ask("POST", "/api/scale", order, Origin=origin)).status == 403
            assert (await served.ask("GET", "/api/state", Origin=origin)).status == 403
        assert served.fake.orders == []
        assert (await served.ask("POST", "/api/scale", order, Origin=own)).status == 200


@async_test
async def test_orders_must_be_json_by_name(tmp_path: Path):
    async with serving_console(tmp_path) as served:
        body = b'{"replica":"r0"}'
        reply = await served.ask("POST", "/api/drain", body, Content_Type="text/plain")
        assert reply.status == 415
        assert (await served.ask("POST", "/api/drain")).status == 415
        assert (await served.ask("GET", "/api/drain")).headers["allow"] == "POST"
        assert (await served.ask("DELETE", "/api/state")).status == 405
        assert (await served.ask("POST", "/api/chat", b"x" * (1 << 21))).status == 413
        assert served.fake.orders == []


@async_test
async def test_state_and_explanations_are_passed_on_as_they_are(tmp_path: Path):
    async with serving_console(tmp_path) as served:
        state = await served.ask("GET", "/api/state")
        assert state.body == msgspec.json.encode(served.fake.state)
        told = await served.ask("GET", "/api/explain/chatcmpl-0001")
        assert told.json["id"] == "chatcmpl-0001"
        unknown = await served.ask("GET", "/api/explain/chatcmpl-9999")
        assert unknown.status == 404
        assert "among the last 1" in unknown.message
        assert (await served.ask("GET", "/api/explain/a/b")).status == 400


@async_test
async def test_the_journal_is_read_from_a_number_on(tmp_path: Path):
    async with serving_console(tmp_path) as served:
        served.fake.journal = [
            JournalEntry(number=n, unix=n, source="router", kind="fail", subject="x", reason="")
            for n in (1, 2, 3)
        ]
        assert len((await served.ask("GET", "/api/journal")).json) == 3
        assert [e["number"] for e in (await served.ask("GET", "/api/journal?after=2")).json] == [3]
        assert (await served.ask("GET", "/api/journal?after=x")).status == 400


@async_test
async def test_orders_reach_the_admin_plane(tmp_path: Path):
    async with serving_console(tmp_path) as served:
        drained = await served.ask("POST", "/api/drain", b'{"replica":"r1","cancel":true}')
        assert drained.json == {"message": "draining"}
        await served.ask("POST", "/api/scale", b'{"floor":2,"ceiling":4}')
        assert served.fake.orders == [
            DrainOrder(replica="r1", cancel=True),
            ScaleOrder(floor=2, ceiling=4),
        ]


async def _events(served: Served, number: int) -> list[Any]:
    stream = await served.open("GET", "/api/events")
    events = []
    async for event in stream.events():
        events.append(event)
        if len(events) == number:
            break
    stream.hang_up()
    return events


@async_test
async def test_tabs_share_each_state(tmp_path: Path):
    async with serving_console(tmp_path) as served:
        assert served.fake.num_polls == 0
        one = asyncio.create_task(_events(served, 30))
        await until(lambda: served.fake.num_polls > 2)
        two = await _events(served, 5)
        times = [event["unix"] for event in await one]
        begin = times.index(two[0]["unix"])
        assert begin > 0
        assert [event["unix"] for event in two] == times[begin : begin + 5]
        assert two[0]["state"]["gateway"]["policy"] == "predicted_ttft"


@async_test
async def test_a_server_that_does_not_answer_is_told_to_tabs(tmp_path: Path):
    async with serving_console(tmp_path) as served:
        (tmp_path / "admin.sock").unlink()
        (event,) = await _events(served, 1)
        assert event["lost"].startswith("no connection to the server: ")
        assert "state" not in event
        assert (await served.ask("GET", "/api/state")).status == 503


@async_test
async def test_a_chat_is_passed_on_byte_for_byte_as_it_comes(tmp_path: Path):
    pieces = [b'data: {"a":"\xc3\xa9"}\n\n', b"data: half", b" and half\n\n", b"data: [DONE]\n\n"]
    async with serving_console(tmp_path) as served:
        stream = await served.open("POST", "/api/chat", CHAT, x_headrace_key="sk-1")
        assert stream.reply.headers["content-type"] == EVENT_STREAM.decode()
        assert await stream.more() == b": hello\n\n"
        (upstream,) = served.fake.streams
        for piece in pieces:
            upstream.write(piece, EVENT_STREAM)
            assert await stream.more() == piece
        upstream.end()
        assert await stream.more() == b""
        (request,) = served.fake.requests
        assert bytes(request.body) == CHAT
        assert request.head.path == "/v1/chat/completions"
        assert request.head.headers[b"authorization"] == b"Bearer sk-1"


@async_test
async def test_a_browser_that_leaves_ends_its_chat_at_the_server(tmp_path: Path):
    async with serving_console(tmp_path) as served:
        stream = await served.open("POST", "/api/chat", CHAT)
        gone = asyncio.Event()
        served.fake.streams[0].on_gone = gone.set
        stream.hang_up()
        await gone.wait()


@async_test
async def test_the_console_token_never_goes_to_the_server(tmp_path: Path):
    async with serving_console(tmp_path) as served:
        await served.open("POST", "/api/chat", CHAT)
        assert b"authorization" not in served.fake.requests[0].head.headers


@async_test
async def test_a_refused_chat_keeps_its_status_and_words(tmp_path: Path):
    async with serving_console(tmp_path) as served:
        served.fake.chat_refusal = AuthenticationFailed("a valid API key is needed")
        reply = await served.ask("POST", "/api/chat", CHAT)
        assert reply.status == 401
        assert reply.message == "a valid API key is needed"


@async_test
async def test_a_chat_that_the_server_breaks_off_never_ends_well(tmp_path: Path):
    async with serving_console(tmp_path) as served:
        stream = await served.open("POST", "/api/chat", CHAT)
        await stream.more()
        served.fake.streams[0].fail(AuthenticationFailed("cut"))  # after its head: cuts
        with pytest.raises((h11.RemoteProtocolError, ConnectionResetError)):
            await stream.more()


@async_test
async def test_the_console_ends_while_a_tab_and_a_chat_are_open(tmp_path: Path):
    async with serving_console(tmp_path) as served:
        tab = await served.open("GET", "/api/events")
        chat = await served.open("POST", "/api/chat", CHAT)
        await tab.more()
        await chat.more()
