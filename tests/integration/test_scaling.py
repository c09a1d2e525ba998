"""Replicas that come and go while a real server serves, by order and by load."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from http_client import complete, stream

from headrace.monitoring.shapes import JournalEntry, ReplicaRow, ServerState
from headrace.server.admin.client import AdminClient
from headrace.testing.server_process import (
    is_alive,
    running_server,
    started_server,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from headrace.testing.server_process import ServerProcess


class Operator:
    """Somebody at a shell beside the server."""

    def __init__(self, admin: Path, environment: Mapping[str, str]) -> None:
        self.client = AdminClient(admin)
        self._environment = environment

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command against the server; return exit code, output and errors."""
        done = subprocess.run(
            (sys.executable, "-m", "headrace", *arguments, "--admin", str(self.client.path)),
            capture_output=True,
            text=True,
            env=self._environment,
            check=False,
            timeout=30,
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    @property
    def state(self) -> ServerState:
        return self.client.get("/state", ServerState)

    @property
    def replicas(self) -> dict[str, ReplicaRow]:
        return {row.replica: row for row in self.state.replicas}

    @property
    def journal(self) -> list[JournalEntry]:
        return self.client.get("/journal", list[JournalEntry])

    def wait_for(self, **states: str) -> None:
        """Wait until there are just these replicas in these states."""
        wait_until(lambda: {name: row.state for name, row in self.replicas.items()} == states)


@contextmanager
def operated(
    simulated: str, environment: Mapping[str, str], tmp_path: Path, *arguments: str
) -> Iterator[tuple[ServerProcess, Operator]]:
    admin = tmp_path / "admin.sock"
    arguments = (simulated, "--admin", str(admin), *arguments)
    with running_server(*arguments, environment=environment) as server:
        yield server, Operator(admin, environment)


def test_scale_starts_and_ends_replicas(
    simulated: str, environment: Mapping[str, str], tmp_path: Path
):
    with operated(simulated, environment, tmp_path) as (server, operator):
        operator.wait_for(r0="ready")
        code, output, _ = operator.run("scale", "3")
        assert (code, output) == (0, "the range of replicas is 3 now; 1 there or starting\n")
        operator.wait_for(r0="ready", r1="ready", r2="ready")
        pids = [row.pid for row in operator.replicas.values()]
        assert operator.run("scale", "1:2")[0] == 0
        wait_until(lambda: len(operator.replicas) == 2)
        wait_until(lambda: sum(is_alive(pid) for pid in pids) == 2)
        assert complete(server, max_tokens=3)[0] == 200
        assert [entry.subject for entry in operator.journal if entry.kind == "scaled"] == [
            "0 to 1",
            "1 to 3",
            "3 to 2",
        ]
        server.send(signal.SIGTERM)
        assert server.wait() == 0


def test_a_drained_replica_lets_its_stream_finish_behind_a_successor(
    simulated: str, environment: Mapping[str, str], tmp_path: Path
):
    with operated(simulated, environment, tmp_path) as (server, operator):
        with stream(server, max_tokens=400) as events:
            next(events)
            pid = operator.replicas["r0"].pid
            assert operator.run("drain", "r0") == (
                0,
                "r0 takes nothing new and ends when its streams have ended\n",
                "",
            )
            assert complete(server, max_tokens=3)[0] == 200
            rest = list(events)
        assert rest[-2]["choices"][0]["finish_reason"] == "length"
        operator.wait_for(r1="ready")
        wait_until(lambda: not is_alive(pid))
        journal = operator.journal
        kinds = [(entry.kind, entry.subject) for entry in journal]
        assert not any(kind == "go_on" for kind, _ in kinds)  # it was not moved
        order = [("ready", "r1"), ("drain", "r0"), ("emptied", "r0"), ("stop", "r0")]
        assert [each for each in kinds if each in order] == order
        (stop,) = (entry for entry in journal if entry.kind == "stop")
        assert stop.reason.startswith("empty after")


def test_a_drain_can_be_taken_back(simulated: str, environment: Mapping[str, str], tmp_path: Path):
    with (
        operated(simulated, environment, tmp_path, "--replicas", "2") as (server, operator),
        stream(server, max_tokens=900) as events,
    ):
        operator.wait_for(r0="ready", r1="ready")
        next(events)
        busy = next(row.replica for row in operator.replicas.values() if row.outstanding)
        operator.run("scale", "1:2")
        operator.run("drain", busy)
        wait_until(lambda: operator.replicas[busy].state == "draining")
        assert operator.run("drain", busy, "--cancel")[0] == 0
        operator.wait_for(r0="ready", r1="ready")


def test_a_dead_replica_is_shown_and_comes_back_under_its_name(
    simulated: str, environment: Mapping[str, str], tmp_path: Path
):
    slow = {**environment, "HEADRACE_SERVER_RESTART_MIN_SECONDS": "0.5"}
    with operated(simulated, slow, tmp_path, "--replicas", "2") as (server, operator):
        operator.wait_for(r0="ready", r1="ready")
        os.kill(operator.replicas["r1"].pid, signal.SIGKILL)
        wait_until(lambda: operator.replicas["r1"].state == "starting")
        assert operator.replicas["r1"].reason == "signal SIGKILL"
        assert complete(server, max_tokens=3)[0] == 200
        operator.wait_for(r0="ready", r1="ready")
        assert operator.replicas["r1"].restarts == 1
        output = operator.run("ps")[1]
        line = next(line for line in output.splitlines() if line.startswith("r1"))
        assert line.split()[:2] == ["r1", "ready"]
        assert line.split()[-1] == "1"
        assert "scaling   2 wanted, 2 to 2 allowed" in output


def test_a_new_gateway_is_told_its_members_and_what_drains(
    simulated: str, environment: Mapping[str, str], tmp_path: Path
):
    with operated(simulated, environment, tmp_path, "--replicas", "2") as (server, operator):
        operator.wait_for(r0="ready", r1="ready")
        operator.run("scale", "1:2")
        os.kill(server.children()["gateway"], signal.SIGKILL)
        wait_until(lambda: "gateway died" in server.errors)
        operator.run("drain", "r0")
        assert complete(server, max_tokens=3)[0] == 200
        operator.wait_for(r1="ready")
        assert "headrace_replicas_desired 1" in operator.client.text("/metrics")


def test_load_brings_replicas_and_quiet_takes_them_away(
    simulated: str, environment: Mapping[str, str], tmp_path: Path
):
    quick = {
        "HEADRACE_AUTOSCALER_TARGET_TTFT": "0.2",
        "HEADRACE_AUTOSCALER_SHORT_WINDOW": "0.5",
        "HEADRACE_AUTOSCALER_LONG_WINDOW": "1",
        "HEADRACE_AUTOSCALER_SCALE_OUT_AFTER": "0.3",
        "HEADRACE_AUTOSCALER_SCALE_IN_AFTER": "1",
        "HEADRACE_AUTOSCALER_COOLDOWN": "0.5",
        "HEADRACE_AUTOSCALER_START_GUESS": "1",
        "HEADRACE_AUTOSCALER_START_MARGIN": "0.5",
    }
    loaded = threading.Event()
    loaded.set()

    def client(number: int) -> set[int]:
        statuses, turn = set(), 0
        while loaded.is_set():
            turn += 1
            statuses.add(complete(server, f"{number} {turn} " * 20, max_tokens=20)[0])
        return statuses

    with (
        operated(simulated, {**environment, **quick}, tmp_path, "--replicas", "1:3") as both,
        ThreadPoolExecutor(24) as clients,
    ):
        server, operator = both
        running = [clients.submit(client, number) for number in range(24)]
        try:
            wait_until(lambda: len(operator.replicas) > 1, 30)
        finally:
            loaded.clear()
        assert {status for each in running for status in each.result(30)} == {200}
        wait_until(lambda: len(operator.replicas) == 1, 30)
        reasons = [entry.reason for entry in operator.journal if entry.kind == "scaled"]
        assert any(reason.startswith("needs ") for reason in reasons)
        assert "of their limits" in reasons[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--replicas", "3:1"), "--replicas is '3:1': the floor 3 is above the ceiling 1"),
        (("--replicas", "0"), "--replicas is '0': at least one replica must stay"),
        (("--replicas", "many"), "--replicas is 'many': write a number, or FLOOR:CEILING"),
        (("--policy", "round-robin"), "did you mean round_robin"),
        (("--admin", "/no/such/directory/s"), "cannot listen at /no/such/directory/s: No such"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_loaded(
    arguments: tuple[str, ...], words: str, simulated: str, environment: Mapping[str, str]
):
    with started_server(simulated, "--port", "0", *arguments, environment=environment) as server:
        assert server.wait(30) == 2
        assert words in server.errors
        assert server.errors.count("\n") == 1
        assert server.output == ""


def test_orders_to_nobody_and_nonsense_are_one_line(
    simulated: str, environment: Mapping[str, str], tmp_path: Path
):
    with operated(simulated, environment, tmp_path) as (_, operator):
        assert operator.run("drain", "r7") == (
            1,
            "",
            "headrace: there is no replica 'r7' here: there are r0\n",
        )
        code, _, errors = operator.run("scale", "2:1")
        assert (code, errors.count("\n")) == (2, 1)
    code, _, errors = operator.run("ps")
    assert code == 3
    assert errors.startswith("headrace: no headrace server is running here (looked in ")


@contextmanager
def taken_port_after_a_free_one() -> Iterator[int]:
    for _ in range(100):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1] + 1
            try:
                taken = socket.create_server(("127.0.0.1", port))
            except OSError:
                continue
        with taken:
            yield port
            return
    raise AssertionError("no two ports beside each other are free")


def test_a_console_whose_port_is_taken_is_left_out_unless_it_was_chosen(
    simulated: str, environment: Mapping[str, str]
):
    with taken_port_after_a_free_one() as port:
        arguments = (simulated, "--port", str(port - 1))
        with running_server(*arguments, environment=environment, console=True) as server:
            assert f"no console: port {port} is in use" in server.errors
            assert "  console " not in server.output
        chosen = {**environment, "HEADRACE_CONSOLE_PORT": str(port)}
        with started_server(simulated, "--port", "0", environment=chosen, console=True) as server:
            assert server.wait(30) == 1
            assert f"127.0.0.1:{port} is in use" in server.errors


def test_the_console_is_announced_with_its_token_and_ends_with_the_server(
    simulated: str, environment: Mapping[str, str]
):
    chosen = {**environment, "HEADRACE_CONSOLE_PORT": "0"}
    with running_server(simulated, environment=chosen, console=True) as server:
        line = next(line for line in server.output.splitlines() if "  console " in line)
        assert "/#token=" in line
        token = line.rpartition("=")[2]
        pid = server.children()["console"]
        for process in (server.pid, *server.children().values()):
            assert token.encode() not in Path(f"/proc/{process}/cmdline").read_bytes()
        server.send(signal.SIGTERM)
        assert server.wait() == 0
        assert not is_alive(pid)
