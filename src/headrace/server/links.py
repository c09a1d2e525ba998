"""How a gateway talks to replicas, whatever they are and wherever they run.

A link hides processes, sockets and frames. The gateway's Router decides, and the shell round it
calls ``submit`` and ``abort``; what comes back arrives through ``LinkEvents``, on the event loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from headrace.types import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.router.events import AttemptFailed
    from headrace.types import (
        BlockKey,
        Output,
        ReplicaId,
        ReportLoad,
        Request,
        RequestId,
        Seconds,
        Tokens,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaDescription:
    """What a replica says of itself when it is ready. ``epoch`` grows from life to life."""

    replica: ReplicaId
    model_identity: str
    vocab_size: int
    max_model_len: Tokens
    block_size: Tokens
    num_blocks: int
    max_num_seqs: int
    pid: int
    max_num_batched_tokens: Tokens = 0  # 0: not known
    epoch: int = 0
    role: Role = Role.MIXED
    lends_at: str = ""  # where it lends blocks; "": it neither lends nor fetches
    peer_block_seconds: Seconds = 0.0  # first guess of what a block from a neighbour takes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaProcess:
    """A heartbeat: how the replica's process does. ``step_seconds``: of the step under way.

    ``kv_changes`` is the number of the latest change of its prefix cache, if it tells of any.
    """

    step_seconds: Seconds
    resident_bytes: int
    open_fds: int
    cpu_seconds: Seconds
    kv_changes: int | None = None


class ReplicaLink(Protocol):
    """One replica, as a gateway sees it."""

    @property
    def replica(self) -> ReplicaId:
        """Whose link this is."""
        ...

    def submit(self, request: Request) -> None:
        """Send a request. Its deadline is on this process's clock."""
        ...

    def abort(self, request_id: RequestId) -> None:
        """Tell the replica that nobody wants this request any more. Idempotent."""
        ...

    def want_snapshot(self) -> None:
        """Ask for all of the replica's prefix cache. Ignored by those that cannot tell."""
        ...


class LinkEvents(Protocol):
    """What links report. Called on the gateway's loop; must not block or raise."""

    def replica_ready(self, link: ReplicaLink, description: ReplicaDescription) -> None:
        """A replica is connected and takes requests."""
        ...

    def replica_lost(self, replica: ReplicaId, reason: str) -> None:
        """The connection is gone; nothing more comes from this link's requests."""
        ...

    def outputs(self, replica: ReplicaId, outputs: Sequence[Output]) -> None:
        """New tokens of one step."""
        ...

    def failed(self, failure: AttemptFailed) -> None:
        """An attempt ended badly while its replica lives."""
        ...

    def load(self, replica: ReplicaId, report: ReportLoad) -> None:
        """A load report."""
        ...

    def beat(self, replica: ReplicaId, process: ReplicaProcess) -> None:
        """A heartbeat, at fixed intervals."""
        ...

    def kv_changed(
        self,
        replica: ReplicaId,
        number: int,
        stored: tuple[BlockKey, ...],
        removed: tuple[BlockKey, ...],
        epoch: int = 0,
    ) -> None:
        """The replica's prefix cache changed."""
        ...

    def kv_listed(
        self, replica: ReplicaId, number: int, keys: tuple[BlockKey, ...], epoch: int = 0
    ) -> None:
        """All of the replica's prefix cache, because ``want_snapshot`` asked or it is new."""
        ...
