"""Blocks between replicas in virtual time: nothing is lost, and prompts cost less."""

from __future__ import annotations

from test_cluster import BUSY, config_of, play

from headrace.core.router.machine import RouterLimits
from headrace.twin.config import Kill
from headrace.twin.traces.opening import open_trace


def test_prefixes_come_from_neighbours_where_the_network_is_quicker_than_computing():
    trace = open_trace(BUSY, seed=3)
    shares = {}
    for bandwidth in (0.0, 1e6, 12.5e9):
        cluster, figures = play(config_of(policy="round_robin", kv_bandwidth=bandwidth), trace)
        assert figures.completed == 150
        assert figures.failed == figures.wrong_tokens == 0
        cluster.gateway.router.check_integrity()
        shares[bandwidth] = figures.cached_share
    assert shares[1e6] == shares[0.0]  # 2 seconds a block: nobody asks
    assert shares[12.5e9] > shares[0.0]
    off = config_of(
        policy="round_robin", kv_bandwidth=12.5e9, router=RouterLimits(kv_transfer=False)
    )
    assert play(off, trace)[1].cached_share == shares[0.0]


def test_lenders_that_die_cost_no_request():
    trace = open_trace(BUSY, seed=3)
    kills = (Kill(replica=1, at=2.0), Kill(replica=0, at=3.0))
    config = config_of(policy="round_robin", kv_bandwidth=12.5e9, kills=kills)
    _, figures = play(config, trace)
    assert figures.completed == 150
    assert figures.failed == figures.wrong_tokens == 0
