"""Foreign replicas that fail in every way they can: what clients see, and what happens next.

The cases are those of the failure contract: what fails before the first byte is retried unseen,
what fails after it is told in the stream, and nothing that broke off ever looks finished.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from foreign_serving import CHAT, QUICK, chat, read_answer, serving, start_replica
from msgspec.structs import replace as replace_

from headrace.core.health import ReplicaState
from headrace.monitoring import table
from headrace.server.gateway.config import GatewayConfig
from headrace.testing.async_test import async_test
from headrace.testing.openai_replica import Script, expected_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from foreign_serving import Answer

WELL = Script()
TEXT = expected_text(chat()["messages"], 16)

BEFORE_THE_FIRST_BYTE = {
    "500": Script(status=500),
    "502": Script(status=502),
    "504": Script(status=504),
    "408": Script(status=408),
    "503": Script(status=503),
    "redirect": Script(status=302),
    "busy": Script(busy_retry_after=1),
    "no finish": Script(truncate_after=0),
    "reset": Script(reset_after=0),
    "bad json": Script(bad_json_at=0),
    "huge line": Script(huge_line=True),
}


def is_told(answer: Answer) -> bool:
    """Whether the stream ends with the error and [DONE], and with no finish."""
    *events, last = answer.events
    error = last["error"]
    return error["code"] == "worker_lost" and not [
        each for each in events if each["choices"][0]["finish_reason"]
    ]


@pytest.mark.parametrize("name", BEFORE_THE_FIRST_BYTE)
@pytest.mark.parametrize("stream", [True, False])
@async_test
async def test_a_failure_before_the_first_byte_is_unseen(name: str, stream: bool) -> None:
    if not stream and name in ("bad json", "huge line"):
        return  # of streams only
    async with serving(BEFORE_THE_FIRST_BYTE[name], WELL) as rig:
        answer = await rig.chat(stream=stream)
        assert answer.status == 200
        if stream:
            assert answer.text == TEXT
        else:
            assert answer.json["choices"][0]["message"]["content"] == TEXT
        bad, well = (each.fake.tally for each in rig.replicas)
        assert bad.completions in ((1, 2) if name == "reset" else (1,))  # 2: it was a kept one
        assert well.completions == 1
        assert rig.count(table.RETRIES, rig.replicas[0].name) == 1


AFTER_THE_FIRST_BYTE = {
    "no finish": Script(truncate_after=5),
    "reset": Script(reset_after=5),
    "dies": Script(die_after=5),
    "bad json": Script(bad_json_at=5),
}


@pytest.mark.parametrize("name", AFTER_THE_FIRST_BYTE)
@async_test
async def test_a_failure_after_the_first_byte_is_told_in_the_stream(name: str) -> None:
    script = replace(AFTER_THE_FIRST_BYTE[name], itl=0.002)
    async with serving(script, WELL) as rig:
        answer = await rig.chat()
        assert is_told(answer)
        assert [e["choices"][0]["delta"]["content"] for e in answer.events[:-1]] == TEXT.replace(
            " ", "| "
        ).split("|")[1:6]
        assert rig.replicas[1].fake.tally.completions == 0
        assert rig.count(table.RETRIES, rig.replicas[0].name) == 0


@async_test
async def test_a_stream_that_falls_silent_is_told_so_after_a_while() -> None:
    async with serving(Script(hang_after=3), WELL) as rig:
        reader, writer = await rig.send(CHAT, chat())
        await rig.until(lambda: rig.count(table.TIME_TO_FIRST_TOKEN) == 1)
        rig.clock.advance(11)
        assert is_told(await read_answer(reader))
        writer.close()
        await rig.until(lambda: rig.replicas[0].fake.tally.abandoned == 1)


@async_test
async def test_silence_before_the_first_byte_moves_a_stream_on() -> None:
    async with serving(Script(hang_after=0), WELL) as rig:
        reader, writer = await rig.send(CHAT, chat())
        await rig.until(lambda: rig.replicas[0].fake.tally.completions == 1)
        rig.clock.advance(31)
        assert (await read_answer(reader)).text == TEXT
        writer.close()
        await rig.until(lambda: rig.replicas[0].fake.tally.abandoned == 1)


@async_test
async def test_an_endless_line_costs_bounded_memory() -> None:
    async with serving(Script(huge_line=True)) as rig:
        answer = await rig.chat()
        assert answer.status == 502
        assert "over 1048576 bytes" in answer.json["error"]["message"]


@async_test
async def test_a_repeated_event_is_passed_on_and_no_other_is_added() -> None:
    """Two equal events are two equal words, for all that can be told."""
    async with serving(Script(repeat_at=3)) as rig:
        through, direct = await rig.chat(), await rig.ask(CHAT, chat(), port=rig.replicas[0].port)
        assert through.body == direct.body


@async_test
async def test_with_no_other_replica_the_error_is_an_answer() -> None:
    async with serving(Script(status=500)) as rig:
        answer = await rig.chat()
        assert answer.status == 502
        assert answer.json["error"]["code"] == "worker_lost"
        assert answer.headers["retry-after"]
        assert rig.replicas[0].fake.tally.completions <= 3


@async_test
async def test_all_busy_is_a_503_with_their_retry_after() -> None:
    config = GatewayConfig(policy="round_robin", max_wait=0.2)
    async with serving(Script(busy_retry_after=7), config=config) as rig:
        answer = await rig.chat()
        assert answer.status == 503
        assert answer.json["error"]["code"] == "overloaded"
        assert int(answer.headers["retry-after"]) >= 1
        assert rig.count(table.EJECTIONS, rig.replicas[0].name) == 0


@async_test
async def test_retries_of_all_requests_together_are_bounded() -> None:
    scripts = [Script(status=500), Script(status=500), Script(status=500)]
    async with serving(*scripts) as rig:
        for _ in range(40):
            assert (await rig.chat()).status in (502, 503)
        attempts = sum(each.fake.tally.completions for each in rig.replicas)
        assert attempts <= 1.1 * 40 + 12


@async_test
async def test_a_share_of_failures_is_unseen_and_duplicates_nothing() -> None:
    scripts = [Script(fail_rate=0.1), Script(fail_rate=0.1), WELL]
    config = GatewayConfig(policy="round_robin", retry_share=1.0)
    async with serving(*scripts, config=config) as rig:
        answers = [await rig.chat() for _ in range(60)]
        assert all(answer.text == TEXT for answer in answers)
        assert rig.count(table.EJECTIONS, rig.replicas[2].name) == 0


@async_test
async def test_the_breaker_opens_probes_and_closes() -> None:
    config = GatewayConfig(policy="round_robin", retry_share=1.0)
    async with serving(Script(status=500), WELL, config=config) as rig:
        name, tally = rig.replicas[0].name, rig.replicas[0].fake.tally
        router = rig.gateway.pools.pools[0].router
        while router.state(name) is not ReplicaState.EJECTED:
            assert (await rig.chat()).text == TEXT
        opened = tally.completions
        for _ in range(10):
            await rig.chat()
        assert tally.completions == opened  # open: nothing is sent there
        rig.clock.advance(11)
        await rig.chat()
        await rig.chat()
        assert tally.completions == opened + 1  # half open: one request, which failed
        assert router.state(name) is ReplicaState.EJECTED
        rig.replicas[0].fake.script = WELL
        rig.clock.advance(30)
        for _ in range(4):
            assert (await rig.chat()).text == TEXT
        assert router.state(name) is ReplicaState.READY
        assert (await rig.ask("/ready")).json["ok"]


@async_test
async def test_a_replica_that_is_gone_is_left_out_until_it_is_back() -> None:
    async with serving(WELL, WELL) as rig:
        gone = rig.replicas[0]
        await gone.stop()
        for _ in range(10):
            assert (await rig.chat()).text == TEXT
        await rig.until_ready(1)
        health = (await rig.ask("/health")).json
        assert health["ok"]
        assert "cannot connect" in health["reasons"][0]
        rig.extra.append(await start_replica(WELL, gone.port))
        await rig.until_ready(2)
        for _ in range(4):
            assert (await rig.chat()).text == TEXT
        assert rig.extra[0].fake.tally.completions == 2


@async_test
async def test_streams_of_a_replica_that_is_killed_are_told_and_others_go_on() -> None:
    async with serving(Script(itl=0.003), Script(itl=0.003)) as rig:
        asked = [asyncio.create_task(rig.chat(str(i), max_tokens=60)) for i in range(16)]
        await rig.until(lambda: rig.count(table.TIME_TO_FIRST_TOKEN) == 16)
        await rig.replicas[0].stop()
        answers = [await each for each in asked]
        told = [answer for answer in answers if "error" in answer.events[-1]]
        assert len(told) == 8
        assert all(is_told(answer) for answer in told)
        for i, answer in enumerate(answers):
            if answer not in told:
                assert answer.text == expected_text(chat(str(i))["messages"], 60)


@async_test
async def test_other_models_behind_the_same_url_make_it_another_replica() -> None:
    """Where the operator says that models may change; test_quarantine.py has the usual case."""
    async with serving(WELL, foreign=replace_(QUICK, follow_models=True)) as rig:
        await rig.chat()
        rig.replicas[0].fake.script = Script(model="new")
        await rig.until(lambda: "new" in rig.gateway.pools.cards)
        assert [card["id"] for card in (await rig.ask("/v1/models")).json["data"]] == ["new"]
        assert (await rig.chat(model="new")).status == 200
        assert not rig.gateway.pools.resolve("fake").router.replicas


@async_test
async def test_a_health_path_that_says_no_takes_a_replica_out() -> None:
    async with serving(WELL, WELL) as rig:
        rig.replicas[0].fake.script = Script(health_fail_after=0)
        await rig.until_ready(1)
        assert "/health answers with status 503" in (await rig.ask("/ready")).json["reasons"][0]
        rig.replicas[0].fake.script = WELL
        await rig.until_ready(2)


@async_test
async def test_nobody_there_is_a_503_with_reasons_and_no_hang() -> None:
    urls = ("http://127.0.0.1:9", "http://127.0.0.1:10")
    async with serving(urls=urls) as rig:
        await rig.until(lambda: all(w.reason != "not asked yet" for w in rig.gateway.watches))
        ready = await rig.ask("/ready")
        assert ready.status == 503
        assert len(ready.json["reasons"]) == 2
        assert (await rig.chat()).json["error"]["code"] == "not_ready"
        assert (await rig.ask("/v1/models")).json["data"] == []


@async_test
async def test_a_drain_lets_streams_finish_and_takes_nothing_new() -> None:
    async with serving(Script(itl=0.005)) as rig:
        asked = asyncio.create_task(rig.chat(max_tokens=30))
        await rig.until(lambda: rig.count(table.TIME_TO_FIRST_TOKEN) == 1)
        await rig.gateway.drain(5)
        await rig.serving
        assert (await asked).text == expected_text(chat()["messages"], 30)


@async_test
async def test_a_drain_that_takes_too_long_says_so_in_the_streams() -> None:
    async with serving(Script(itl=0.05)) as rig:
        asked = asyncio.create_task(rig.chat(max_tokens=1000))
        await rig.until(lambda: rig.count(table.TIME_TO_FIRST_TOKEN) == 1)
        await rig.gateway.drain(0.05)
        assert (await asked).events[-1]["error"]["code"] == "not_ready"


@asynccontextmanager
async def raw_replica(*pieces: bytes) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A server that answers each completion with these pieces, the others after the event."""
    go_on = asyncio.Event()
    models = b'{"object":"list","data":[{"id":"fake"}]}'

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"POST"):
                    await reader.read(1 << 16)
                    writer.write(pieces[0])
                    for piece in pieces[1:]:
                        await go_on.wait()
                        writer.write(piece)
                    break
                body = models if b"/v1/models" in head else b""
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", go_on
    finally:
        server.close()
        await asyncio.sleep(0)


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 2",
        b"nonsense\r\n\r\n",
        STREAM,
        STREAM + b"zz\r\n",
        STREAM + b"5\r\ndata:\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
        STREAM.replace(b"chunked", b"gzip") + b"hello",
        STREAM + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n",
    ],
)
@async_test
async def test_broken_framing_before_any_event_is_unseen(data: bytes) -> None:
    async with raw_replica(data) as (url, _), serving(WELL, urls=[url], ready=2) as rig:
        answers = [await rig.chat() for _ in range(2)]
        assert [answer.text for answer in answers] == [TEXT, TEXT]
        assert rig.replicas[0].fake.tally.completions == 2


