"""Classes and targets: what is asked in body, header and key; what engines get; what is counted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from gateway_serving import CHAT, COMPLETE, Answer, Served, serving

from headrace.clock import MonotonicClock
from headrace.core.scheduler.events import Reject, Submit
from headrace.monitoring import table
from headrace.server.gateway.config import GatewayConfig
from headrace.server.key_file import KeyBook, KeyEntry, write_key_file
from headrace.server.keys import KEY_BYTES, Keys, digest_of, new_key, open_keys, prefix_of
from headrace.server.transport.frames import ConnectionLimits
from headrace.server.transport.link import EngineLink
from headrace.server.transport.listener import EngineListener
from headrace.testing.async_test import async_test
from headrace.testing.fake_replica import FIRST, describe
from headrace.types import FinishReason, PriorityClass, Request

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.model.text import TextModel

HI = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 60}
PEPPER = "ab" * 32
INTERACTIVE, STANDARD, BATCH = PriorityClass


async def asked(
    served: Served, body: dict[str, object] | None = None, path: str = CHAT, **headers: str
) -> tuple[Request, Answer]:
    """Ask; return the request that reached the replica, and the answer it gave."""
    whole = (HI if path == CHAT else {"prompt": "hi"}) | (body or {})
    talk = asyncio.create_task(served.request("POST", path, whole, **headers))
    await served.until(lambda: served.replica.submitted != [])
    await served.answer_with("x")
    return served.replica.submitted.pop(), await talk


@pytest.mark.parametrize("path", [CHAT, COMPLETE])
@async_test
async def test_targets_of_body_or_header_reach_the_engine(text: TextModel, path: str) -> None:
    body: dict[str, object] = {"ttft_ms": 500, "itl_ms": 40.5, "deadline_ms": 9000}
    headers = {
        "x_headrace_ttft_ms": "500",
        "x_headrace_itl_ms": "40.5",
        "x_headrace_deadline_ms": "9000",
    }
    async with serving(text) as served:
        for fields, fields_of_header in ((body, {}), ({}, headers), (body, headers)):
            before = served.clock.now()
            request, _ = await asked(served, fields, path, **fields_of_header)
            after = served.clock.now()
            assert request.first_token_by is not None
            assert request.deadline is not None
            assert before + 0.5 <= request.first_token_by <= after + 0.5
            assert before + 9 <= request.deadline <= after + 9
            assert request.itl == 0.0405
        request, _ = await asked(served, {"timeout": 5, "deadline_ms": 9000}, path)
        assert request.deadline is not None
        assert request.deadline <= served.clock.now() + 5, "the sooner one counts"
        assert request.first_token_by is not None, "an answer in time begins in time"
        request, _ = await asked(served, None, path)
        assert (request.first_token_by, request.itl, request.weight) == (None, None, 1.0)
        assert request.priority is STANDARD


CLASSES = [
    ({"service_tier": "flex"}, {}, BATCH),
    ({"service_tier": "priority"}, {}, INTERACTIVE),
    ({"service_tier": "default"}, {}, STANDARD),
    ({"service_tier": "auto"}, {}, STANDARD),
    ({"service_tier": "auto"}, {"x_headrace_class": "batch"}, BATCH),
    ({"priority_class": "interactive"}, {}, INTERACTIVE),
    ({"priority_class": "batch", "service_tier": "flex"}, {"x_headrace_class": "Batch"}, BATCH),
    ({}, {"x_headrace_class": "interactive"}, INTERACTIVE),
]


@async_test
async def test_a_class_is_told_in_openais_words_or_in_ours(text: TextModel) -> None:
    async with serving(text) as served:
        for body, headers, expected in CLASSES:
            request, answer = await asked(served, dict(body), **headers)
            assert request.priority is expected, (body, headers)
            assert answer.headers["x-headrace-class"] == expected.value
        _, answer = await asked(served, {"service_tier": "flex"})
        assert answer.json["service_tier"] == "flex"
        _, answer = await asked(served, {"service_tier": "flex", "stream": True})
        assert {event["service_tier"] for event in answer.events} == {"flex"}
        _, answer = await asked(served)
        assert "service_tier" not in answer.json


@async_test
async def test_choices_share_class_and_targets(text: TextModel) -> None:
    async with serving(text) as served:
        body = HI | {"n": 3, "ttft_ms": 500, "service_tier": "priority"}
        talk = asyncio.create_task(served.request("POST", CHAT, body))
        requests = [await served.replica.next_request() for _ in range(3)]
        assert len({request.first_token_by for request in requests}) == 1
        assert {request.priority for request in requests} == {INTERACTIVE}
        for request in requests:
            served.replica.say(request, [], finish=FinishReason.LENGTH)
        await talk
        assert served.registry.value(table.WITH_TARGETS, "interactive") == 1


BAD_HEADERS = [
    ("x-headrace-ttft-ms", "0"),
    ("x-headrace-ttft-ms", "-1"),
    ("x-headrace-ttft-ms", "nan"),
    ("x-headrace-ttft-ms", "1e3"),
    ("x-headrace-ttft-ms", "500, 600"),
    ("x-headrace-itl-ms", ""),
    ("x-headrace-itl-ms", "9" * 400),
    ("x-headrace-deadline-ms", "86400001"),
    ("x-headrace-class", "urgent"),
    ("x-headrace-class", ""),
]
CONTRADICTIONS = [
    ({"ttft_ms": 500}, ("x-headrace-ttft-ms", "300"), "x-headrace-ttft-ms"),
    ({"service_tier": "flex", "priority_class": "standard"}, None, "priority_class"),
    ({"service_tier": "priority"}, ("x-headrace-class", "batch"), "x-headrace-class"),
]


@async_test
async def test_a_wrong_or_contradictory_header_is_refused_by_its_name(text: TextModel) -> None:
    async with serving(text) as served:
        for name, value in BAD_HEADERS:
            answer = await served.request("POST", CHAT, HI, **{name: value})
            assert (answer.status, answer.error["param"]) == (400, name), value
        for body, header, param in CONTRADICTIONS:
            headers = dict([header]) if header else {}
            answer = await served.request("POST", CHAT, HI | body, **headers)
            assert (answer.status, answer.error["param"]) == (400, param), body
            assert "send one" in answer.error["message"]
        assert served.replica.submitted == []


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


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    path = tmp_path / "keys.json"
    entries = (
        entry("one", "red", weight=3.0, tightest_ttft_ms=400, tightest_itl_ms=50),
        entry("fast", "blue", highest=INTERACTIVE),
        entry("boss", "boss", trusted=True, weight=0.5),
    )
    write_key_file(path, KeyBook(pepper=PEPPER, cache_secret="cd" * 32, keys=entries))
    return open_keys((), path)


@async_test
async def test_a_key_caps_class_and_targets_and_gives_the_weight(
    text: TextModel, keys: Keys
) -> None:
    def bearer(name: str) -> dict[str, str]:
        return {"authorization": f"Bearer {key_of(name)}"}

    urgent: dict[str, object] = {"service_tier": "priority", "ttft_ms": 100, "itl_ms": 10}
    async with serving(text, keys=keys) as served:
        request, answer = await asked(served, urgent, **bearer("one"))
        assert (request.priority, request.itl, request.weight) == (STANDARD, 0.05, 3.0)
        assert request.first_token_by is not None
        assert request.deadline is not None
        assert request.deadline - request.first_token_by == pytest.approx(600 - 0.4)
        assert answer.headers["x-headrace-class"] == "standard"
        assert answer.json["service_tier"] == "default"
        request, _ = await asked(served, {"itl_ms": 60}, **bearer("one"))
        assert request.itl == 0.06
        request, _ = await asked(served, urgent, **bearer("fast"))
        assert (request.priority, request.itl, request.weight) == (INTERACTIVE, 0.01, 1.0)
        request, _ = await asked(served, None, x_headrace_tenant="red", **bearer("boss"))
        assert (request.tenant, request.weight) == ("red", 3.0), "the tenant's own weight"
        request, _ = await asked(served, None, x_headrace_tenant="new", **bearer("boss"))
        assert (request.tenant, request.weight) == ("new", 0.5)


@async_test
async def test_without_keys_tenants_can_be_named_where_the_settings_say_so(
    text: TextModel,
) -> None:
    async with serving(text) as served:
        request, _ = await asked(served, x_headrace_tenant="blue")
        assert request.tenant == "default"
    for keys in (Keys(trust_tenant_header=True), Keys(["key"], trust_tenant_header=True)):
        async with serving(text, keys=keys) as served:
            bearer = {"authorization": "Bearer key"}
            request, _ = await asked(served, x_headrace_tenant="blue", **bearer)
            assert request.tenant == "blue"
            answer = await served.request("POST", CHAT, HI, x_headrace_tenant="a b", **bearer)
            assert (answer.status, answer.error["param"]) == (400, "x-headrace-tenant")


@pytest.mark.parametrize("stream", [False, True])
@async_test
async def test_a_refused_target_is_a_503_that_says_when_to_come_back(
    text: TextModel, stream: bool
) -> None:
    async with serving(text) as served:
        body = HI | {"ttft_ms": 500, "stream": stream}
        talk = asyncio.create_task(served.request("POST", CHAT, body))
        request = await served.replica.next_request()
        reason = "the first token would come in about 3.2 s, 0.5 s were asked for"
        served.replica.reject(request, "deadline_infeasible", reason, retry_after=2.7)
        answer = await talk
        assert (answer.status, answer.headers["retry-after"]) == (503, "3")
        assert answer.error["code"] == "deadline_infeasible"
        assert answer.error["type"] == "overloaded_error"
        assert answer.error["message"] == reason
        assert served.registry.value(table.TARGETS_MISSED, "standard", "refused") == 1


@async_test
async def test_a_deadline_that_passes_in_a_stream_is_an_error_event(text: TextModel) -> None:
    async with serving(text) as served:
        body = HI | {"deadline_ms": 5000, "stream": True}
        talk = asyncio.create_task(served.request("POST", CHAT, body))
        request = await served.replica.next_request()
        served.replica.say(request, served.encode("a"))
        served.replica.say(request, [], finish=FinishReason.DEADLINE)
        answer = await talk
        assert answer.status == 200
        assert answer.events[-1]["error"]["code"] == "deadline_exceeded"
        assert all(event.get("choices") for event in answer.events[:-1])
        assert served.registry.value(table.TARGETS_MISSED, "standard", "deadline") == 1


async def play(
    served: Served, body: dict[str, object], *, first: float, gap: float, tokens: int = 3
) -> str:
    """Ask; tokens come after ``first`` and then every ``gap`` seconds. Return the request's id."""
    talk = asyncio.create_task(served.request("POST", CHAT, HI | body))
    request = await served.replica.next_request()
    for index in range(tokens):
        served.clock.advance(gap if index else first)
        served.replica.say(request, served.encode("a"))
        await asyncio.sleep(0)  # the gateway takes it before the clock goes on
    served.replica.say(request, [], finish=FinishReason.STOP)
    return (await talk).headers["x-request-id"]


