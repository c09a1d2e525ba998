"""The control connection: members come and go, load is reported, questions are answered."""

from __future__ import annotations

import asyncio
import stat
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import pytest
from gateway_serving import COMPLETE, Served, serving
from prometheus_client.parser import text_string_to_metric_families

from headrace.messages import (
    Answer,
    Ask,
    AskAll,
    Emptied,
    Farewell,
    Hello,
    Member,
    Members,
    PoolReport,
    decode_to_controller,
)
from headrace.monitoring import table
from headrace.monitoring.shapes import Explanation, GatewayState, JournalEntry, RequestRow
from headrace.server.gateway.control import ControlDoor
from headrace.server.gateway.pool import pool_report
from headrace.server.transport.frames import ConnectionLimits, FrameConnection
from headrace.testing.async_test import async_test
from headrace.testing.fake_replica import ScriptedReplica
from headrace.types import FinishReason, ReplicaId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from headrace.messages import ToController
    from headrace.model.text import TextModel
    from headrace.server.gateway.http.messages import Response

LIMITS = ConnectionLimits()
ASKED = {"prompt": "a", "max_tokens": 5}


class Controller:
    """A controller's end, kept as small as can be. A FramePeer."""

    def __init__(self) -> None:
        self.received_messages: asyncio.Queue[ToController] = asyncio.Queue()
        self.connection: FrameConnection
        self.closed_reason = ""

    def opened(self, connection: FrameConnection) -> None:
        self.connection = connection

    def received(self, connection: FrameConnection, payload: bytes) -> None:
        self.received_messages.put_nowait(decode_to_controller(payload))

    def closed(self, connection: FrameConnection, reason: str) -> None:
        self.closed_reason = reason

    def send(self, *members: Member) -> None:
        self.connection.send(Members(members))

    async def next(self, kind: type[ToController]) -> ToController:
        """The next message of a kind; others are dropped."""
        while True:
            message = await self.received_messages.get()
            if isinstance(message, kind):
                return message

    async def ask(self, path: str) -> Answer:
        self.connection.send(Ask(7, path))
        answer = await self.next(Answer)
        assert isinstance(answer, Answer)
        assert answer.number == 7
        return answer


class KeptReplica:
    """A scripted replica behind a link that keeps itself connected."""

    def __init__(self, replica: ScriptedReplica, address: str) -> None:
        self.replica = replica
        self.address = address
        self.closes_late = False  # as with a peer that reads nothing any more

    async def run(self) -> None:
        self.replica.connect()
        try:
            await asyncio.Event().wait()
        finally:
            if not self.closes_late:
                self.replica.disconnect("closed")


@dataclass
class Controlled:
    """A gateway with its control door, and a controller at it."""

    served: Served
    controller: Controller
    path: Path
    links: list[KeptReplica] = field(default_factory=list)
    doors: list[ControlDoor] = field(default_factory=list)

    @property
    def door(self) -> ControlDoor:
        return self.doors[0]

    async def connect(self) -> Controller:
        loop = asyncio.get_running_loop()
        controller = Controller()
        await loop.create_unix_connection(
            lambda: FrameConnection(controller, LIMITS), str(self.path)
        )
        return controller

    def states(self) -> dict[str, str]:
        router = self.served.gateway.questions.pool.router
        return {view.replica: router.state(view.replica) for view in router.replicas}


@asynccontextmanager
async def controlled(text: TextModel, directory: Path) -> AsyncIterator[Controlled]:
    async with serving(text, connect=False) as served:
        found = Controlled(served, Controller(), directory / "g0.control")

        def make_link(replica: ReplicaId, address: str) -> KeptReplica:
            scripted = ScriptedReplica(
                served.gateway.traffic, vocab_size=text.tokenizer.vocab_size, replica=replica
            )
            found.links.append(KeptReplica(scripted, address))
            return found.links[-1]

        gateway, clock = served.gateway, served.clock
        members = gateway.membership(make_link)
        router = gateway.questions.pool.router
        door = ControlDoor(
            gateway="g0",
            update=members.update,
            report=lambda: pool_report(router.figures(clock.now()), "g0"),
            answer=gateway.questions.answer,
            limits=LIMITS,
        )
        gateway.traffic.on_emptied = door.emptied
        await door.start(found.path)
        found.controller = await found.connect()
        found.doors.append(door)
        yield found
        found.controller.connection.close("done")
        door.close()
        await members.close()


