"""How many replicas a load needs."""

from __future__ import annotations

import pytest

from headrace.core.autoscaler.config import AutoscalerConfig
from headrace.core.autoscaler.events import PoolLoad, ReplicaLoad
from headrace.core.autoscaler.need import need_of
from headrace.types import ReplicaId

CONFIG = AutoscalerConfig(target_ttft=2.0, kv_limit=0.8)


def pool(
    *replicas: ReplicaLoad, waiting: int = 0, tokens: int = 0, ttft: float | None = None
) -> PoolLoad:
    return PoolLoad(
        waiting=waiting, waiting_tokens=tokens, predicted_ttft=ttft, replicas=tuple(replicas)
    )


def loaded(outstanding: int = 10, tokens: int = 0, kv: float = 0.0, rate: float = 0) -> ReplicaLoad:
    return ReplicaLoad(
        replica=ReplicaId("r"),
        outstanding=outstanding,
        prefill_tokens=tokens,
        kv_used=kv,
        prefill_rate=rate,
    )


@pytest.mark.parametrize(
    ("load", "replicas", "words"),
    [
        (pool(), 0, "no work"),
        (pool(loaded(outstanding=0)), 0, ""),
        (pool(loaded(), loaded(), ttft=3.0), 3.0, "predicted TTFT 3.00 s of 2 s"),
        (pool(loaded(tokens=3000, rate=500), tokens=2000), 5.0, "5000 queued tokens at 500"),
        (pool(loaded(tokens=3000), loaded(rate=500)), 3.0, "3000 queued tokens at 500 tokens/s"),
        (pool(loaded(tokens=3000)), 0, ""),  # nobody knows how fast they are
        (pool(loaded(kv=0.8), loaded(kv=0.4)), 1.5, "KV caches 60% full of 80%"),
        (pool(loaded(8), loaded(2), waiting=5), 3.0, "5 requests without a replica, 10 with one"),
        (pool(loaded(outstanding=2), loaded(outstanding=0), ttft=100), 2.0, "2 requests"),
    ],
)
def test_the_need_is_the_largest_of_time_work_memory_and_room(
    load: PoolLoad, replicas: float, words: str
):
    need = need_of(load, CONFIG)
    assert need.replicas == pytest.approx(replicas)
    assert words in need.reason
