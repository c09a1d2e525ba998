"""Replicas that publish what they have cached: real ZeroMQ sockets on loopback."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from foreign_serving import CHAT, COMPLETE, serving

from headrace.core.kvcache.chain import prompt_chain
from headrace.core.router.foreign_blocks import foreign_root
from headrace.core.router.knowledge import KvKnowledge
from headrace.core.router.requests import keys_of
from headrace.model.server_words import load_server_words
from headrace.monitoring import table
from headrace.server.gateway.config import GatewayConfig
from headrace.testing.async_test import async_test
from headrace.testing.kv_publisher import KvPublisher
from headrace.testing.openai_replica import Script
from headrace.testing.tiny_tokenizer import words, write_tokenizer
from headrace.types import ReplicaId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from foreign_serving import Rig

pytest.importorskip("zmq", reason="pip install '.[zmq]'")

BY_CACHES = GatewayConfig(policy="predicted_ttft")
LONG = words(*(number % 64 for number in range(100, 300)))
OTHER = words(*(number % 61 for number in range(200)))


@dataclass
class Stage:
    """A gateway in front of two replicas, and what the second publishes."""

    rig: Rig
    publisher: KvPublisher
    path: Path

    @property
    def name(self) -> ReplicaId:
        return ReplicaId(self.rig.replicas[1].name)

    def tokens(self, text: str) -> list[int]:
        return load_server_words(self.path).text(text)

    def held(self, text: str) -> int:
        """Of a text's blocks, those that the second replica is known to have."""
        (pool,) = self.rig.gateway.pools.pools
        keys = keys_of(prompt_chain(foreign_root(16), self.tokens(text), 16))
        return pool.router._fleet.prefixes.index.num_held(self.name, keys)

    def knowledge(self) -> KvKnowledge:
        (pool,) = self.rig.gateway.pools.pools
        return pool.router._fleet.prefixes.knowledge(self.name)

    async def until_held(self, text: str, number: int) -> None:
        await self.rig.until(lambda: self.held(text) == number)

    async def complete(self, text: str) -> str:
        """Ask, and return the name of the replica that answered."""
        before = [each.fake.tally.completions for each in self.rig.replicas]
        answer = await self.rig.ask(COMPLETE, {"model": "fake", "prompt": text, "max_tokens": 2})
        assert answer.status == 200
        after = [each.fake.tally.completions for each in self.rig.replicas]
        (place,) = [i for i, number in enumerate(before) if after[i] > number]
        return self.rig.replicas[place].name

    def count(self, metric: table.Metric, what: str) -> float:
        return self.rig.count(metric, self.name, what)


@asynccontextmanager
async def staged(
    tmp_path: Path,
    *,
    replays: bool = True,
    published: tuple[str, ...] = (),
    options: str = "",
    publisher: KvPublisher | None = None,
) -> AsyncIterator[Stage]:
    """``published`` texts are in the second replica's cache before the gateway is there."""
    path = write_tokenizer(tmp_path / "model")
    publisher = publisher or KvPublisher()
    publisher.start()
    try:
        for text in published:
            await publisher.publish(publisher.store(load_server_words(path).text(text)))
        told = f",model=fake,tokenizer={path},kv-events={publisher.endpoint}{options}"
        if replays:
            told += f",kv-replay={publisher.replay_endpoint}"
        heard = asyncio.create_task(publisher.subscribed())
        async with serving(Script(), Script(), config=BY_CACHES, options=("", told)) as rig:
            await heard
            yield Stage(rig, publisher, path)
    finally:
        await publisher.close()


@async_test
async def test_a_prompt_goes_where_its_blocks_are_and_without_events_nobody_knows(
    tmp_path: Path,
) -> None:
    texts = [words(*((number * each) % 64 for number in range(200))) for each in range(3, 12)]
    async with serving(Script(), Script(), config=BY_CACHES) as rig:
        blind = [await Stage(rig, KvPublisher(), tmp_path).complete(text) for text in texts]
        wrong = [text for text, name in zip(texts, blind, strict=True) if name != blind[0]]
        assert wrong  # in the order of load or of hashes: some here, some there
    async with staged(tmp_path) as stage:
        for text in texts:
            await stage.publisher.publish(stage.publisher.store(stage.tokens(text)))
        await stage.until_held(texts[-1], 12)
        assert stage.knowledge() is KvKnowledge.EXACT
        assert {await stage.complete(text) for text in texts} == {stage.name}
        assert stage.rig.count(table.KV_NAMED_PROMPTS, "fake", "named") == len(texts)


