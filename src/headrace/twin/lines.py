"""Lines: the connections of one life of a replica, one to each gateway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.core.router.events import AttemptFailed, Outputs
from headrace.core.scheduler.events import Abort
from headrace.twin.replica import Submission

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.router.events import RouterEvent
    from headrace.twin.network import Link
    from headrace.twin.replica import ToEngine
    from headrace.types import Output, RequestId


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Both directions between one gateway and one replica."""

    to_engine: Link[ToEngine]
    to_gateway: Link[RouterEvent]

    def cut(self) -> None:
        """Lose all that is on its way."""
        self.to_engine.cut()
        self.to_gateway.cut()


class Lines:
    """What became of a request is told to the gateway that sent it, the rest to all."""

    def __init__(self) -> None:
        self.connections: Sequence[Connection] = ()
        self._owners: dict[RequestId, int] = {}

    def note(self, gateway: int, message: ToEngine) -> None:
        """A gateway sends this to the replica."""
        if isinstance(message, Submission):
            self._owners[message.request.id] = gateway
        elif isinstance(message, Abort):
            self._owners.pop(message.request_id, None)

    def send(self, event: RouterEvent) -> None:
        """The replica says something."""
        if len(self.connections) == 1:
            self.connections[0].to_gateway.send(event)
        elif isinstance(event, Outputs):
            self._send_outputs(event)
        elif isinstance(event, AttemptFailed):
            owner = self._owners.pop(event.request_id, None)
            if owner is not None:
                self.connections[owner].to_gateway.send(event)
        else:
            for connection in self.connections:
                connection.to_gateway.send(event)

    def cut(self) -> None:
        """The process is gone."""
        for connection in self.connections:
            connection.cut()

    def _send_outputs(self, event: Outputs) -> None:
        parts: list[list[Output]] = [[] for _ in self.connections]
        for output in event.outputs:
            owner = self._owners.get(output.request_id)
            if owner is None:
                continue
            parts[owner].append(output)
            if output.finish is not None:
                del self._owners[output.request_id]
        for connection, part in zip(self.connections, parts, strict=True):
            if part:
                connection.to_gateway.send(Outputs(event.replica, tuple(part)))
