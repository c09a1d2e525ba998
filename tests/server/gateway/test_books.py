"""What is written down of requests and decisions: figures, records, log lines. Never a prompt."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from gateway_serving import CHAT, COMPLETE, Served, serving
from prometheus_client.parser import text_string_to_metric_families

from headrace.core.balancer.registry import POLICIES, Entry
from headrace.core.router.events import AttemptFailed
from headrace.core.router.knowledge import MIN_PREDICTIONS
from headrace.core.scheduler.events import ReportLoad
from headrace.monitoring import table
from headrace.server.gateway.config import GatewayConfig
from headrace.server.keys import Keys
from headrace.testing.async_test import async_test
from headrace.testing.fake_replica import FIRST, IDLE, ScriptedReplica
from headrace.types import BlockKey, EngineTiming, FinishReason, ReplicaId, Role

if TYPE_CHECKING:
    from headrace.core.balancer.policy import Candidate, Choice
    from headrace.model.text import TextModel
    from headrace.types import Request, Tokens

PROMPT = "the secret of the mill"
HI = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 60}
LOAD = ReportLoad(
    step=3,
    running=1,
    waiting=0,
    waiting_tokens=0,
    kv_blocks_total=10,
    kv_blocks_free=4,
    kv_blocks_cached=1,
    prompt_tokens_total=8,
    cached_tokens_total=2,
    output_tokens_total=3,
    discarded_tokens_total=0,
    preemptions_total=0,
    step_seconds_total=0.1,
    computed_tokens_total=6,
)


class BrokenPolicy:
    """Raises at the first request it sees."""

    name = "broken"

    def choose(
        self, request: Request, prompt_tokens: Tokens, candidates: list[Candidate]
    ) -> Choice:
        raise ZeroDivisionError("no load, no cost")


def beside(served: Served, replica: str = "r1") -> ScriptedReplica:
    """Another replica, not connected yet."""
    size = served.text.tokenizer.vocab_size
    return ScriptedReplica(served.gateway.traffic, vocab_size=size, replica=ReplicaId(replica))


async def migrate(served: Served, other: ScriptedReplica, body: dict[str, object]) -> None:
    """Ask; the first replica dies after two tokens, the other one finishes."""
    talk = asyncio.create_task(
        served.request("POST", CHAT, body, x_request_id="mine", authorization="Bearer key")
    )
    first = await served.replica.next_request()
    timing = EngineTiming(waited=0.001, prefill=0.002, chunks=1)
    served.replica.say(first, served.encode("a"), cached_tokens=4, timing=timing)
    served.replica.say(first, served.encode("b"))
    other.connect()
    await asyncio.sleep(0)
    served.replica.disconnect("killed")
    second = await other.next_request()
    other.say(second, served.encode("STOP!"), timing=timing)
    assert (await talk).status == 200


async def eject(served: Served, replicas: list[ScriptedReplica]) -> None:
    """Ask until some replica has failed too often."""
    while not any(served.registry.value(table.EJECTIONS, each.replica) for each in replicas):
        talk = asyncio.create_task(
            served.request("POST", COMPLETE, {"prompt": "x"}, authorization="Bearer key")
        )
        numbers = [len(each.submitted) for each in replicas]
        await served.until(lambda: [len(each.submitted) for each in replicas] != numbers)  # noqa: B023
        chosen = next(
            each for each, n in zip(replicas, numbers, strict=True) if len(each.submitted) > n
        )
        failure = AttemptFailed(
            replica=chosen.replica,
            request_id=chosen.submitted[-1].id,
            code="engine_fault",
            reason="bad",
            to_blame=True,
        )
        chosen.events.failed(failure)
        assert (await talk).status == 500


async def hedge(served: Served, other: ScriptedReplica) -> None:
    """Ask often enough to have a budget; then one waits at the first replica in vain, and moves."""
    served.replica.events.load(FIRST, LOAD)
    for _ in range(12):
        talk = asyncio.create_task(served.request("POST", CHAT, HI))
        await served.answer_with("x")
        await talk
    talk = asyncio.create_task(served.request("POST", CHAT, HI))
    await served.replica.next_request()
    other.connect()
    served.clock.advance(2.5)
    served.replica.events.beat(FIRST, IDLE)
    served.replica.events.load(FIRST, replace(LOAD, waiting=1))
    other.say(await other.next_request(), served.encode("b"), finish=FinishReason.LENGTH)
    assert (await talk).status == 200
    assert served.registry.value(table.HEDGES, FIRST) == 1
    assert served.registry.value(table.RETRIES, FIRST) == 0


async def hand_over(served: Served, other: ScriptedReplica) -> None:
    """Ask; one replica computes the prompt, the other one goes on behind its first token."""
    for replica, role in ((served.replica, Role.PREFILL), (other, Role.DECODE)):
        replica.disconnect()
        replica.description = replace(replica.description, role=role)
        replica.connect()
    talk = asyncio.create_task(served.request("POST", CHAT, HI))
    served.replica.say(await served.replica.next_request(), served.encode("a"))
    other.say(await other.next_request(), served.encode("b"), finish=FinishReason.LENGTH)
    answer = await talk
    assert answer.status == 200
    assert served.registry.value(table.HANDOVERS, FIRST) == 1
    assert served.registry.value(table.MIGRATIONS, FIRST) == 0


@async_test
async def test_every_metric_of_the_table_is_in_a_live_scrape(
    text: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(text, keys=Keys(["key"])) as served:
        served.registry.put(table.BUILD, "0", "tiny", value=1)  # the process does this
        other = beside(served)
        served.replica.events.load(FIRST, LOAD)
        served.replica.events.beat(FIRST, IDLE)
        for number in (1, 3):
            served.replica.events.kv_changed(FIRST, number, (BlockKey(number),), ())
        await migrate(served, other, HI | {"stop": "STOP", "ttft_ms": 60_000})
        served.replica.connect()
        served.replica.events.load(FIRST, LOAD)
        served.replica.events.beat(FIRST, IDLE)
        await asyncio.sleep(0)
        await eject(served, [served.replica, other])
        served.replica.disconnect("before the first token")
        served.replica.connect()
        refused = await served.request("POST", CHAT, HI)
        assert refused.status == 401
        hasty = HI | {"ttft_ms": 0.001}
        refused = await served.request("POST", CHAT, hasty, authorization="Bearer key")
        assert refused.error["code"] == "deadline_infeasible"
        wrong = await served.request(
            "POST", CHAT, HI | {"guided_regex": "("}, authorization="Bearer key"
        )
        assert wrong.status == 400
        await retry(served, other)
        for replica in (served.replica, other):
            replica.connect()
            replica.events.load(replica.replica, LOAD)
            replica.events.beat(replica.replica, IDLE)
        await asyncio.sleep(0)
        scrape = await served.request("GET", "/metrics", authorization="Bearer key")
        found = {
            family.name
            for family in text_string_to_metric_families(scrape.body.decode())
            if family.samples
        }
    monkeypatch.setitem(POLICIES, "broken", Entry(lambda _: BrokenPolicy(), "raises"))
    async with serving(text, GatewayConfig(policy="broken")) as served:
        assert (await served.chat()).status == 200, "a broken policy fails no request"
        assert served.registry.value(table.POLICY_FALLBACKS, "broken") == 1
        assert served.registry.value(table.DISPATCHES, "r0", "least_requests") == 1
        for _ in range(MIN_PREDICTIONS):
            talk = asyncio.create_task(served.request("POST", CHAT, HI))
            await served.answer_with("x", cached_tokens=64)
            await talk
        scrape = await served.request("GET", "/metrics")
        found |= {
            family.name
            for family in text_string_to_metric_families(scrape.body.decode())
            if family.samples
        }
    async with serving(text) as served:
        await hedge(served, beside(served))
        scrape = await served.request("GET", "/metrics")
        found |= {
            family.name
            for family in text_string_to_metric_families(scrape.body.decode())
            if family.samples
        }
    async with serving(text, GatewayConfig(local_prefill=0)) as served:
        await hand_over(served, beside(served))
        scrape = await served.request("GET", "/metrics")
        found |= {
            family.name
            for family in text_string_to_metric_families(scrape.body.decode())
            if family.samples
        }
    of_others = {table.KV_EVENTS, table.KV_EVENT_GAPS, table.KV_NAMED_PROMPTS}  # test_kv_events.py
    own = [metric for metric in table.GATEWAY_TABLE if metric not in of_others]
    expected = {metric.name.removesuffix("_total") for metric in own}
    assert expected - found == set()


async def retry(served: Served, other: ScriptedReplica) -> None:
    """Ask; the replica that gets it dies before its first token."""
    talk = asyncio.create_task(
        served.request("POST", COMPLETE, {"prompt": "y"}, authorization="Bearer key")
    )
    replicas = [served.replica, other]
    numbers = [len(each.submitted) for each in replicas]
    await served.until(lambda: [len(each.submitted) for each in replicas] != numbers)
    chosen = 0 if len(served.replica.submitted) > numbers[0] else 1
    replicas[chosen].disconnect("killed")
    rest = replicas[1 - chosen]
    await served.until(lambda: len(rest.submitted) > numbers[1 - chosen])
    rest.say(rest.submitted[-1], [], finish=FinishReason.STOP)
    assert (await talk).status == 200


@async_test
async def test_each_request_is_one_line_in_the_log_and_each_migration_a_warning(
    text: TextModel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(text) as served:
        await migrate(served, beside(served), HI | {"stop": "STOP"})
    done = [r for r in caplog.records if r.getMessage() == "request done"]
    fields = vars(done[0])["headrace_fields"]
    assert len(done) == 1
    assert (fields["id"], fields["tenant"], fields["finish"]) == ("mine", "default", "stop")
    assert (fields["replica"], fields["migrations"]) == ("r0, r1", 1)
    assert fields["output_tokens"] == 2 + len(text.tokenizer.encode("STOP"))
    assert 0 < fields["ttft"] <= fields["seconds"]
    (moved,) = [r for r in caplog.records if r.getMessage() == "request goes on elsewhere"]
    assert moved.levelno == logging.WARNING
    assert vars(moved)["headrace_fields"]["tokens"] == 2
    assert not any(PROMPT in str(vars(record)) for record in caplog.records)


@async_test
async def test_records_and_journal_hold_no_word_of_a_prompt(text: TextModel) -> None:
    async with serving(text) as served:
        await migrate(served, beside(served), HI | {"stop": "STOP"})
        questions = served.gateway.questions
        for path in ("/state", "/requests", "/journal", "/explain/mine", "/metrics"):
            body = questions.answer(path).body.decode()
            assert "secret" not in body
        kinds = [entry.kind for entry in questions.journal.after(0)]
        assert kinds.count("dispatch") == 2
        assert kinds.count("go_on") == 1
        found = questions.explanation("mine")
        assert [row.replica for row in found.placements] == ["r0", "r1"]
        names = [span.name for span in found.spans]
        assert names[: names.index("move") + 1][-3:] == ["prefill", "decode", "move"]
        assert sum(span.seconds for span in found.spans) == pytest.approx(found.seconds)


@async_test
async def test_what_is_cached_is_told_by_prediction_and_by_fact(text: TextModel) -> None:
    async with serving(text) as served:
        await migrate(served, beside(served), HI | {"stop": "STOP"})
        assert served.registry.value(table.ACTUAL_CACHED, "r0") == 4
        assert served.registry.value(table.PREDICTED_CACHED, "r0") == 0
        assert served.registry.value(table.TTFT_RATIO) == 2, "both attempts were predicted"
        assert served.registry.value(table.TIME_TO_FIRST_TOKEN) == 1, "a client waits once"


@async_test
async def test_tokens_of_one_step_are_counted_together_and_none_is_forgotten(
    text: TextModel,
) -> None:
    async with serving(text) as served:
        talks = [asyncio.create_task(served.request("POST", CHAT, HI)) for _ in range(3)]
        requests = [await served.replica.next_request() for _ in talks]
        for _ in range(5):
            for request in requests:
                served.replica.say(request, served.encode("a"))
        for request in requests:
            served.replica.say(request, [], finish=FinishReason.LENGTH)
        await asyncio.gather(*talks)
        assert served.registry.value(table.TIME_TO_FIRST_TOKEN) == 3
        assert served.registry.value(table.INTER_TOKEN) == 12
        now = served.clock.now()
        assert served.gateway.questions.figures.itl.count(now) == 12
