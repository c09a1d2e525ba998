"""The KV events of a real vLLM: what is known of its cache is what it finds there.

HEADRACE_VLLM is its ``vllm`` command (otherwise that in the PATH), HEADRACE_VLLM_MODEL the
directory of a small model with tokenizer and chat template.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from foreign_serving import CHAT, COMPLETE, QUICK, serving

from headrace.core.router.knowledge import KvKnowledge
from headrace.core.router.requests import keys_of
from headrace.model.server_words import load_server_words
from headrace.monitoring import table
from headrace.server.gateway.config import GatewayConfig
from headrace.server.gateway.foreign.kv_names import Naming
from headrace.testing.openai_replica import Script
from headrace.types import ReplicaId

if TYPE_CHECKING:
    from collections.abc import Iterator

    from foreign_serving import Rig

_VLLM = os.environ.get("HEADRACE_VLLM") or shutil.which("vllm")
_MODEL = os.environ.get("HEADRACE_VLLM_MODEL", "")
pytest.importorskip("zmq", reason="pip install '.[zmq]'")
pytestmark = [
    pytest.mark.peers,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not _VLLM, reason="no vllm: set HEADRACE_VLLM"),
    pytest.mark.skipif(not _MODEL, reason="no model for it: set HEADRACE_VLLM_MODEL"),
]
_START_SECONDS = 600
_TEST_SECONDS = 200
_BLOCK_SIZE = 32  # what vLLM's CPU build takes
_NUM_BLOCKS = 64  # too few for all of the prompts below
_NAME = "small"
_SLOW = msgspec.structs.replace(QUICK, poll_period=0.5, poll_timeout=5.0, silence_timeout=60.0)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def _vllm(port: int, events: int, replay: int) -> Iterator[None]:
    told = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://*:{events}",
        "replay_endpoint": f"tcp://127.0.0.1:{replay}",
    }
    command = [
        *(str(_VLLM), "serve", _MODEL, "--served-model-name", _NAME),
        *("--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024"),
        *(
            "--enable-prefix-caching",
            "--enable-prompt-tokens-details",
            "--block-size",
            str(_BLOCK_SIZE),
        ),
        *("--num-gpu-blocks-override", str(_NUM_BLOCKS), "--max-num-seqs", "4"),
        *("--enforce-eager", "--kv-events-config", json.dumps(told)),
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        _wait_until_ready(process, port)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(_START_SECONDS):
        if process.poll() is not None:
            pytest.fail(f"vllm ended with {process.returncode}")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=2).close()
        except OSError:
            time.sleep(1)
        else:
            return
    pytest.fail("vllm does not start")


def _body(prompt: str | list[dict[str, str]]) -> dict[str, Any]:
    kind = {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}
    return {"model": _NAME, "max_tokens": 2, "temperature": 0, **kind}


def _prompts(number: int) -> list[str | list[dict[str, str]]]:
    """Texts and chats of 100 to 300 tokens that share beginnings."""
    draw = random.Random(5)
    words = ("river", "mill", "stone", "water", "wheel", "house", "garden", "winter", "road")
    begins = [" ".join(draw.choices(words, k=80)) for _ in range(4)]
    prompts: list[str | list[dict[str, str]]] = []
    for place in range(number):
        text = draw.choice(begins) + " " + " ".join(draw.choices(words, k=draw.randint(20, 180)))
        system = {"role": "system", "content": draw.choice(begins)}
        chat = [system, {"role": "user", "content": text}]
        prompts.append(chat if place % 2 else text)
    return prompts


class _Direct:
    """The vLLM itself, past the gateway."""

    def __init__(self, rig: Rig, port: int) -> None:
        self.rig = rig
        self.port = port
        self.name = ReplicaId(f"127.0.0.1:{port}")
        self.naming = Naming(words=load_server_words(Path(_MODEL)), unit=_BLOCK_SIZE)

    async def cached(self, prompt: str | list[dict[str, str]]) -> tuple[int, int]:
        """Ask it; return how many prompt tokens it has, and found in its cache."""
        path = COMPLETE if isinstance(prompt, str) else CHAT
        answer = await self.rig.ask(path, _body(prompt), port=self.port)
        usage = answer.json["usage"]
        details = usage["prompt_tokens_details"] or {}
        return usage["prompt_tokens"], details.get("cached_tokens") or 0

    def known(self, prompt: str | list[dict[str, str]]) -> tuple[int, int]:
        """Return the same, as the gateway knows it."""
        named = self.naming.name(json.dumps(_body(prompt)).encode())
        assert named is not None
        (pool,) = self.rig.gateway.pools.pools
        index = pool.router._fleet.prefixes.index
        held = index.num_held(self.name, keys_of(named.chain)) * _BLOCK_SIZE
        whole = (
            (named.prompt_tokens - 1) // _BLOCK_SIZE * _BLOCK_SIZE
        )  # one token is always computed
        return named.prompt_tokens, min(held, whole)

    async def hold_against(self, prompts: list[str | list[dict[str, str]]]) -> int:
        """Ask for each; it must find what is known. Return of how many it found anything."""
        found = 0
        for prompt in prompts:
            expected = self.known(prompt)
            assert await self.cached(prompt) == expected, prompt
            found += expected[1] > 0
            await self.settled()
        return found

    async def settled(self) -> None:
        """Wait until no more events come."""
        before = -1.0
        while before != (now := self.rig.count(table.KV_EVENTS, self.name, "stored")):
            before = now
            await asyncio.sleep(0.5)


def test_what_is_known_of_vllms_cache_is_what_it_finds_there() -> None:
    port, events, replay = _free_port(), _free_port(), _free_port()
    options = (
        f",model={_NAME},tokenizer={_MODEL},kv-events=tcp://127.0.0.1:{events}"
        f",kv-replay=tcp://127.0.0.1:{replay},block-size={_BLOCK_SIZE}"
    )
    with _vllm(port, events, replay):
        asyncio.run(asyncio.wait_for(_hold_against(port, options), _TEST_SECONDS))


async def _hold_against(port: int, options: str) -> None:
    config, url = GatewayConfig(policy="predicted_ttft"), f"http://127.0.0.1:{port}{options}"
    script = Script(model=_NAME)
    async with serving(script, config=config, foreign=_SLOW, urls=[url], ready=2) as rig:
        direct, prompts = _Direct(rig, port), _prompts(24)
        found = await direct.hold_against(prompts)
        (burst,) = _prompts(25)[24:]  # computed four times at once: equal blocks side by side
        await asyncio.gather(*(direct.cached(burst) for _ in range(4)))
        await direct.settled()
        found += await direct.hold_against(random.Random(1).choices([*prompts, burst], k=16))
        there = [prompt for prompt in prompts if direct.known(prompt)[1] > 64]
        assert found > 10  # there was something to know
        assert len(there) < len(prompts) - 2  # and something to forget
        (pool,) = rig.gateway.pools.pools
        assert pool.router._fleet.prefixes.knowledge(direct.name) is KvKnowledge.EXACT
        for prompt in there[-3:]:  # the other replica is idle, and has nothing
            path = COMPLETE if isinstance(prompt, str) else CHAT
            assert (await rig.ask(path, _body(prompt))).status == 200
        assert rig.replicas[0].fake.tally.completions == 0
        await direct.settled()
        known = [direct.known(prompt) for prompt in prompts]
    async with serving(script, config=config, foreign=_SLOW, urls=[url], ready=2) as rig:
        direct = _Direct(rig, port)  # a gateway that comes later, and asks for what was before
        await rig.until(lambda: [direct.known(prompt) for prompt in prompts] == known)
        await direct.hold_against(there[-3:])