def counted(served: Served, priority: str) -> tuple[float, float, dict[str, float]]:
    value = served.registry.value
    names = ("ttft", "itl", "deadline", "refused", "failed")
    missed = {name: value(table.TARGETS_MISSED, priority, name) for name in names}
    return (
        value(table.WITH_TARGETS, priority),
        value(table.WITHIN_TARGETS, priority),
        {name: number for name, number in missed.items() if number},
    )


ASKED = {"ttft_ms": 1000, "itl_ms": 100, "deadline_ms": 500_000}


@pytest.mark.parametrize(
    ("first", "gap", "missed"),
    [
        (0.5, 0.05, {}),
        (5.0, 0.05, {"ttft": 1}),
        (0.5, 2.0, {"itl": 1}),
        (5.0, 2.0, {"ttft": 1, "itl": 1}),
    ],
)
@async_test
async def test_a_request_is_within_its_targets_or_misses_them_by_name(
    text: TextModel, first: float, gap: float, missed: dict[str, float]
) -> None:
    async with serving(text) as served:
        await play(served, dict(ASKED), first=first, gap=gap)
        assert counted(served, "standard") == (1, 0 if missed else 1, missed)


@async_test
async def test_one_slow_gap_is_no_miss_while_the_mean_is_kept(text: TextModel) -> None:
    async with serving(text) as served:
        talk = asyncio.create_task(served.request("POST", CHAT, HI | {"itl_ms": 500}))
        request = await served.replica.next_request()
        for gap in (0.1, 0.1, 0.1, 0.1, 1.0):
            served.clock.advance(gap)
            served.replica.say(request, served.encode("a"))
            await asyncio.sleep(0)
        served.replica.say(request, [], finish=FinishReason.STOP)
        await talk
        assert counted(served, "standard") == (1, 1, {})


