"""What foreign replicas bill as cached is held against what the gateway guessed."""

from __future__ import annotations

import pytest
from foreign_serving import serving

from headrace.core.router.knowledge import MIN_PREDICTIONS, KvKnowledge
from headrace.monitoring import table
from headrace.testing.async_test import async_test
from headrace.testing.openai_replica import Script
from headrace.testing.openai_texts import AnswerText

LONG = "a mill by the river " * 100  # some chunks


def bill(monkeypatch: pytest.MonkeyPatch, cached: int | None) -> None:
    """Have replicas say so in their usage."""
    usage: dict[str, object] = {"prompt_tokens": 500, "completion_tokens": 4}
    if cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    monkeypatch.setattr(AnswerText, "_usage", lambda *_: usage)


@pytest.mark.parametrize("stream", [True, False])
@async_test
async def test_a_cache_that_forgets_is_found_out_by_what_it_bills(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bill(monkeypatch, 0)
    options = {"stream_options": {"include_usage": True}} if stream else {}
    async with serving(Script()) as rig:
        for _ in range(1 + MIN_PREDICTIONS):  # of the first nothing is predicted
            assert (await rig.chat(LONG, stream=stream, **options)).status == 200
        (pool,) = rig.gateway.pools.pools
        (figures,) = pool.router.figures(0.0).replicas
        assert (figures.knowledge, figures.accuracy) == (KvKnowledge.APPROXIMATE, 0.0)
        pool_of_all = rig.gateway.questions.pool
        pool_of_all.record(rig.registry, 0.0)
        assert rig.count(table.PREFIX_INDEX_ACCURACY, rig.replicas[0].name) == 0.0
        assert rig.count(table.PREFIX_INDEX_STATE, rig.replicas[0].name, "approximate") == 1
        (row,) = pool_of_all.rows(0.0)
        assert (row.index, row.index_accuracy) == ("approximate", 0.0)


@async_test
async def test_a_replica_that_does_not_say_what_it_had_is_not_taken_to_have_had_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bill(monkeypatch, None)
    async with serving(Script()) as rig:
        for _ in range(2 + MIN_PREDICTIONS):
            assert (await rig.chat(LONG, stream=False)).status == 200
        (pool,) = rig.gateway.pools.pools
        (figures,) = pool.router.figures(0.0).replicas
        assert figures.accuracy is None
