"""Connections stay below what the system's limit of file descriptors allows."""

from __future__ import annotations

import resource

import pytest

from headrace.server.gateway.config import GatewayConfig
from headrace.server.gateway.descriptors import fitted, raise_limit
from headrace.server.gateway.http.limits import HttpLimits


def test_enough_descriptors_change_nothing():
    config = GatewayConfig()
    assert fitted(config, 1_048_576) is config
    assert fitted(config, resource.RLIM_INFINITY, for_each=2) is config


@pytest.mark.parametrize(
    ("limit", "for_each", "expected"), [(1024, 1, 928), (1024, 2, 448), (100, 1, 4), (10, 2, 1)]
)
def test_few_descriptors_are_fewer_connections(limit: int, for_each: int, expected: int):
    config = GatewayConfig(http=HttpLimits(max_connections=1024, reserved_connections=16))
    assert fitted(config, limit, for_each=for_each).http.max_connections == expected


def test_the_limit_is_raised_as_far_as_it_may():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard, 512), hard))
        assert raise_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
