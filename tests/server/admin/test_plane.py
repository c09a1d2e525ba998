"""The admin plane over its socket: a controller with replicas that a test plays, and a gateway."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import stat
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from msgspec.structs import replace

from headrace.clock import MonotonicClock, wall_time
from headrace.core.autoscaler.config import AutoscalerConfig
from headrace.core.autoscaler.machine import Autoscaler
from headrace.errors import NotReady, StartError, Unreachable, UsageError
from headrace.messages import Answer
from headrace.monitoring.journal import Journal
from headrace.monitoring.shapes import (
    Done,
    DrainOrder,
    GatewayRow,
    GatewayState,
    JournalEntry,
    Percentiles,
    Rates,
    ReplicaRow,
    RequestRow,
    RestartOrder,
    ScaleOrder,
    ServerState,
)
from headrace.server.address import bind_unix
from headrace.server.admin.client import AdminClient, find_socket
from headrace.server.admin.gateways import AllGateways
from headrace.server.admin.journal import MergedJournal
from headrace.server.admin.plane import AdminPlane
from headrace.server.admin.state import About
from headrace.server.controller import Controller
from headrace.server.decisions import Decisions
from headrace.server.provisioner import Place
from headrace.testing.async_test import async_test

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from headrace.messages import Members
    from headrace.server.child import Failed
    from headrace.server.provisioner import ReplicaEvents
    from headrace.types import ReplicaId

METRICS = """# HELP headrace_connections Open client connections.
# TYPE headrace_connections gauge
headrace_connections 3
# HELP headrace_process_open_fds Open file descriptors of a process.
# TYPE headrace_process_open_fds gauge
headrace_process_open_fds{process="gateway"} 9
"""


class FakePlaces:
    """A Provisioner whose replicas are ready at once."""

    def __init__(self, events: ReplicaEvents) -> None:
        self._events = events
        self.there: dict[ReplicaId, Place] = {}

    def start(self, replica: ReplicaId) -> None:
        self.there[replica] = Place(address=f"/{replica}", pid=7, kv_tokens=64)
        self._events.replica_up(replica, address=f"/{replica}", seconds=0.1)

    def stop(self, replica: ReplicaId) -> None:
        del self.there[replica]
        self._events.replica_down(replica, reason="stopped", restarts=False)

    def places(self) -> Mapping[ReplicaId, Place]:
        return self.there

    def kill(self) -> None:
        pass

    async def close(self) -> tuple[str, ...]:
        return ()


class FakeGateway:
    """Answers what it was told; implements ControllerEvents too, which say nothing here."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.members: Members | None = None
        self.num_connections = 1
        self.others: FakeGateway | None = None

    @property
    def gateways(self) -> Mapping[str, FakeGateway]:
        """See Connected."""
        return {"g0": self} if self.others is None else {"g0": self, "g1": self.others}

    async def ask(self, path: str) -> Answer:
        self.asked.append(path)
        if path not in self.answers:
            raise NotReady("the gateway is not connected")
        return self.answers[path]

    def answer(self, path: str, content: object, status: int = 200) -> None:
        body = content.encode() if isinstance(content, str) else msgspec.json.encode(content)
        self.answers[path] = Answer(0, status, "application/json", body)

    def send_members(self, members: Members) -> None:
        self.members = members

    def pool_trouble(self, text: str) -> None:
        pass

    def pool_hopeless(self, failure: Failed) -> None:
        pass

    def pool_fault(self, error: Exception) -> None:
        raise error


class FakeRestarts:
    """Does nothing, and says so."""

    def __init__(self) -> None:
        self.progress = ""

    def begin(self, what: str) -> str:
        self.progress = f"one of the {what}"
        return f"restarts {what}"

    def gateways(self) -> list[GatewayRow]:
        return [GatewayRow(gateway="g0", pid=9, connected=True)]


