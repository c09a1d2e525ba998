"""Four gateways in virtual time: nothing is lost, they do not herd, and quotas hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from headrace.core.costs.roofline import Deployment
from headrace.core.router.gossip import GOSSIP_PERIOD
from headrace.core.scheduler.config import SchedulerConfig
from headrace.errors import RateLimited
from headrace.twin.cluster import Cluster, build_cluster
from headrace.twin.config import Kill, Pool, SimulationConfig
from headrace.twin.hardware import GPUS
from headrace.twin.models import MODELS
from headrace.twin.traces.opening import open_trace

if TYPE_CHECKING:
    from headrace.twin.gateway import SimulatedGateway
    from headrace.twin.traces.arrivals import Trace
    from headrace.types import Request

BUSY = "gen:shared-prefix?rate=30&requests=150&groups=4&prefix=256&prompt=64&output=40"
STEADY = "gen:poisson?rate=20&requests=80&prompt=400&output=60"


def config_of(gateways: int = 4, **changes: object) -> SimulationConfig:
    config = SimulationConfig(
        deployment=Deployment(model=MODELS["llama-3.1-8b"], gpu=GPUS["l4"]),
        pool=Pool(replicas=4, floor=4, ceiling=4, start_seconds=5.0),
        scheduler=SchedulerConfig(
            max_num_seqs=32, max_num_batched_tokens=512, max_num_waiting=4096, share_partial=False
        ),
        gateways=gateways,
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def play(config: SimulationConfig, trace: Trace) -> Cluster:
    cluster = build_cluster(config, trace)
    cluster.run()
    for neighbour in cluster.front.neighbours:
        neighbour.gossip.check_integrity()
    for gateway in cluster.front.gateways:
        gateway.router.check_integrity()
        assert gateway.router.num_alive == 0
    return cluster


@pytest.mark.parametrize("seed", range(3))
def test_every_request_ends_once_even_if_a_replica_dies(seed: int):
    config = config_of(seed=seed, kills=(Kill(replica=1, at=2.0),))
    cluster = play(config, open_trace(BUSY, seed=seed))
    ledger = cluster.clients.ledger
    assert ledger.num_completed == 150
    assert ledger.tokens.wrong == 0
    assert cluster.front.migrations > 0
    assert all(gateway.tally.dispatched for gateway in cluster.front.gateways)


def test_equal_prefixes_meet_although_they_come_through_four_gateways():
    trace = open_trace(BUSY, seed=0)
    one, four = (play(config_of(number), trace).clients.ledger.tokens.cached for number in (1, 4))
    assert four > 0.9 * one


class Watched:
    """Notes at each dispatch how uneven the load of all gateways together is."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.excess: list[int] = []  # of the replica with most, over the even share
        for gateway in cluster.front.gateways:
            self._wrap(gateway)

    def _wrap(self, gateway: SimulatedGateway) -> None:
        arrive = gateway.arrive

        def arrive_and_look(request: Request) -> None:
            arrive(request)
            counts: Counter[str] = Counter()
            for each in self.cluster.front.gateways:
                for replica, load in each.router.share().loads.items():
                    counts[replica] += load.outstanding
            if counts:
                self.excess.append(max(counts.values()) - round(counts.total() / 4))

        gateway.arrive = arrive_and_look  # type: ignore[method-assign]

    @property
    def mean(self) -> float:
        return sum(self.excess) / len(self.excess)


def excess(gateways: int, gossip_period: float | None) -> float:
    config = config_of(gateways, gossip_period=gossip_period, policy="least_requests")
    cluster = build_cluster(config, open_trace(STEADY, seed=1))
    watched = Watched(cluster)
    cluster.run()
    return watched.mean


def test_with_gossip_requests_are_spread_nearly_as_by_one_gateway():
    seldom, never = excess(4, 0.05), excess(4, None)
    assert seldom < 0.75 * never


@pytest.mark.heavy
def test_first_tokens_come_nearly_as_soon_as_with_one_gateway():
    def mean_ttft(gateways: int, gossip_period: float | None) -> float:
        times: list[float] = []
        for seed in (1, 2):
            config = config_of(gateways, gossip_period=gossip_period, seed=seed)
            times += play(config, open_trace(STEADY, seed=seed)).clients.ledger.ttft
        return sum(times) / len(times)

    alone, with_gossip, without = (
        mean_ttft(1, None),
        mean_ttft(4, GOSSIP_PERIOD),
        mean_ttft(4, None),
    )
    assert with_gossip < 1.06 * alone
    assert excess(4, GOSSIP_PERIOD) < excess(4, 0.05)
    assert with_gossip < without


def test_a_burst_at_four_gateways_does_not_go_to_one_idle_replica():
    """40 requests within a period of gossip, all replicas idle: each gets its part."""
    trace = open_trace("gen:poisson?rate=2000&requests=40&prompt=400&output=20", seed=2)
    cluster = play(config_of(), trace)
    counts = cluster.front.dispatched
    assert counts.total() == 40
    assert max(counts.values()) <= 16
    assert min(counts[name] for name in cluster.pool.places) >= 4


@pytest.mark.parametrize("seed", range(3))
def test_a_quota_is_overshot_by_what_came_within_one_period_of_gossip_and_no_more(seed: int):
    limit = 12
    trace = open_trace("gen:poisson?rate=200&requests=800&prompt=64&output=30", seed=seed)
    config = config_of(max_concurrent=limit, seed=seed)
    cluster = build_cluster(config, trace)
    admitted: list[tuple[float, str]] = []
    most = 0
    window = GOSSIP_PERIOD + 2 * config.network.seconds

    def watch(gateway: SimulatedGateway) -> None:
        arrive = gateway.arrive

        def arrive_and_look(request: Request) -> None:
            nonlocal most
            before = gateway.quota.seats.taken[request.tenant]
            arrive(request)
            if gateway.quota.seats.taken[request.tenant] == before:
                return
            now = cluster.simulator.now
            unseen = sum(at > now - window and name != gateway.name for at, name in admitted[-100:])
            taken = sum(each.quota.seats.taken["default"] for each in cluster.front.gateways)
            most = max(most, taken)
            assert taken <= limit + unseen
            admitted.append((now, gateway.name))

        gateway.arrive = arrive_and_look  # type: ignore[method-assign]

    for gateway in cluster.front.gateways:
        watch(gateway)
    cluster.run()
    ledger = cluster.clients.ledger
    assert ledger.failures[RateLimited.code] > 100
    assert ledger.num_completed > limit
    assert limit <= most <= limit + 12
    assert all(not gateway.quota.seats.taken for gateway in cluster.front.gateways)


def test_without_gossip_the_quota_is_each_gateways_own():
    trace = open_trace("gen:poisson?rate=200&requests=400&prompt=64&output=30", seed=0)
    most = 0
    cluster = build_cluster(config_of(max_concurrent=4, gossip_period=None), trace)
    gateways = cluster.front.gateways
    arrive = [gateway.arrive for gateway in gateways]

    def look(index: int, request: Request) -> None:
        nonlocal most
        arrive[index](request)
        most = max(most, sum(each.quota.seats.taken["default"] for each in gateways))

    for index, gateway in enumerate(gateways):
        gateway.arrive = lambda request, index=index: look(index, request)  # type: ignore[assignment, misc]
    cluster.run()
    assert most == 16
