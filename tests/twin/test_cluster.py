"""A cluster in virtual time: nothing is lost, whatever happens, and a run repeats itself."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from headrace.core.autoscaler.config import AutoscalerConfig
from headrace.core.costs.roofline import Deployment
from headrace.core.scheduler.config import SchedulerConfig
from headrace.twin.cluster import Cluster, build_cluster
from headrace.twin.config import Kill, Pool, SimulationConfig
from headrace.twin.figures import Figures, figures_of, to_json
from headrace.twin.hardware import GPUS
from headrace.twin.models import MODELS
from headrace.twin.network import Delay
from headrace.twin.traces.arrivals import Trace
from headrace.twin.traces.opening import open_trace

BUSY = "gen:shared-prefix?rate=30&requests=150&groups=4&prefix=256&prompt=64&output=40"


def config_of(replicas: int = 3, **changes: object) -> SimulationConfig:
    config = SimulationConfig(
        deployment=Deployment(model=MODELS["llama-3.1-8b"], gpu=GPUS["l4"]),
        pool=Pool(replicas=replicas, floor=replicas, ceiling=replicas, start_seconds=5.0),
        scheduler=SchedulerConfig(
            max_num_seqs=32, max_num_batched_tokens=512, max_num_waiting=4096, share_partial=False
        ),
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def play(config: SimulationConfig, trace: Trace) -> tuple[Cluster, Figures]:
    cluster = build_cluster(config, trace)
    cluster.run()
    return cluster, figures_of(cluster, trace)


@pytest.mark.parametrize("policy", ["round_robin", "least_requests", "predicted_ttft"])
def test_every_request_ends_once_with_the_tokens_it_asked_for(policy: str):
    trace = open_trace(BUSY, seed=3)
    cluster, figures = play(config_of(policy=policy), trace)
    assert figures.requests == figures.completed == 150
    assert figures.failed == figures.wrong_tokens == 0
    ledger = cluster.clients.ledger
    assert ledger.tokens.output == sum(a.max_tokens for a in trace.arrivals)
    assert ledger.tokens.prompt == sum(a.prompt_tokens for a in trace.arrivals)
    assert len(ledger.itl) == ledger.tokens.output - 150
    assert sum(row.requests for row in figures.replicas) == 150
    assert 0.3 < figures.cached_share < 0.8  # four prefixes of 256 tokens before 64
    assert cluster.gateway.router.num_alive == 0
    cluster.gateway.router.check_integrity()


def test_one_seed_gives_the_same_bytes_and_another_one_does_not():
    trace = open_trace(BUSY, seed=0)
    config = config_of(network=Delay(seconds=0.001, jitter=0.002), kills=(Kill(replica=1, at=2.0),))
    runs = [to_json(play(replace(config, seed=seed), trace)[1]) for seed in (5, 5, 6)]
    assert runs[0] == runs[1] != runs[2]


def test_clocks_of_processes_make_no_difference():
    """Seeds move every clock; without jitter nothing else depends on them."""
    trace = open_trace(BUSY, seed=0)
    first, second = (play(config_of(seed=seed), trace)[1] for seed in (1, 2))
    assert first.completed == second.completed
    assert first.e2e_ms is not None
    assert second.e2e_ms is not None
    assert first.e2e_ms.p50 == pytest.approx(second.e2e_ms.p50, rel=0.02)


@pytest.mark.timeout(60)
def test_the_order_of_hashes_makes_no_difference():
    command = [sys.executable, "-m", "headrace", "simulate", "--trace", "gen:poisson?requests=60"]
    command += ["--gpu", "l4", "--replicas", "3", "--kill", "0@3", "--json", "-"]
    outputs = [
        subprocess.run(
            command,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            timeout=30,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("policy", ["round_robin", "predicted_ttft"])
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_replica_costs_no_request_and_no_token(policy: str, seed: int):
    trace = open_trace(BUSY, seed=seed)
    config = config_of(policy=policy, seed=seed, kills=(Kill(replica=1, at=2.0),))
    cluster, figures = play(config, trace)
    assert figures.completed == 150
    assert figures.failed == figures.wrong_tokens == 0
    assert figures.migrations > 0
    events = [step.what for step in cluster.pool.timeline]
    assert events[0] == "kill r1"
    if "ready r1" in events:
        ready = cluster.pool.timeline[events.index("ready r1")]
        assert ready.at == pytest.approx(2.0 + 1.0 + 5.0, abs=0.01)


def test_without_another_replica_its_requests_wait_for_the_restart():
    trace = open_trace("gen:poisson?rate=4&requests=30&prompt=64&output=40", seed=0)
    config = config_of(1, kills=(Kill(replica=0, at=3.0),))
    cluster, figures = play(config, trace)
    assert figures.completed == 30
    assert figures.wrong_tokens == 0
    assert [step.what for step in cluster.pool.timeline] == ["kill r0", "ready r0"]


def test_killing_what_is_not_there_is_only_noted():
    trace = open_trace("gen:poisson?rate=4&requests=5&output=10", seed=0)
    cluster, figures = play(config_of(1, kills=(Kill(replica=9, at=0.5),)), trace)
    assert figures.completed == 5
    (step,) = cluster.pool.timeline
    assert step.what == "kill r9"


def test_the_pool_grows_under_load_and_shrinks_after_it():
    heavy = open_trace("gen:poisson?rate=20&requests=600&prompt=600&output=60", seed=0)
    light = open_trace("gen:poisson?rate=0.5&requests=80&prompt=64&output=16", seed=1)
    later = tuple(a._replace(at=a.at + heavy.seconds, seed=a.seed + 10_000) for a in light.arrivals)
    trace = Trace(name="rise and fall", arrivals=(*heavy.arrivals, *later))
    pool = Pool(replicas=1, floor=1, ceiling=4, start_seconds=3.0)
    autoscaler = AutoscalerConfig(scale_in_after=10.0, start_guess=3.0)
    cluster, figures = play(config_of(pool=pool, autoscaler=autoscaler), trace)
    assert figures.completed == len(trace.arrivals)
    assert figures.wrong_tokens == 0
    events = [step.what.split()[0] for step in cluster.pool.timeline]
    assert events.count("start") == 3
    assert events.count("ready") == 3
    assert "drain" in events
    assert "stop" in events
    assert figures.replica_seconds < 4 * figures.seconds


def test_a_closed_loop_has_so_many_requests_at_a_time():
    trace = open_trace("gen:poisson?rate=1000&requests=40&output=20", seed=0)
    cluster, figures = play(config_of(2, concurrency=4), trace)
    assert figures.completed == 40
    assert all(row.requests == 20 for row in figures.replicas) or figures.imbalance < 1.5
    assert max(cluster.kv_used) < 0.5


def test_a_prompt_beyond_the_context_fails_and_the_others_do_not():
    good = open_trace("gen:poisson?requests=5&output=8", seed=0)
    huge = good.arrivals[2]._replace(prompt=(good.arrivals[2].prompt[0]._replace(length=140_000),))
    arrivals = (*good.arrivals[:2], huge, *good.arrivals[3:])
    _, figures = play(config_of(1), Trace(name="one too long", arrivals=arrivals))
    assert figures.completed == 4
    assert figures.failures == {"context_length_exceeded": 1}


def test_requests_beyond_their_time_fail():
    trace = open_trace("gen:poisson?rate=50&requests=60&prompt=2000&output=100", seed=0)
    _, figures = play(config_of(1, request_timeout=3.0), trace)
    assert figures.failed > 0
    assert figures.completed + figures.failed == 60
