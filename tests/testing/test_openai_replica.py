"""The scripted OpenAI server is deterministic, and fails exactly as it is told."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from headrace.cli.main import main
from headrace.clock import MonotonicClock
from headrace.testing.async_test import async_test
from headrace.testing.openai_replica import OpenAIReplica, Script, expected_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


@dataclass
class Rig:
    """A running replica."""

    fake: OpenAIReplica
    port: int

    async def raw(self, path: str, body: object = None) -> bytes:
        """Everything that comes on one connection, up to its end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        content = b"" if body is None else json.dumps(body).encode()
        method = "GET" if body is None else "POST"
        head = f"{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
        writer.write(head.encode() + b"content-length: %d\r\n\r\n" % len(content) + content)
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()

    async def chat(self, **fields: object) -> bytes:
        return await self.raw(CHAT, {"messages": MESSAGES, **fields})


@asynccontextmanager
async def running(**script: Any) -> AsyncIterator[Rig]:  # noqa: ANN401
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    fake = OpenAIReplica(Script(**script), clock=MonotonicClock(), die=lambda: fake.close())
    task = asyncio.create_task(fake.run(sock))
    await asyncio.sleep(0)
    try:
        yield Rig(fake, sock.getsockname()[1])
    finally:
        fake.close()
        await task


def status(answer: bytes) -> int:
    return int(answer.split()[1])


def events(answer: bytes) -> list[bytes]:
    return [line for line in answer.split(b"\n") if line.startswith(b"data: ")]


def text(answer: bytes) -> str:
    contents = [json.loads(event[6:]) for event in events(answer) if b"[DONE]" not in event]
    return "".join(each["choices"][0]["delta"].get("content", "") for each in contents)


@async_test
async def test_two_replicas_give_one_answer() -> None:
    async with running() as one, running() as other:
        answers = [await rig.chat(stream=True, max_tokens=9) for rig in (one, other)]
        assert text(answers[0]) == text(answers[1]) == expected_text(MESSAGES, 9)
        assert events(answers[0])[-1] == b"data: [DONE]"
        whole = await one.chat(max_tokens=9)
        assert expected_text(MESSAGES, 9).encode() in whole


@async_test
async def test_other_prompts_get_other_answers() -> None:
    async with running() as rig:
        other = await rig.raw(CHAT, {"messages": [], "stream": True})
        assert text(other) == expected_text([], 16) != expected_text(MESSAGES, 16)


@async_test
async def test_the_first_completions_fail_and_then_a_share_of_them() -> None:
    async with running(fail_first=2) as rig:
        assert [status(await rig.chat()) for _ in range(4)] == [500, 500, 200, 200]
    async with running(fail_rate=0.3) as rig:
        failed = [status(await rig.chat()) == 500 for _ in range(60)]
        assert 5 <= sum(failed) <= 30


@pytest.mark.parametrize(("script", "expected"), [({"status": 418}, 418), ({"status": 503}, 503)])
@async_test
async def test_a_status_is_given_to_every_completion(script: Any, expected: int) -> None:  # noqa: ANN401
    async with running(**script) as rig:
        assert status(await rig.chat()) == expected
        assert status(await rig.raw("/v1/models")) == 200


@async_test
async def test_a_busy_one_says_for_how_long() -> None:
    async with running(busy_retry_after=7) as rig:
        assert b"retry-after: 7" in await rig.chat()


@async_test
async def test_a_cut_answer_ends_in_good_framing_without_a_finish() -> None:
    async with running(truncate_after=3) as rig:
        answer = await rig.chat(stream=True)
        assert len(events(answer)) == 3
        assert answer.endswith(b"0\r\n\r\n")
        assert b'"finish_reason":"' not in answer


@pytest.mark.parametrize("script", [{"reset_after": 3}, {"die_after": 3}])
@async_test
async def test_a_connection_that_is_cut_ends_without_framing(script: Any) -> None:  # noqa: ANN401
    async with running(**script) as rig:
        assert not (await rig.chat(stream=True)).endswith(b"0\r\n\r\n")


@async_test
async def test_one_event_is_no_json_or_comes_twice() -> None:
    async with running(bad_json_at=2) as rig:
        answer = events(await rig.chat(stream=True))
        with pytest.raises(json.JSONDecodeError):
            json.loads(answer[2][6:])
        assert json.loads(answer[3][6:])
    async with running(repeat_at=2) as rig:
        answer = events(await rig.chat(stream=True))
        assert answer[2] == answer[3] != answer[4]


@async_test
async def test_an_event_may_have_the_id_of_another_answer() -> None:
    async with running(wrong_id_at=1) as rig:
        ids = [json.loads(e[6:])["id"] for e in events(await rig.chat(stream=True))[:-1]]
        assert len(set(ids)) == 2
        assert ids[0] == ids[2] != ids[1]


@async_test
async def test_a_drip_is_the_same_answer_slowly() -> None:
    clock = MonotonicClock()
    async with running() as quick, running(drip=20_000) as slow:
        expected = text(await quick.chat(stream=True, max_tokens=2))
        begun = clock.now()
        answer = await slow.chat(stream=True, max_tokens=2)
        assert answer.count(b"1\r\n") > 200
        content = b"".join(answer.split(b"\r\n\r\n", 1)[1].split(b"\r\n")[1::2])
        assert text(content) == expected
        assert clock.now() - begun > 0.02


@async_test
async def test_keys_and_lengths_are_checked_where_told() -> None:
    async with running(api_key="mine") as rig:
        assert status(await rig.chat()) == 401
    async with running(max_body_bytes=10) as rig:
        assert status(await rig.chat()) == 413


@async_test
async def test_failures_have_the_status_that_is_told() -> None:
    async with running(fail_first=1, fail_status=504) as rig:
        assert [status(await rig.chat()) for _ in range(2)] == [504, 200]


@async_test
async def test_it_dies_at_a_request() -> None:
    async with running(die_at_request=2) as rig:
        assert status(await rig.chat()) == 200
        assert await rig.chat() == b""


@async_test
async def test_its_health_fails_after_some_looks() -> None:
    async with running(health_fail_after=2) as rig:
        assert [status(await rig.raw("/health")) for _ in range(3)] == [200, 200, 503]


@async_test
async def test_a_model_it_has_not_is_a_404() -> None:
    async with running(model="one") as rig:
        assert status(await rig.chat(model="two")) == 404
        assert b'"id":"one"' in await rig.raw("/v1/models")


@pytest.mark.parametrize(
    "flags",
    [("--port", "70000"), ("--status-code", "99"), ("--fail-rate", "2"), ("--itl-ms", "-1")],
)
def test_flags_out_of_range_are_refused(
    flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fake-replica", *flags]) == 2
    assert flags[0] in capsys.readouterr().err