@async_test
async def test_members_come_and_go(text: TextModel, tmp_path: Path) -> None:
    async with controlled(text, tmp_path) as room:
        r0, r1 = Member(replica="r0", address="/a"), Member(replica="r1", address="/b")
        room.controller.send(r0, r1)
        await room.served.until(lambda: room.states() == {"r0": "ready", "r1": "ready"})
        room.controller.send(r0, r1)
        await room.controller.ask("/state")
        assert len(room.links) == 2, "the same table again changes nothing"
        room.controller.send(r1)
        await room.served.until(lambda: room.states() == {"r1": "ready"})
        state = msgspec.json.decode((await room.controller.ask("/state")).body, type=GatewayState)
        assert [row.replica for row in state.replicas] == ["r1"], "who is gone is not shown"
        scrape = (await room.controller.ask("/metrics")).body.decode()
        assert 'headrace_replica_state{replica="r0"' not in scrape
        assert room.served.registry.value(table.REPLICA_LOSSES, "r0") == 0, "it was told to go"
        room.controller.send(Member(replica="r1", address="/c"))
        await room.served.until(lambda: len(room.links) == 3)
        assert room.links[-1].address == "/c"
        await room.served.until(lambda: room.states() == {"r1": "ready"})


@pytest.mark.parametrize("closes_late", [True, False], ids=["hangs", "answers"])
@async_test
async def test_a_member_that_vanishes_leaves_its_streams_to_the_others(
    text: TextModel, tmp_path: Path, closes_late: bool
) -> None:
    async with controlled(text, tmp_path) as room:
        r0, r1 = Member(replica="r0", address="/a"), Member(replica="r1", address="/b")
        room.controller.send(r0)
        await room.served.until(lambda: "r0" in room.states())
        talk = asyncio.create_task(room.served.request("POST", COMPLETE, ASKED))
        first = await room.links[0].replica.next_request()
        room.links[0].replica.say(first, room.served.encode("ab"))
        room.links[0].closes_late = closes_late
        room.controller.send(r0, r1)
        await room.served.until(lambda: "r1" in room.states())
        room.controller.send(r1)
        second = await room.links[1].replica.next_request()
        room.links[1].replica.say(second, room.served.encode("c"), finish=FinishReason.LENGTH)
        assert (await talk).json["choices"][0]["text"] == "abc"


@async_test
async def test_a_drain_is_told_and_taken_back_and_its_end_is_said(
    text: TextModel, tmp_path: Path
) -> None:
    async with controlled(text, tmp_path) as room:
        room.controller.send(Member(replica="r0", address="/a"))
        await room.served.until(lambda: "r0" in room.states())
        talk = asyncio.create_task(room.served.request("POST", COMPLETE, ASKED))
        request = await room.links[0].replica.next_request()
        drained = Member(replica="r0", address="/a", draining=True, drain_limit=60)
        room.controller.send(drained)
        await room.served.until(lambda: room.states() == {"r0": "draining"})
        room.controller.send(Member(replica="r0", address="/a"))
        await room.served.until(lambda: room.states() == {"r0": "ready"})
        room.controller.send(drained)
        await room.served.until(lambda: room.states() == {"r0": "draining"})
        room.links[0].replica.say(request, [], finish=FinishReason.STOP)
        assert (await talk).status == 200
        assert await room.controller.next(Emptied) == Emptied("g0", "r0")


@async_test
async def test_a_replica_that_comes_back_during_its_drain_goes_on_draining(
    text: TextModel, tmp_path: Path
) -> None:
    async with controlled(text, tmp_path) as room:
        drained = Member(replica="r0", address="/a", draining=True, drain_limit=60)
        room.controller.send(drained)
        await room.served.until(lambda: room.states() == {"r0": "draining"})
        room.links[0].replica.disconnect("it died")
        await room.served.until(lambda: room.states() == {})
        state = msgspec.json.decode((await room.controller.ask("/state")).body, type=GatewayState)
        assert [(row.replica, row.state) for row in state.replicas] == [("r0", "lost")]
        room.links[0].replica.connect()
        await room.served.until(lambda: room.states() == {"r0": "draining"})


@async_test
async def test_the_table_outlives_the_controller_and_the_newest_controller_counts(
    text: TextModel, tmp_path: Path
) -> None:
    async with controlled(text, tmp_path) as room:
        room.controller.send(Member(replica="r0", address="/a"))
        await room.served.until(lambda: "r0" in room.states())
        second = await room.connect()
        await room.served.until(lambda: room.controller.closed_reason != "")
        assert (await second.ask("/requests")).status == 200
        second.connection.close("bye")
        await room.served.until(lambda: second.closed_reason != "")
        talk = asyncio.create_task(room.served.request("POST", COMPLETE, ASKED))
        request = await room.links[0].replica.next_request()
        room.links[0].replica.say(request, [], finish=FinishReason.STOP)
        assert (await talk).status == 200
        room.controller = await room.connect()
        assert (await room.controller.ask("/state")).status == 200


@async_test
async def test_load_is_reported_unasked(text: TextModel, tmp_path: Path) -> None:
    async with controlled(text, tmp_path) as room:
        room.controller.send(Member(replica="r0", address="/a"))
        await room.served.until(lambda: "r0" in room.states())
        talk = asyncio.create_task(room.served.request("POST", COMPLETE, ASKED))
        request = await room.links[0].replica.next_request()
        while True:
            report = await room.controller.next(PoolReport)
            assert isinstance(report, PoolReport)
            if report.replicas and report.replicas[0].outstanding:
                break
        assert (report.gateway, report.waiting) == ("g0", 0)
        assert (report.replicas[0].replica, report.replicas[0].prefill_tokens) == ("r0", 1)
        room.links[0].replica.say(request, [], finish=FinishReason.STOP)
        await talk