@async_test
async def test_a_chat_is_named_with_the_models_template(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        turns = [{"role": "system", "content": LONG}, {"role": "user", "content": "w1 w2"}]
        tokens = load_server_words(stage.path).chat(turns)
        await stage.publisher.publish(stage.publisher.store(tokens))
        await stage.rig.until(lambda: stage.count(table.KV_EVENTS, "stored") > 0)
        for last in range(6):
            asked = [turns[0], {"role": "user", "content": words(last, last)}]
            body = {"model": "fake", "messages": asked, "max_tokens": 1}
            assert (await stage.rig.ask(CHAT, body)).status == 200
        assert [each.fake.tally.completions for each in stage.rig.replicas] == [0, 6]
        body["messages"] = [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]
        assert (await stage.rig.ask(CHAT, body)).status == 200
        assert stage.rig.count(table.KV_NAMED_PROMPTS, "fake", "unnamed") == 1


@pytest.mark.parametrize("as_arrays", [True, False])
@async_test
async def test_what_is_evicted_is_not_counted_on(tmp_path: Path, as_arrays: bool) -> None:
    async with staged(tmp_path, publisher=KvPublisher(as_arrays=as_arrays)) as stage:
        publisher, tokens = stage.publisher, stage.tokens(LONG)
        await publisher.publish(publisher.store(tokens))
        await stage.until_held(LONG, 12)
        await publisher.publish(publisher.remove(tokens, first=5))
        await stage.until_held(LONG, 5)
        await publisher.publish(publisher.clear())
        await stage.until_held(LONG, 0)
        assert stage.knowledge() is KvKnowledge.EXACT


@pytest.mark.parametrize("as_arrays", [True, False])
@async_test
async def test_what_was_published_before_the_gateway_came_is_replayed(
    tmp_path: Path, as_arrays: bool
) -> None:
    publisher = KvPublisher(as_arrays=as_arrays)
    async with staged(tmp_path, published=(LONG, OTHER), publisher=publisher) as stage:
        await stage.until_held(LONG, 12)
        await stage.until_held(OTHER, 12)
        assert stage.knowledge() is KvKnowledge.EXACT
        assert await stage.complete(LONG) == stage.name


@async_test
async def test_lost_batches_are_replayed(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        publisher = stage.publisher
        for round_ in range(8):  # what is lost first may come with the replay that it begins with
            again = words(round_)
            await publisher.publish(publisher.store(stage.tokens(f"{LONG} {again}")))
            await stage.until_held(LONG, 12)
            await publisher.publish(publisher.store(stage.tokens(OTHER)), is_heard=False)
            await publisher.publish(publisher.remove(stage.tokens(LONG), first=3), is_heard=False)
            await publisher.publish(publisher.store(stage.tokens(words(*range(32)))))
            await stage.until_held(OTHER, 12)
            await stage.until_held(LONG, 3)
            assert stage.knowledge() is KvKnowledge.EXACT
            if stage.count(table.KV_EVENT_GAPS, "replayed"):
                break
        assert stage.count(table.KV_EVENT_GAPS, "replayed") >= 1
        assert stage.count(table.KV_EVENT_GAPS, "void") == 0


@async_test
async def test_without_a_replay_what_was_known_is_void_and_learned_anew(tmp_path: Path) -> None:
    async with staged(tmp_path, replays=False) as stage:
        publisher, tokens = stage.publisher, stage.tokens(LONG)
        await publisher.publish(publisher.store(tokens))
        await publisher.publish(publisher.store(stage.tokens(OTHER)))
        await stage.until_held(OTHER, 12)
        await publisher.publish(is_heard=False)
        longer = stage.tokens(f"{LONG} {words(*range(16))}")
        await publisher.publish(publisher.store(longer, first=12))
        await stage.until_held(OTHER, 0)
        await stage.until_held(LONG, 12)  # what is stored behind them proves them
        assert stage.knowledge() is KvKnowledge.DEGRADED
        assert stage.count(table.KV_EVENT_GAPS, "void") == 1
        row = stage.rig.gateway.questions.pool.rows(0.0)[1]
        assert row.index == "degraded"
        assert await stage.complete(OTHER) in {each.name for each in stage.rig.replicas}
        await publisher.publish(publisher.clear(), publisher.store(stage.tokens(OTHER)))
        await stage.rig.until(lambda: stage.knowledge() is KvKnowledge.EXACT)
        assert (stage.held(OTHER), stage.held(LONG)) == (12, 0)


@async_test
async def test_a_server_that_starts_anew_has_nothing(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        old = stage.publisher
        for text in (LONG, OTHER):
            await old.publish(old.store(stage.tokens(text)))
        await stage.until_held(OTHER, 12)
        await old.close()
        stage.publisher = new = KvPublisher(life="2")
        new.start(old.endpoint)
        try:
            await new.subscribed()
            await new.publish(new.store(stage.tokens(OTHER)[:64]))
            await stage.until_held(LONG, 0)
            await stage.until_held(OTHER, 4)
            assert stage.knowledge() is KvKnowledge.EXACT
        finally:
            await new.close()


@async_test
async def test_a_server_that_has_counted_further_since_it_started_anew_is_found_out(
    tmp_path: Path,
) -> None:
    async with staged(tmp_path) as stage:
        old = stage.publisher
        await old.publish(old.store(stage.tokens(LONG)))
        await stage.until_held(LONG, 12)
        await old.close()
        new = KvPublisher(life="2")
        new.start(old.endpoint, old.replay_endpoint)
        try:
            for _ in range(3):
                await new.publish(new.store(stage.tokens(OTHER)[:64]), is_heard=False)
            await new.subscribed()
            await new.publish(new.store(stage.tokens(OTHER), first=4))
            await stage.until_held(OTHER, 12)
            assert stage.held(LONG) == 0
            assert stage.knowledge() is KvKnowledge.EXACT
        finally:
            await new.close()


@async_test
async def test_a_replay_that_has_not_everything_any_more_is_not_taken_for_everything(
    tmp_path: Path,
) -> None:
    few = KvPublisher(replays=1)
    async with staged(tmp_path, publisher=few, published=(LONG, OTHER)) as stage:
        await stage.until_held(OTHER, 12)
        assert stage.held(LONG) == 0
        assert stage.knowledge() is KvKnowledge.DEGRADED


@async_test
async def test_a_replica_that_was_lost_is_heard_anew(tmp_path: Path) -> None:
    async with staged(tmp_path, published=(LONG,)) as stage:
        await stage.until_held(LONG, 12)
        replica = stage.rig.replicas[1]
        await replica.stop()
        await stage.rig.until_ready(1)
        from foreign_serving import start_replica

        stage.rig.replicas[1] = await start_replica(Script(), replica.port)
        stage.rig.extra.append(stage.rig.replicas[1])
        await stage.rig.until_ready(2)
        await stage.until_held(LONG, 12)
        assert stage.knowledge() is KvKnowledge.EXACT


@async_test
async def test_malformed_batches_are_counted_said_once_and_harm_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with staged(tmp_path, replays=False) as stage:
        publisher = stage.publisher
        await publisher.publish(publisher.store(stage.tokens(LONG)))
        await stage.until_held(LONG, 12)
        for junk in (b"", b"\xc1", b"\x93\x01\xdd\xff\xff\xff\xff"):
            await publisher.publish_raw(junk)
        await publisher.publish(publisher.store(stage.tokens(OTHER)))
        await stage.until_held(OTHER, 12)
        assert stage.count(table.KV_EVENTS, "malformed") == 3
        assert stage.knowledge() is KvKnowledge.DEGRADED  # they may have said anything
        assert await stage.complete(OTHER) == stage.name
        said = [each for each in caplog.records if "malformed" in each.getMessage()]
        assert len(said) == 1
        scrape = (await stage.rig.ask("/metrics")).body.decode()
        for metric in (table.KV_EVENTS, table.KV_EVENT_GAPS, table.KV_NAMED_PROMPTS):
            assert f"{metric.name}{{" in scrape


@async_test
async def test_blocks_of_another_size_are_not_followed_and_the_option_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with staged(tmp_path, publisher=KvPublisher(block_size=32)) as stage:
        await stage.publisher.publish(stage.publisher.store(stage.tokens(LONG)))
        await stage.rig.until(lambda: "are not followed" in caplog.text)
        (said,) = [each for each in caplog.records if "not followed" in each.getMessage()]
        assert "block-size=32" in str(vars(said))
        assert stage.knowledge() is KvKnowledge.APPROXIMATE
        assert (await stage.rig.ask(COMPLETE, {"model": "fake", "prompt": LONG})).status == 200


@async_test
async def test_long_prompts_are_named_in_a_thread_and_who_leaves_meanwhile_is_forgotten(
    tmp_path: Path,
) -> None:
    async with staged(tmp_path) as stage:
        text = " ".join([LONG] * 40)
        await stage.publisher.publish(stage.publisher.store(stage.tokens(text)))
        await stage.rig.until(lambda: stage.count(table.KV_EVENTS, "stored") > 400)
        body = json.dumps({"model": "fake", "prompt": text, "max_tokens": 1}).encode()
        assert len(body) > BY_CACHES.inline_bytes
        assert await stage.complete(text) == stage.name
        asked = [each.fake.tally.completions for each in stage.rig.replicas]
        _, writer = await stage.rig.send(COMPLETE, body)
        writer.transport.abort()
        assert await stage.complete(text) == stage.name
        after = [each.fake.tally.completions for each in stage.rig.replicas]
        assert 1 <= sum(after) - sum(asked) <= 2