@async_test
async def test_requests_without_targets_are_measured_by_those_of_their_class(
    text: TextModel,
) -> None:
    config = GatewayConfig(interactive_ttft_ms=1000, standard_itl_ms=100)
    async with serving(text, config) as served:
        await play(served, {"service_tier": "priority"}, first=5.0, gap=0.01)
        assert counted(served, "interactive") == (1, 0, {"ttft": 1})
        await play(served, {"service_tier": "priority", "ttft_ms": 60_000}, first=5.0, gap=0.01)
        assert counted(served, "interactive") == (2, 1, {"ttft": 1})
        await play(served, {"service_tier": "flex"}, first=5.0, gap=9.0)
        assert counted(served, "batch") == (0, 0, {})
        request, _ = await asked(served)
        assert (request.first_token_by, request.itl) == (None, None), "measured, not asked for"


@async_test
async def test_what_fails_has_missed_and_who_leaves_in_time_does_not_count(
    text: TextModel,
) -> None:
    async with serving(text) as served:
        talk = asyncio.create_task(served.request("POST", CHAT, HI | ASKED))
        request = await served.replica.next_request()
        served.replica.say(request, [], finish=FinishReason.ERROR)
        assert (await talk).status == 500
        assert counted(served, "standard") == (1, 0, {"failed": 1})
        for late, expected in ((0.0, 1), (5.0, 2)):
            client = await served.connect()
            client.ask("POST", CHAT, HI | ASKED)
            request = await served.replica.next_request()
            served.clock.advance(late)
            client.reset()
            await served.until(lambda: request.id in served.replica.aborted)  # noqa: B023
            assert counted(served, "standard")[0] == expected
        assert counted(served, "standard") == (2, 0, {"failed": 1, "ttft": 1})
        client = await served.connect()
        client.ask("POST", CHAT, HI | ASKED)
        request = await served.replica.next_request()
        for _ in range(3):  # two seconds apart
            served.replica.say(request, served.encode("a"))
            await asyncio.sleep(0)
            served.clock.advance(2.0)
        client.reset()
        await served.until(lambda: request.id in served.replica.aborted)
        assert counted(served, "standard") == (3, 0, {"failed": 1, "ttft": 1, "itl": 1})