class Admin:
    """A plane on its socket, and a client in a thread."""

    def __init__(self, path: Path, *, replicas: int, ceiling: int = 4) -> None:
        clock = MonotonicClock()
        self.path = path
        self.gateway = FakeGateway()
        self.journal = Journal(unix_time=wall_time, source="autoscaler")
        self.controller = Controller(
            Autoscaler(AutoscalerConfig()),
            provision=FakePlaces,
            gateways=self.gateway,
            events=self.gateway,
            decisions=Decisions(self.journal, wall_time),
            drain_limit=10,
            clock=clock,
        )
        if replicas:
            self.controller.set_range(replicas, ceiling)
        about = About(version="1", url="http://x", begun=clock.now())
        self.all = AllGateways(self.gateway)
        self.restarts = FakeRestarts()
        self.plane = AdminPlane(
            self.controller,
            gateways=self.all,
            journal=MergedJournal(self.journal, self.gateway),
            restarts=self.restarts,
            about=about,
            clock=clock,
        )
        self.client = AdminClient(path)

    async def get(self, target: str, kind: type[Any]) -> Any:  # noqa: ANN401
        return await asyncio.to_thread(self.client.get, target, kind)

    async def post(self, target: str, order: msgspec.Struct) -> str:
        return (await asyncio.to_thread(self.client.post, target, order, Done)).message

    async def state(self) -> ServerState:
        return await self.get("/state", ServerState)

    async def raw(self, method: str, target: str, body: str = "") -> tuple[int, Any]:
        """Return status and JSON of a request as anybody might send it."""
        return await asyncio.to_thread(self._raw, method, target, body)

    def _raw(self, method: str, target: str, body: str) -> tuple[int, Any]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(self.path))
            connection = http.client.HTTPConnection("localhost")
            connection.sock = sock
            connection.request(method, target, body)
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110 (a few turns of the loop)
            await asyncio.sleep(0)


@asynccontextmanager
async def serving(path: Path, *, replicas: int = 2, ceiling: int = 4) -> AsyncIterator[Admin]:
    admin = Admin(path, replicas=replicas, ceiling=ceiling)
    with bind_unix(path) as listening:
        task = asyncio.create_task(admin.plane.run(listening))
        await admin.until(lambda: len(admin.controller.autoscaler.stages()) == replicas)
        try:
            yield admin
        finally:
            task.cancel()
            await asyncio.wait([task])


def gateway_state(*rows: ReplicaRow) -> GatewayState:
    return GatewayState(
        model="m",
        policy="p",
        replicas=list(rows),
        waiting=1,
        waiting_tokens=2,
        running=3,
        rates=Rates(window=1.0),
        ttft=Percentiles(),
        itl=Percentiles(),
        requests=[],
    )


def test_the_socket_is_for_its_owner_only_and_a_stale_one_is_replaced(tmp_path: Path):
    path = tmp_path / "admin.sock"
    for _ in range(2):  # nobody unlinks it between
        with bind_unix(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with bind_unix(path), pytest.raises(StartError, match="another process listens at"):
        bind_unix(path)
    with pytest.raises(UsageError, match="No such file"):
        bind_unix(tmp_path / "no" / "admin.sock")
    with pytest.raises(UsageError, match="too long"):
        bind_unix(tmp_path / ("x" * 200))


@async_test
async def test_the_state_joins_what_controller_and_gateway_know(tmp_path: Path):
    async with serving(tmp_path / "s") as admin:
        suspect = ReplicaRow(replica="r1", state="suspect", reason="silent", outstanding=4)
        gone = ReplicaRow(replica="r9", state="lost")
        admin.gateway.answer("/state", gateway_state(suspect, gone))
        state = await admin.state()
        assert (state.floor, state.ceiling, state.desired) == (2, 4, 2)
        assert [(row.replica, row.state, row.pid) for row in state.replicas] == [
            ("r0", "ready", 7),
            ("r1", "suspect", 7),
        ]
        assert state.replicas[1].outstanding == 4
        assert [(row.present, row.desired) for row in state.scaling] == [(0, 2)]
        assert state.gateway is not None


@async_test
async def test_without_a_gateway_there_is_a_state_all_the_same(tmp_path: Path):
    async with serving(tmp_path / "s") as admin:
        state = await admin.state()
        assert state.gateway is None
        assert len(state.replicas) == 2


@async_test
async def test_a_drain_is_ordered_and_told_to_the_gateway(tmp_path: Path):
    async with serving(tmp_path / "s") as admin:
        message = await admin.post("/drain", DrainOrder(replica="r0"))
        assert message == "r0 takes nothing new and ends when its streams have ended"
        members = admin.gateway.members
        assert members is not None
        assert [(each.replica, each.draining) for each in members.members] == [
            ("r0", True),
            ("r1", False),
            ("r2", False),  # the successor, since the floor is 2
        ]
        assert await admin.post("/drain", DrainOrder(replica="r0", cancel=True)) == (
            "r0 takes requests again"
        )
        assert not admin.gateway.members.members[0].draining


@async_test
async def test_a_new_range_is_ordered(tmp_path: Path):
    async with serving(tmp_path / "s") as admin:
        message = await admin.post("/scale", ScaleOrder(floor=3, ceiling=5))
        assert message == "the range of replicas is 3:5 now; 2 there or starting"
        state = await admin.state()
        assert (state.floor, state.ceiling, state.desired) == (3, 5, 3)


@async_test
async def test_orders_that_make_no_sense_are_explained(tmp_path: Path):
    async with serving(tmp_path / "s") as admin:
        for order, words in (
            (DrainOrder(replica="r7"), "there is no replica 'r7' here: there are r0, r1"),
            (ScaleOrder(floor=3, ceiling=1), "the floor 3 is above the ceiling 1"),
            (ScaleOrder(floor=0, ceiling=1), "scale to zero comes later"),
            (ScaleOrder(floor=1, ceiling=65), "there may be 1 to 64 replicas"),
        ):
            target = "/drain" if isinstance(order, DrainOrder) else "/scale"
            with pytest.raises(StartError, match=words):
                await admin.post(target, order)
        admin.controller.freeze()
        with pytest.raises(StartError, match="the server is ending"):
            await admin.post("/scale", ScaleOrder(floor=1, ceiling=1))


@async_test
async def test_replicas_that_others_run_are_shown_and_not_scaled(tmp_path: Path):
    async with serving(tmp_path / "s", replicas=0) as admin:
        admin.gateway.answer("/state", gateway_state(ReplicaRow(replica="f0", state="ready")))
        assert [row.replica for row in (await admin.state()).replicas] == ["f0"]
        with pytest.raises(StartError, match="run elsewhere"):
            await admin.post("/scale", ScaleOrder(floor=1, ceiling=1))
        with pytest.raises(StartError, match="it runs none"):
            await admin.post("/drain", DrainOrder(replica="f0"))


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "words"),
    [
        ("GET", "/nothing", "", 404, "there is nothing at /nothing of the admin plane"),
        ("GET", "/explain/", "", 404, "there is nothing"),
        ("POST", "/state", "{}", 405, "/state takes GET, not POST"),
        ("GET", "/scale", "", 405, "/scale takes POST, not GET"),
        ("POST", "/scale", "{", 400, "the body: "),
        ("POST", "/scale", '{"floor": 1}', 400, "missing required field `ceiling`"),
        ("POST", "/drain", '{"replica": "r0", "x": 1}', 400, "unknown field `x`"),
        ("GET", "/journal?after=x", "", 400, "after=NUMBER"),
        ("GET", "/requests", "", 503, "the gateway is not connected"),
    ],
)
def test_bad_requests_get_an_error_in_openai_shape(
    method: str, target: str, body: str, status: int, words: str, tmp_path: Path
):
    @async_test
    async def check() -> None:
        async with serving(tmp_path / "s") as admin:
            got, answer = await admin.raw(method, target, body)
            assert got == status
            assert words in answer["error"]["message"]
            assert set(answer["error"]) == {"message", "type", "param", "code"}

    check()


