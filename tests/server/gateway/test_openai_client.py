"""The openai package against a gateway with a whole simulated engine behind it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import openai
import pytest
from gateway_serving import Served, serving

from headrace.executor.base import ExecutorSpec
from headrace.executor.simulated import SimulatedExecutor
from headrace.testing.async_test import async_test
from headrace.testing.fake_replica import SimulatedReplica

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from headrace.model.text import TextModel

HI = [{"role": "user", "content": "hi"}]


@asynccontextmanager
async def simulated(text: TextModel) -> AsyncIterator[tuple[Served, openai.AsyncOpenAI]]:
    """Serve with an engine whose steps take no time."""
    spec = ExecutorSpec(
        model_identity="simulated",
        vocab_size=text.tokenizer.vocab_size,
        max_model_len=256,
        block_size=16,
        num_blocks=256,
        block_bytes=0,
    )
    async with serving(text, connect=False) as served:
        engine = SimulatedReplica(
            served.gateway.traffic, executor=SimulatedExecutor(spec), clock=served.clock
        )
        engine.connect()
        async with openai.AsyncOpenAI(
            api_key="none", base_url=f"http://127.0.0.1:{served.port}/v1", max_retries=0
        ) as client:
            yield served, client
        engine.close()


@async_test
async def test_chats_streamed_and_not_say_the_same(text: TextModel) -> None:
    async with simulated(text) as (_, client):
        for n in (1, 3):
            whole = await client.chat.completions.create(
                model="tiny", messages=HI, max_tokens=20, seed=5, n=n
            )
            texts = dict.fromkeys(range(n), "")
            finishes = {}
            usage = None
            stream = await client.chat.completions.create(
                model="tiny", messages=HI, max_tokens=20, seed=5, n=n, stream=True,
                stream_options={"include_usage": True},
            )  # fmt: skip
            async for chunk in stream:
                usage = chunk.usage or usage
                for choice in chunk.choices:
                    texts[choice.index] += choice.delta.content or ""
                    finishes[choice.index] = choice.finish_reason
            assert [texts[index] for index in range(n)] == [
                choice.message.content for choice in whole.choices
            ]
            assert [finishes[index] for index in range(n)] == [
                choice.finish_reason for choice in whole.choices
            ]
            assert usage is not None
            assert whole.usage is not None
            assert usage.completion_tokens == whole.usage.completion_tokens


@async_test
async def test_completions_and_models_work(text: TextModel) -> None:
    async with simulated(text) as (_, client):
        done = await client.completions.create(
            model="tiny", prompt=["a", "b"], max_tokens=8, logprobs=2, temperature=0
        )
        assert [choice.index for choice in done.choices] == [0, 1]
        assert [model.id async for model in client.models.list()] == ["tiny", "org/alias"]
        assert (await client.models.retrieve("org/alias")).id == "org/alias"


@async_test
async def test_errors_are_the_clients_own_kinds(text: TextModel) -> None:
    async with simulated(text) as (_, client):
        with pytest.raises(openai.BadRequestError) as bad:
            await client.chat.completions.create(model="tiny", messages=HI, temperature=3)
        assert bad.value.param == "temperature"
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="gpt-5", messages=HI)
        assert missing.value.code == "model_not_found"


@async_test
async def test_two_hundred_streams_at_once_end_and_leave_nothing(text: TextModel) -> None:
    async with simulated(text) as (served, _):

        async def stream(index: int) -> None:
            client = await served.connect()
            body = {"messages": HI, "max_tokens": 30, "stream": True, "seed": index}
            client.ask("POST", "/v1/chat/completions", body)
            if index % 10 == 0:
                await client.reader.read(10)
                client.reset()
                return
            assert (await client.answer("POST")).events[-1]["choices"][0]["finish_reason"]

        await asyncio.gather(*(stream(index) for index in range(200)))
