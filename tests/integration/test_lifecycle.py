"""How servers start, lose parts, and end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from http_client import complete, get, metric, stream

from headrace.testing.server_process import (
    is_alive,
    running_server,
    started_server,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.testing.server_process import ServerProcess


def read_stream(server: ServerProcess, prompt: str, started: list[str]) -> list[dict | None]:
    """Read a stream to its end; tell when its first token is there."""
    received = []
    with stream(server, prompt, max_tokens=80) as events:
        for event in events:
            received.append(event)
            if len(received) == 1:
                started.append(prompt)
    return received


def test_sigterm_under_load_lets_streams_finish_and_leaves_no_child(
    simulated: str, environment: Mapping[str, str]
):
    with running_server(simulated, "--replicas", "2", environment=environment) as server:
        children = server.children()
        assert sorted(children) == ["engine", "engine1", "gateway"]
        started: list[str] = []
        with ThreadPoolExecutor(6) as pool:
            streams = [pool.submit(read_stream, server, f"s{i}", started) for i in range(6)]
            wait_until(lambda: len(started) == 6)
            server.send(signal.SIGTERM)
            for finished in streams:
                events = finished.result(30)
                assert events[-1] is None
                assert events[-2]["choices"][0]["finish_reason"] == "length"
        assert server.wait() == 0
        assert not any(is_alive(pid) for pid in children.values())
        assert server.errors.count("Traceback") == 0
    with pytest.raises(ConnectionRefusedError):
        complete(server)


def test_a_second_sigterm_ends_streams_at_once(simulated: str, environment: Mapping[str, str]):
    with running_server(simulated, environment=environment) as server:
        children = server.children()
        with stream(server, max_tokens=900) as events:
            next(events)
            server.send(signal.SIGTERM)
            next(events)  # it goes on
            server.send(signal.SIGTERM)
            assert server.wait(10) == 1
        assert not any(is_alive(pid) for pid in children.values())


def test_a_killed_engine_is_replaced_and_its_streams_go_on_there(
    simulated: str, environment: Mapping[str, str]
):
    with running_server(simulated, environment=environment) as server:
        first = server.children()["engine"]
        with stream(server, max_tokens=200) as events:
            next(events)
            os.kill(first, signal.SIGKILL)
            rest = list(events)
        assert rest[-1] is None
        assert rest[-2]["choices"][0]["finish_reason"] == "length"
        assert complete(server, max_tokens=5)[1]["usage"]["completion_tokens"] == 5
        assert server.children()["engine"] != first
        assert metric(server, "headrace_replica_losses_total") == 1
        assert "engine r0 died: signal SIGKILL; starts again in 0.05 s" in server.errors
        server.send(signal.SIGTERM)
        assert server.wait() == 0


def test_a_killed_gateway_is_replaced_on_the_same_port(
    simulated: str, environment: Mapping[str, str]
):
    with running_server(simulated, environment=environment) as server:
        engine, gateway = server.children()["engine"], server.children()["gateway"]
        os.kill(gateway, signal.SIGKILL)
        wait_until(lambda: "gateway died" in server.errors)
        assert complete(server, max_tokens=3)[0] == 200  # the socket never closed
        assert server.children()["engine"] == engine


def test_children_end_when_their_supervisor_is_killed(
    simulated: str, environment: Mapping[str, str]
):
    with running_server(simulated, environment=environment) as server:
        children = server.children()
        server.send(signal.SIGKILL)
        server.wait()
        wait_until(lambda: not any(is_alive(pid) for pid in children.values()), timeout=10)


def test_an_api_key_is_demanded_and_not_shown(simulated: str, environment: Mapping[str, str]):
    secret = "sk-secret-1234"
    with_key = {**environment, "HEADRACE_SERVER_API_KEY": secret}
    with running_server(simulated, environment=with_key) as server:
        assert get(server, "/v1/models")[0] == 401
        assert get(server, "/metrics")[0] == 401
        assert get(server, "/v1/models", Authorization=f"Bearer {secret}")[0] == 200
        assert get(server, "/health")[0] == 200
        assert "auth       API key" in server.output
        assert secret not in server.output + server.errors
        for pid in (server.pid, *server.children().values()):
            assert secret.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()


def refusal(*arguments: str, environment: Mapping[str, str]) -> tuple[int, str]:
    """Return the exit code and standard error of a server that cannot start."""
    with started_server(*arguments, environment=environment) as server:
        code = server.wait(30)
        assert server.output == ""
        return code, server.errors


def test_a_port_in_use_is_told_at_once(simulated: str, environment: Mapping[str, str]):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, errors = refusal(simulated, "--port", port, environment=environment)
    assert code == 1
    assert errors == (
        f"headrace: 127.0.0.1:{port} is in use by another process; choose another port with "
        f"--port (0 takes any), or end that process\n"
    )


def test_a_missing_file_is_one_line_and_exit_code_2(environment: Mapping[str, str]):
    code, errors = refusal("/nowhere/x.gguf", "--port", "0", environment=environment)
    assert code == 2
    assert errors.startswith("headrace: /nowhere/x.gguf: No such file")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("damage", ["truncated", "hostile", "not a model"])
def test_a_damaged_file_is_one_line_and_exit_code_2(
    damage: str, tiny_gguf: Path, tmp_path: Path, environment: Mapping[str, str]
):
    content = tiny_gguf.read_bytes()
    bad = {
        "truncated": content[: len(content) // 2],
        "hostile": content[:8] + b"\xff" * 16 + content[24:],  # 2**64 tensors and pairs
        "not a model": b"#!/bin/sh\n" * 100,
    }[damage]
    path = tmp_path / "bad.gguf"
    path.write_bytes(bad)
    code, errors = refusal(str(path), "--port", "0", environment=environment)
    assert code == 2
    assert errors.startswith(f"headrace: {path}: ")
    assert errors.count("\n") == 1


def test_a_host_that_others_can_reach_needs_a_key(simulated: str, environment: Mapping[str, str]):
    code, errors = refusal(simulated, "--host", "0.0.0.0", environment=environment)
    assert code == 2
    assert "can be reached from outside and no key is set" in errors
    arguments = (simulated, "--host", "0.0.0.0", "--insecure-no-auth")
    with running_server(*arguments, environment=environment) as server:
        assert "auth       NONE: OPEN TO THE NETWORK" in server.output


def test_settings_that_contradict_each_other_are_told(
    simulated: str, environment: Mapping[str, str]
):
    arguments = ("--max-num-seqs", "100", "--max-num-batched-tokens", "50", "--port", "0")
    code, errors = refusal(simulated, *arguments, environment=environment)
    assert code == 2
    assert errors.count("\n") == 1
    assert "max_num_batched_tokens is 50" in errors


def test_children_are_not_for_use_by_hand(environment: Mapping[str, str]):
    for name in ("child-engine", "child-gateway"):
        done = subprocess.run(
            (sys.executable, "-m", "headrace", name),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            check=False,
            timeout=30,
        )
        assert done.returncode == 2
        assert b"not by hand" in done.stdout + done.stderr
