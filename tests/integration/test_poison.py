"""A request whose replicas are killed while they compute it, in processes of its own."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from http_client import complete

from headrace.monitoring.shapes import JournalEntry, ServerState
from headrace.server.admin.client import AdminClient
from headrace.testing.server_process import is_alive, running_server, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SLOW = {"HEADRACE_ENGINE_SIMULATED_SPEED": "20"}
PROMPT = "the rain in spain stays mainly in the plain " * 8


def places(admin: AdminClient) -> list[str]:
    """The replicas that requests were sent to, in order."""
    entries = admin.get("/journal", list[JournalEntry])
    reasons = [entry.reason for entry in entries if entry.kind == "dispatch"]
    return [reason.removeprefix("to ").partition(":")[0] for reason in reasons]


def pid_of(admin: AdminClient, replica: str) -> int:
    rows = admin.get("/state", ServerState).replicas
    return next(row.pid for row in rows if row.replica == replica)


def test_a_request_kills_two_processes_and_no_third_one(
    simulated: str, environment: Mapping[str, str], tmp_path: Path
):
    path = tmp_path / "admin.sock"
    arguments = ("--replicas", "3", "--admin", str(path))
    with running_server(simulated, *arguments, environment={**environment, **SLOW}) as server:
        admin = AdminClient(path)
        with ThreadPoolExecutor(1) as pool:
            talk = pool.submit(complete, server, PROMPT)
            for number in range(2):
                wait_until(lambda: len(places(admin)) > number)  # noqa: B023
                pid = pid_of(admin, places(admin)[number])
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda: not is_alive(pid))  # noqa: B023
            status, answer = talk.result(30)
        assert (status, answer["error"]["code"]) == (500, "request_rejected_poison"), answer
        status, answer = complete(server, PROMPT)
        assert (status, answer["error"]["code"]) == (500, "request_rejected_poison"), answer
        assert len(places(admin)) == 2
        assert complete(server, "a", max_tokens=1)[0] == 200
