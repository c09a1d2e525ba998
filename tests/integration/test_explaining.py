"""A real server explains its requests: the spans sum to what the client measured."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import msgspec
import pytest
from http_client import connect

from headrace.clock import MonotonicClock
from headrace.monitoring.shapes import Explanation, ServerState
from headrace.server.admin.client import AdminClient
from headrace.testing.server_process import running_server

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from headrace.testing.server_process import ServerProcess

WITHIN = 0.02  # of the measured time
LOCAL = 0.005  # seconds on the way to the server and back that it cannot know of


def ask(server: ServerProcess, name: str, **fields: object) -> tuple[int, float]:
    """Send a completion under a name; return its status and how long it took."""
    clock = MonotonicClock()
    connection = connect(server)
    connection.connect()
    begun = clock.now()
    connection.request(
        "POST",
        "/v1/completions",
        msgspec.json.encode({"prompt": "the mill", "ignore_eos": True} | fields),
        {"Content-Type": "application/json", "X-Request-Id": name},
    )
    response = connection.getresponse()
    assert response.getheader("x-request-id") == name
    response.read()
    seconds = clock.now() - begun
    connection.close()
    return response.status, seconds


def check(explanation: Explanation, seconds: float) -> None:
    summed = sum(span.seconds for span in explanation.spans)
    assert summed == pytest.approx(explanation.seconds)
    assert summed == pytest.approx(seconds, rel=WITHIN, abs=LOCAL)


def test_spans_sum_to_the_time_that_the_client_measured(
    simulated: str, environment: Mapping[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "admin.sock"
    flags = ("--replicas", "2", "--admin", str(path), "--no-console")
    with running_server(simulated, *flags, environment=environment) as server:
        admin = AdminClient(path)
        for stream in (True, False):
            name = f"plain-{stream}"
            status, seconds = ask(server, name, max_tokens=60, stream=stream)
            found = admin.get(f"/explain/{name}", Explanation)
            assert (status, found.state, found.output_tokens) == (200, "length", 60)
            check(found, seconds)
            names = [span.name for span in found.spans]
            assert names[-3:] == ["prefill", "decode", "finish"]
            assert found.placements[0].actual_ttft is not None
        os.kill(server.children()["engine"], signal.SIGSTOP)
        try:
            for index in range(3):
                name = f"moved-{index}"
                status, seconds = ask(server, name, max_tokens=30)
                assert status == 200
                found = admin.get(f"/explain/{name}", Explanation)
                check(found, seconds)
                if len(found.placements) == 2:
                    break
        finally:
            os.kill(server.children()["engine"], signal.SIGCONT)
        state = admin.get("/state", ServerState)
        assert state.gateway is not None
        assert {row.replica for row in state.gateway.replicas} == {"r0", "r1"}
        assert {row.id for row in state.gateway.requests} >= {"plain-True", "moved-0"}