@pytest.mark.parametrize(
    "rest",
    [
        b"",
        b"zz\r\n",
        b"0\r\n\r\n",
        b"5\r\ndata:\r\n",
        b"6\r\ndata:x\r\n",
        b"10\r\ndata: {broken\n\n\n\r\n",
    ],
)
@async_test
async def test_broken_framing_after_an_event_is_told(rest: bytes) -> None:
    chunk = b"%x\r\n" % len(EVENT) + EVENT + b"\r\n"
    async with (
        raw_replica(STREAM + chunk, rest) as (url, go_on),
        serving(urls=[url], ready=1) as rig,
    ):
        asked = asyncio.create_task(rig.chat())
        await rig.until(lambda: rig.count(table.TIME_TO_FIRST_TOKEN) == 1)
        go_on.set()
        answer = await asked
        assert is_told(answer)
        assert len(answer.events) == 2


@async_test
async def test_a_large_whole_answer_passes_and_one_over_the_limit_does_not() -> None:
    def answer(num_bytes: int) -> bytes:
        body = b'{"data":"' + b"x" * num_bytes + b'"}'
        return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body

    async with raw_replica(answer(5_000_000)) as (url, _), serving(urls=[url], ready=1) as rig:
        passed = await rig.chat(stream=False)
        assert (passed.status, len(passed.body)) == (200, 5_000_011)
    async with raw_replica(answer(40_000_000)) as (url, _), serving(urls=[url], ready=1) as rig:
        refused = await rig.chat(stream=False)
        assert refused.status == 502
        assert "over 33554432 bytes" in refused.json["error"]["message"]
