"""What clients say of a prompt's next use reaches the engine, within bounds, or is refused."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from gateway_serving import CHAT, COMPLETE, Served, serving

from headrace.server.gateway.config import GatewayConfig
from headrace.testing.async_test import async_test

if TYPE_CHECKING:
    from headrace.model.text import TextModel
    from headrace.types import Request

LONG = GatewayConfig(max_retention=100_000)


def chat_with(*controls: object) -> dict[str, object]:
    parts = [{"type": "text", "text": "hi", "cache_control": control} for control in controls]
    return {"messages": [{"role": "user", "content": parts}]}


async def asked_for(
    served: Served,
    path: str,
    fields: dict[str, object],
    **headers: str,
) -> Request:
    base = {"messages": [{"role": "user", "content": "hi"}]} if path == CHAT else {"prompt": "hi"}
    talk = asyncio.create_task(served.request("POST", path, base | fields, **headers))
    await served.until(lambda: served.replica.submitted != [])
    await served.answer_with("x")
    assert (await talk).status == 200
    return served.replica.submitted.pop()


@async_test
async def test_a_cache_key_or_a_header_names_the_session_and_the_key_goes_first(
    text: TextModel,
) -> None:
    async with serving(text) as served:
        header = {"x_session_id": "walk"}
        assert (await asked_for(served, CHAT, {})).session == ""
        assert (await asked_for(served, CHAT, {"prompt_cache_key": "talk"})).session == "talk"
        assert (await asked_for(served, COMPLETE, {}, **header)).session == "walk"
        both = await asked_for(served, CHAT, {"prompt_cache_key": "talk"}, **header)
        assert both.session == "talk"


@async_test
@pytest.mark.parametrize(
    ("path", "fields", "seconds"),
    [
        (CHAT, {}, None),
        (CHAT, {"prompt_cache_retention": "24h"}, 86_400),
        (COMPLETE, {"prompt_cache_retention": "in_memory"}, 600),
        (CHAT, chat_with({"type": "ephemeral"}), 300),
        (CHAT, chat_with(None, {"type": "ephemeral", "ttl": "1h"}, {"type": "ephemeral"}), 3600),
    ],
)
async def test_retention_is_asked_for_in_three_ways(
    text: TextModel, path: str, fields: dict[str, object], seconds: float | None
) -> None:
    async with serving(text, LONG) as served:
        assert (await asked_for(served, path, fields)).retention == seconds


@async_test
async def test_retention_is_capped_by_the_settings(text: TextModel) -> None:
    async with serving(text, GatewayConfig(max_retention=60)) as served:
        request = await asked_for(served, CHAT, {"prompt_cache_retention": "24h"})
        assert request.retention == 60


@async_test
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt_cache_retention": "48h"}, "prompt_cache_retention"),
        ({"prompt_cache_key": ""}, "prompt_cache_key"),
        ({"prompt_cache_key": "x" * 257}, "prompt_cache_key"),
        (chat_with({"type": "persistent"}), "messages[...].content[...].cache_control.type"),
        (chat_with({"type": "ephemeral", "ttl": "2h"}), None),
    ],
)
async def test_unknown_values_are_refused(
    text: TextModel, fields: dict[str, object], param: str | None
) -> None:
    async with serving(text) as served:
        base = {"messages": [{"role": "user", "content": "hi"}]}
        answer = await served.request("POST", CHAT, base | fields)
        assert answer.status == 400
        if param is not None and "[" not in param:
            assert answer.error["param"] == param
        assert served.replica.submitted == []


@async_test
async def test_a_session_header_that_is_too_long_is_refused(text: TextModel) -> None:
    async with serving(text) as served:
        body = {"messages": [{"role": "user", "content": "hi"}]}
        answer = await served.request("POST", CHAT, body, x_session_id="x" * 300)
        assert answer.status == 400
        assert "x-session-id has 300 bytes" in answer.error["message"]
