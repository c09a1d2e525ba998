"""The gateways that are connected to one engine: what each is sent, and what all are told.

What waits for a slow reader is bounded: changes of the prefix cache are left out first. A gateway
that missed one, or is new, gets the whole content instead; it need not ask, but may.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING

from headrace.core.scheduler.events import SnapshotWanted
from headrace.messages import KvChange, KvContent, TokenFrame
from headrace.server.transport.convert import beat_message, load_message, pack_keys, row_message

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Iterator

    from headrace.core.scheduler.events import KvChanged, KvSnapshot
    from headrace.messages import Load, TokenRow
    from headrace.server.links import ReplicaProcess
    from headrace.server.transport.frames import FrameConnection
    from headrace.types import Output, ReportLoad, RequestId, Tokens


class CacheView(Enum):
    """What a gateway knows of the prefix cache."""

    NOTHING = "nothing"  # of use: it is new, or a change was left out
    ASKED = "asked"  # the core will give the content
    ALL = "all"  # and is told every change


class Route:
    """Where the tokens of one request go."""

    __slots__ = ("cached_tokens", "session", "stream")

    def __init__(self, session: Session, stream: int) -> None:
        self.session = session
        self.stream = stream
        self.cached_tokens: Tokens = 0  # what the gateway was last told


class Session:
    """One gateway's connection. ``name`` is unique in the life of the engine."""

    def __init__(self, connection: FrameConnection, *, number: int) -> None:
        self.connection = connection
        self.name = str(number)
        self.gateway: str | None = None  # None until Hello
        self.requests: dict[int, RequestId] = {}  # stream -> request
        self.greeting: asyncio.TimerHandle | None = None
        self.cache = CacheView.NOTHING
        self._streams: list[int] = []
        self._tokens: list[int] = []
        self._rows: list[TokenRow] = []

    def add(self, route: Route, output: Output) -> None:
        """Put one output into the frame of this step."""
        is_plain = (
            len(output.tokens) == 1
            and output.finish is None
            and output.timing is None
            and not output.logprobs
            and output.cached_tokens == route.cached_tokens
        )
        if is_plain:
            self._streams.append(route.stream)
            self._tokens.append(output.tokens[0])
        else:
            route.cached_tokens = output.cached_tokens or 0
            self._rows.append(row_message(output, stream=route.stream))

    def flush(self) -> None:
        """Send the frame of this step, if there is anything in it."""
        if self._streams or self._rows:
            self.connection.send(TokenFrame(self._streams, self._tokens, self._rows))
            self._streams, self._tokens, self._rows = [], [], []


class Gateways:
    """All sessions of one engine. ``deliver`` takes the wish for a snapshot to the core."""

    def __init__(self, deliver: Callable[[SnapshotWanted], None], *, epoch: int) -> None:
        self._deliver = deliver
        self._epoch = epoch
        self._num_changes = 0
        self._sessions: dict[FrameConnection, Session] = {}
        self._num_opened = 0
        self._load: Load | None = None  # the last report, for gateways that come later

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._sessions.values()))

    def __getitem__(self, connection: FrameConnection) -> Session:
        return self._sessions[connection]

    def open(self, connection: FrameConnection) -> Session:
        """Begin a session. It is told nothing before it is greeted."""
        session = Session(connection, number=self._num_opened)
        self._num_opened += 1
        self._sessions[connection] = session
        return session

    def close(self, connection: FrameConnection) -> Session:
        """End a session and return it."""
        return self._sessions.pop(connection)

    def greeted(self, session: Session) -> None:
        """Tell a new gateway what the others know already."""
        if self._load is not None:
            session.connection.send(self._load)
        self.want_content(session)

    def want_content(self, session: Session) -> None:
        """Have the whole prefix cache sent to one gateway; once is enough."""
        if session.cache is not CacheView.ASKED:
            session.cache = CacheView.ASKED
            self._deliver(SnapshotWanted(session.name))

    def send_load(self, report: ReportLoad) -> None:
        """Tell every gateway, but none that has token frames waiting."""
        self._load = load_message(report)
        for session in self._greeted():
            if not session.connection.is_congested:
                session.connection.send(self._load)

    def send_beat(self, process: ReplicaProcess) -> None:
        """Tell every gateway that this process lives; make good what was left out before."""
        message = beat_message(replace(process, kv_changes=self._num_changes))
        for session in self._greeted():
            session.connection.send(message)
            if session.cache is CacheView.NOTHING and not session.connection.is_congested:
                self.want_content(session)

    def send_change(self, change: KvChanged) -> None:
        """Tell every gateway that knows the state before, but none that reads too slowly."""
        self._num_changes = change.number
        known = [session for session in self._greeted() if session.cache is CacheView.ALL]
        if not known:
            return
        message = KvChange(
            number=change.number,
            stored=pack_keys(change.stored),
            removed=pack_keys(change.removed),
            epoch=self._epoch,
        )
        for session in known:
            if session.connection.is_congested:
                session.cache = CacheView.NOTHING
            else:
                session.connection.send(message)

    def send_content(self, snapshot: KvSnapshot) -> None:
        """Send the whole prefix cache to who wanted it, if that one is still there."""
        for session in self._greeted():
            if session.name == snapshot.to:
                session.cache = CacheView.ALL
                keys = pack_keys(snapshot.keys)
                content = KvContent(number=snapshot.number, keys=keys, epoch=self._epoch)
                session.connection.send(content)

    def _greeted(self) -> Iterable[Session]:
        return [session for session in self if session.gateway is not None]