@async_test
async def test_an_explanation_tells_class_tenant_and_targets(text: TextModel) -> None:
    async with serving(text) as served:
        body = {"service_tier": "priority", **ASKED}
        told = served.gateway.questions.explanation(
            await play(served, body, first=5.0, gap=0.05, tokens=5)
        )
        assert (told.priority, told.tenant) == ("interactive", "default")
        rows = {row.name: row for row in told.targets}
        assert [row.missed for row in rows.values()] == [True, False, False]
        assert (rows["ttft"].asked, rows["itl"].asked, rows["deadline"].asked) == (1, 0.1, 500)
        assert rows["ttft"].got == pytest.approx(5.0, abs=0.5)
        (row,) = served.gateway.questions.requests(1)
        assert (row.priority, row.missed) == ("interactive", "ttft")
        rates = served.gateway.questions.state().rates
        assert rates.with_targets > rates.goodput == 0


class AheadClock:
    """An engine's clock: far from the gateway's."""

    def __init__(self) -> None:
        self._clock = MonotonicClock()

    def now(self) -> float:
        return self._clock.now() + 1e6


@async_test
async def test_class_targets_and_weight_cross_the_wire_to_an_engine_and_its_refusal_comes_back(
    text: TextModel, tmp_path: Path
) -> None:
    limits, engine_clock = ConnectionLimits(), AheadClock()
    submitted: asyncio.Queue[Request] = asyncio.Queue()

    def deliver(event: object) -> None:
        if isinstance(event, Submit):
            submitted.put_nowait(event.request)

    listener = EngineListener(
        description=describe(FIRST, vocab_size=text.tokenizer.vocab_size),
        deliver=deliver,
        clock=engine_clock,
        limits=limits,
    )
    await listener.start(tmp_path / "engine.sock")
    keys = Keys(trust_tenant_header=True)
    async with serving(text, keys=keys, connect=False) as served:
        link = EngineLink(
            replica=FIRST,
            gateway="g0",
            path=tmp_path / "engine.sock",
            events=served.gateway.traffic,
            clock=served.clock,
            limits=limits,
        )
        running = asyncio.create_task(link.run())
        body = HI | {"service_tier": "priority", "ttft_ms": 2000, "itl_ms": 30}
        talk = asyncio.create_task(served.request("POST", CHAT, body, x_headrace_tenant="blue"))
        request = await submitted.get()
        assert (request.priority, request.tenant, request.itl) == (INTERACTIVE, "blue", 0.03)
        assert request.weight == 1.0
        assert request.first_token_by is not None
        assert 0 < request.first_token_by - engine_clock.now() <= 2
        listener.send_rejection(Reject(request.id, "deadline_infeasible", "not in time", 4.2))
        answer = await talk
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert answer.error["message"] == "not in time"
        running.cancel()
        await asyncio.wait([running])
    listener.close("the test is over")
