"""Blocks between replicas in processes of their own: texts are the same with and without."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from http_client import complete, metric, stream

from headrace.errors import StartError
from headrace.monitoring.shapes import (
    Done,
    DrainOrder,
    JournalEntry,
    ReplicaRow,
    ScaleOrder,
    ServerState,
)
from headrace.server.admin.client import AdminClient
from headrace.testing.server_process import running_server, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from headrace.testing.server_process import ServerProcess

PROMPT = "the rain in spain stays mainly in the plain and nobody knows why it does " * 8
FIELDS = {"max_tokens": 24, "temperature": 0}


class Pool:
    """A server, and somebody who looks after it."""

    def __init__(self, server: ServerProcess, admin: Path) -> None:
        self.server = server
        self.admin = AdminClient(admin)

    @property
    def replicas(self) -> dict[str, ReplicaRow]:
        return {row.replica: row for row in self.admin.get("/state", ServerState).replicas}

    def journal(self, kind: str) -> list[JournalEntry]:
        entries = self.admin.get("/journal", list[JournalEntry])
        return [entry for entry in entries if entry.kind == kind]

    def fetched(self) -> float:
        return metric(self.server, "headrace_kv_peer_tokens_total")

    def ask(self, prompt: str = PROMPT, **fields: object) -> tuple[str, int]:
        """Return the text, and how many tokens of the prompt were not computed."""
        status, answer = complete(self.server, prompt, **{**FIELDS, **fields})
        assert status == 200, answer
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        return answer["choices"][0]["text"], cached


@contextmanager
def pool(
    model: str, environment: Mapping[str, str], tmp_path: Path, *arguments: str, **more: str
) -> Iterator[Pool]:
    """Replicas that get requests in turn."""
    admin = tmp_path / "admin.sock"
    settings = {**environment, "HEADRACE_GATEWAY_POLICY": "round_robin", **more}
    with running_server(model, "--admin", str(admin), *arguments, environment=settings) as server:
        yield Pool(server, admin)


@pytest.fixture(scope="module")
def alone(
    simulated: str, environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """What one replica by itself answers to PROMPT."""
    with pool(simulated, environment, tmp_path_factory.mktemp("alone")) as single:
        return single.ask(max_tokens=200)[0]


def test_a_prefix_comes_from_the_replica_that_has_it(
    simulated: str, environment: Mapping[str, str], tmp_path: Path, alone: str
):
    with pool(simulated, environment, tmp_path, "--replicas", "2") as two:
        assert two.ask(max_tokens=200) == (alone, 0)
        text, cached = two.ask(max_tokens=200)
        assert text == alone
        assert cached > 300
        wait_until(lambda: two.fetched() == cached)
        first, second = two.journal("dispatch")
        assert "tokens from" not in first.reason
        assert f"{cached} tokens from" in second.reason


@pytest.mark.heavy
def test_without_transfers_the_other_replica_computes_the_prefix(
    simulated: str, environment: Mapping[str, str], tmp_path: Path, alone: str
):
    off = {"HEADRACE_ENGINE_KV_TRANSFER": "false"}
    with pool(simulated, environment, tmp_path, "--replicas", "2", **off) as two:
        assert two.ask(max_tokens=200) == two.ask(max_tokens=200) == (alone, 0)


def test_a_replica_that_hangs_costs_its_neighbour_a_bounded_wait_and_no_text(
    simulated: str, environment: Mapping[str, str], tmp_path: Path, alone: str
):
    with pool(simulated, environment, tmp_path, "--replicas", "2") as two:
        two.ask(max_tokens=2)
        dispatch = two.journal("dispatch")[0]
        holder = two.replicas[dispatch.reason.split()[1].rstrip(":")]
        os.kill(holder.pid, signal.SIGSTOP)
        try:
            assert two.ask(max_tokens=200) == (alone, 0)
            assert "tokens from" in two.journal("dispatch")[1].reason
        finally:
            os.kill(holder.pid, signal.SIGKILL)


def drained(two: Pool) -> tuple[str, float]:
    """Drain the replica of a stream under way; return its text, and the tokens computed for it."""

    def computed() -> float:
        return metric(two.server, "headrace_engine_computed_tokens_total")

    with stream(two.server, PROMPT, **{**FIELDS, "max_tokens": 200}) as events:
        pieces = [next(events) for _ in range(20)]
        before = computed()
        busy = next(row.replica for row in two.replicas.values() if row.outstanding)
        two.admin.post("/drain", DrainOrder(replica=busy), Done)
        pieces += list(events)
    assert pieces[-1] is None, (pieces[-1], two.server.errors)
    text = "".join(piece["choices"][0]["text"] for piece in pieces if piece and piece["choices"])
    wait_until(lambda: any(entry.subject == busy for entry in two.journal("gone")))
    return text, computed() - before


def test_a_stream_that_is_drained_away_takes_its_blocks_along(
    simulated: str, environment: Mapping[str, str], tmp_path: Path, alone: str
):
    hurry = ("--replicas", "2", "--drain-seconds", "0.1")
    computed = {}
    for switch in ("true", "false"):
        where = tmp_path / switch
        where.mkdir()
        choice = {"HEADRACE_GATEWAY_KV_TRANSFER": switch}
        with pool(simulated, environment, where, *hurry, **choice) as two:
            text, computed[switch] = drained(two)
            assert text == alone
            assert len(two.journal("go_on")) == 1
            assert (two.fetched() > 300) == (switch == "true")
    assert computed["true"] <= 2 * 16
    assert computed["false"] > 300


def test_prompts_and_decodes_on_replicas_of_their_own(
    simulated: str, environment: Mapping[str, str], tmp_path: Path, alone: str
):
    with pool(simulated, environment, tmp_path, "--roles", "prefill=1,decode=2") as three:
        roles = {name: row.role for name, row in three.replicas.items()}
        assert sorted(roles.values()) == ["decode", "decode", "prefill"]
        assert three.ask(max_tokens=200)[0] == alone
        (prompt, rest) = three.journal("dispatch")
        assert roles[prompt.reason.split()[1].rstrip(":")] == "prefill"
        assert roles[rest.reason.split()[1].rstrip(":")] == "decode"
        assert len(three.journal("hand_over")) == 1
        assert metric(three.server, "headrace_hand_overs_total") == 1
        assert metric(three.server, "headrace_migrations_total") == 0
        wait_until(lambda: three.fetched() > 300)
        status, answer = complete(three.server, "b" * 300, n=3, **FIELDS)
        assert status == 200
        assert len({choice["text"] for choice in answer["choices"]}) == 1
        with pytest.raises(StartError, match="have roles and are not scaled"):
            three.admin.post("/scale", ScaleOrder(floor=4, ceiling=4), Done)
        (prefill,) = (row for row in three.replicas.values() if row.role == "prefill")
        os.kill(prefill.pid, signal.SIGKILL)
        assert three.ask(PROMPT, max_tokens=200)[0] == alone
        wait_until(lambda: three.replicas[prefill.replica].state == "ready")
        assert three.replicas[prefill.replica].role == "prefill"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--roles", "prefill=1"), "nobody is there for decode"),
        (("--roles", "prefill=1,decode=1", "--replicas", "3"), "leave it out"),
        (("--roles", "prefill=1,decode=1", "--replicas", "1:2"), "not scaled"),
    ],
)
def test_roles_that_cannot_be_are_refused_at_the_start(
    simulated: str, environment: Mapping[str, str], arguments: tuple[str, ...], problem: str
):
    with (
        pytest.raises(RuntimeError, match=problem),
        running_server(simulated, *arguments, environment=environment),
    ):
        pass


@pytest.mark.heavy
@pytest.mark.model
@pytest.mark.xdist_group("default model")
@pytest.mark.timeout(600)
def test_the_default_model_says_the_same_on_one_replica_and_on_three_with_roles(
    environment: Mapping[str, str], tmp_path: Path
):
    own_cache = {
        name: value
        for name, value in environment.items()
        if name not in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    } | {name: os.environ[name] for name in ("HOME", "XDG_CACHE_HOME") if name in os.environ}
    exact = {"HEADRACE_ENGINE_PRECISION": "f32", "HEADRACE_ENGINE_KV_PRECISION": "f32"}
    small = ("--kv-cache-tokens", "4096", "--threads", "1")
    prompts = [PROMPT, "Once upon a time in a land far away, " * 20]

    def texts(where: str, *arguments: str) -> list[str]:
        (tmp_path / where).mkdir()
        model = "smollm2-135m-instruct"
        with pool(model, own_cache, tmp_path / where, *small, *arguments, **exact) as found:
            answers = [found.ask(prompt, max_tokens=40)[0] for prompt in prompts]
            if arguments:
                wait_until(lambda: found.fetched() > 100)  # of the second prompt
            return answers

    assert texts("one") == texts("three", "--roles", "prefill=1,decode=2")