@async_test
async def test_what_only_the_gateway_knows_is_asked_there(tmp_path: Path):
    async with serving(tmp_path / "s") as admin:
        admin.gateway.answer("/explain/a%20b?x=1", {"id": "a b"})
        assert await admin.get("/explain/a%20b?x=1", dict[str, str]) == {"id": "a b"}
        admin.gateway.answer("/explain/c", {"error": {"message": "no request c"}}, status=404)
        with pytest.raises(StartError, match="no request c"):
            await admin.get("/explain/c", dict[str, str])


@async_test
async def test_the_metrics_of_both_are_one_exposition(tmp_path: Path):
    async with serving(tmp_path / "s") as admin:
        admin.gateway.answer("/metrics", METRICS)
        text = await asyncio.to_thread(admin.client.text, "/metrics")
        assert text.count("# TYPE headrace_process_open_fds") == 1
        lines = text.splitlines()
        at = lines.index('headrace_process_open_fds{process="gateway"} 9')
        assert lines[at + 1].startswith('headrace_process_open_fds{process="supervisor"} ')
        assert 'headrace_replicas{state="ready"} 2' in lines
        assert "headrace_replicas_desired 2" in lines
        assert 'headrace_scaling_decisions_total{direction="out"} 1' in lines


@async_test
async def test_journals_are_merged_by_time_and_keep_their_numbers(tmp_path: Path):
    async with serving(tmp_path / "s", replicas=1) as admin:
        own = await admin.get("/journal", list[JournalEntry])
        assert [entry.kind for entry in own] == ["scaled", "start", "ready"]

        def entry(number: int, unix: float) -> JournalEntry:
            return JournalEntry(
                number=number, unix=unix, source="router", kind="go_on", subject="x", reason="y"
            )

        now = own[-1].unix
        admin.gateway.answer("/journal?after=0", [entry(1, now + 1), entry(2, now + 3)])
        admin.journal.add("stop", "r0", "later")  # now + a little
        newer = await admin.get(f"/journal?after={own[-1].number}", list[JournalEntry])
        assert [each.kind for each in newer] == ["stop", "go_on", "go_on"]
        assert [each.number for each in newer] == [4, 5, 6]
        admin.gateway.answer("/journal?after=2", [])
        assert await admin.get("/journal", list[JournalEntry]) == [*own, *newer]

        admin.gateway.num_connections += 1  # the same gateway again, then a new one
        admin.gateway.answer("/journal?after=0", [entry(1, now + 1), entry(2, now + 3)])
        assert await admin.get("/journal?after=6", list[JournalEntry]) == []
        admin.gateway.num_connections += 1
        admin.gateway.answer("/journal?after=0", [entry(1, now + 4)])
        again = await admin.get("/journal?after=6", list[JournalEntry])
        assert [(each.number, each.unix) for each in again] == [(7, now + 4)]