@async_test
async def test_questions_are_answered_in_the_shapes_of_the_admin_plane(
    text: TextModel, tmp_path: Path
) -> None:
    async with controlled(text, tmp_path) as room:
        controller, served = room.controller, room.served
        controller.send(Member(replica="r0", address="/a"))
        await served.until(lambda: "r0" in room.states())
        talk = asyncio.create_task(served.request("POST", COMPLETE, ASKED, x_request_id="mine"))
        request = await room.links[0].replica.next_request()
        room.links[0].replica.say(request, served.encode("ab"), finish=FinishReason.LENGTH)
        answer = await talk
        state = msgspec.json.decode((await controller.ask("/state")).body, type=GatewayState)
        assert (state.model, state.policy) == ("tiny", "predicted_ttft")
        assert [(row.replica, row.state, row.pid) for row in state.replicas] == [("r0", "ready", 1)]
        assert [(row.id, row.state, row.output_tokens) for row in state.requests] == [
            ("mine", "length", 2)
        ]
        assert state.rates.requests > 0
        assert state.rates.output_tokens > 0
        assert state.ttft.p50 is not None
        rows = msgspec.json.decode((await controller.ask("/requests")).body, type=list[RequestRow])
        assert rows == state.requests
        for known in ("mine", answer.json["id"], request.id):
            found = await controller.ask(f"/explain/{known}")
            explanation = msgspec.json.decode(found.body, type=Explanation)
            assert (explanation.id, explanation.output_tokens) == ("mine", 2)
            assert [row.replica for row in explanation.placements] == ["r0"]
        entries = msgspec.json.decode(
            (await controller.ask("/journal")).body, type=list[JournalEntry]
        )
        assert "dispatch" in [entry.kind for entry in entries]
        last = entries[-1].number
        assert (await controller.ask(f"/journal?after={last}")).body == b"[]"
        assert len(
            msgspec.json.decode(
                (await controller.ask(f"/journal?after={last - 1}")).body, type=list[JournalEntry]
            )
        ) == 1  # fmt: skip
        metrics = await controller.ask("/metrics")
        assert metrics.content_type.startswith("text/plain")
        assert list(text_string_to_metric_families(metrics.body.decode()))


@async_test
async def test_what_nobody_can_answer_is_an_error_in_json(text: TextModel, tmp_path: Path) -> None:
    async with controlled(text, tmp_path) as room:
        for path, status in (
            ("/nothing", 404),
            ("", 404),
            ("/explain/unknown", 404),
            ("/explain/", 404),
            ("/journal?after=x", 400),
            ("/journal?after=-1", 400),
        ):
            answer = await room.controller.ask(path)
            assert (answer.status, answer.content_type) == (status, "application/json")
            assert msgspec.json.decode(answer.body)["error"]["message"]


@async_test
async def test_the_socket_is_private_and_nonsense_ends_only_its_connection(
    text: TextModel, tmp_path: Path
) -> None:
    async with controlled(text, tmp_path) as room:
        assert stat.S_IMODE(room.path.stat().st_mode) == 0o600
        reader, writer = await asyncio.open_unix_connection(room.path)
        writer.write(b"\xff" * 64)
        assert (await reader.read()).endswith(b"g0")  # it has said who it is, and nothing more
        writer.close()
        room.controller = await room.connect()
        assert (await room.controller.ask("/state")).status == 200


@async_test
async def test_the_controller_is_asked_for_what_all_gateways_know(
    text: TextModel, tmp_path: Path
) -> None:
    async with controlled(text, tmp_path) as found:
        replies: list[Response] = []
        await found.controller.next(Hello)
        assert found.door.ask_all("/metrics", replies.append)
        asked = await found.controller.next(AskAll)
        assert isinstance(asked, AskAll)
        found.controller.connection.send(Answer(asked.number, 200, "text/plain", b"all"))
        await found.served.until(lambda: len(replies) == 1)
        assert replies[0].body == b"all"
        assert found.door.ask_all("/metrics", replies.append)
        found.controller.connection.abort("it dies")
        await found.served.until(lambda: len(replies) == 2)
        assert replies[1].status == 503
        assert not found.door.ask_all("/metrics", replies.append)


@async_test
async def test_a_gateway_says_who_it_is_and_at_its_end_what_it_counted(
    text: TextModel, tmp_path: Path
) -> None:
    async with controlled(text, tmp_path) as found:
        controller = await found.connect()
        assert await controller.next(Hello) == Hello("g0")
        found.door.close()
        farewell = await controller.next(Farewell)
        assert isinstance(farewell, Farewell)
        assert b"headrace_connections" in farewell.figures