def test_the_client_finds_the_only_server_that_lives(tmp_path: Path):
    with pytest.raises(Unreachable, match=r"no headrace server is running here \(looked in "):
        find_socket(tmp_path)
    paths = [tmp_path / f"headrace-{name}" / "admin.sock" for name in "abc"]
    for path in paths:
        path.parent.mkdir()
    bind_unix(paths[0]).close()  # a dead server's
    with bind_unix(paths[1]):
        assert find_socket(tmp_path) == paths[1]
        with bind_unix(paths[2]), pytest.raises(UsageError, match="2 servers run here"):
            find_socket(tmp_path)


def test_a_server_that_is_gone_or_silent_or_strange_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "admin.sock"
    with pytest.raises(Unreachable, match="looked in "):
        AdminClient(path).get("/state", ServerState)
    monkeypatch.setattr("headrace.server.admin.client.TIMEOUT_SECONDS", 0.05)
    with bind_unix(path), pytest.raises(Unreachable, match=r"did not answer within 0\.05 s"):
        AdminClient(path).get("/state", ServerState)


@async_test
async def test_an_answer_of_another_shape_is_one_line(tmp_path: Path):
    async with serving(tmp_path / "s") as admin:
        with pytest.raises(StartError, match="cannot read"):
            await admin.get("/state", list[int])


@async_test
async def test_two_gateways_are_one_picture(tmp_path: Path):
    async with serving(tmp_path / "s") as admin:
        other = admin.gateway.others = FakeGateway()
        mine = gateway_state(ReplicaRow(replica="r0", state="ready", outstanding=2, kv_used=0.5))
        theirs = gateway_state(
            ReplicaRow(replica="r0", state="suspect", reason="silent", outstanding=3, kv_used=0.5)
        )
        slow = replace(theirs, ttft_counts={100: 1, 200: 98}, waiting=7)
        admin.gateway.answer("/state", replace(mine, ttft_counts={100: 1}))
        other.answer("/state", slow)
        state = await admin.state()
        assert state.gateway is not None
        assert (state.gateway.waiting, state.gateway.running) == (8, 6)
        assert state.gateway.ttft.p50 is not None
        assert state.gateway.ttft.p50 > 0.2  # bucket 200 of both, not the mean of two medians
        assert state.gateway.ttft_counts == {}
        row = state.replicas[0]
        assert (row.state, row.outstanding, row.kv_used) == ("suspect", 5, 0.5)
        assert state.gateways == [GatewayRow(gateway="g0", pid=9, connected=True)]


@async_test
async def test_a_request_is_explained_by_the_gateway_that_had_it(tmp_path: Path):
    async with serving(tmp_path / "s") as admin:
        other = admin.gateway.others = FakeGateway()
        admin.gateway.answer("/explain/c", {"error": {"message": "no request c"}}, status=404)
        other.answer("/explain/c", {"id": "c"})
        assert await admin.get("/explain/c", dict[str, str]) == {"id": "c"}
        rows = [
            [RequestRow(id="a", unix=1, state="stop"), RequestRow(id="b", unix=4, state="stop")],
            [RequestRow(id="c", unix=3, state="stop"), RequestRow(id="d", unix=0, state="running")],
        ]
        admin.gateway.answer("/requests", rows[0])
        other.answer("/requests", rows[1])
        listed = await admin.get("/requests", list[RequestRow])
        assert [row.id for row in listed] == ["d", "b", "c", "a"]


@async_test
async def test_a_restart_is_ordered_and_its_progress_shown(tmp_path: Path):
    async with serving(tmp_path / "s") as admin:
        assert await admin.post("/restart", RestartOrder(what="gateways")) == "restarts gateways"
        assert (await admin.state()).restarting == "one of the gateways"
        status, answer = await admin.raw("POST", "/restart", '{"what": "the world"}')
        assert status == 400
        assert "Invalid enum value" in answer["error"]["message"]
