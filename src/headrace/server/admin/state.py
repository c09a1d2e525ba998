"""GET /state: the controller's replicas, with what the gateway knows of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from headrace.core.autoscaler.events import Stage
from headrace.monitoring.shapes import ReplicaRow, ServerState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.monitoring.shapes import GatewayState
    from headrace.server.controller import Controller
    from headrace.server.provisioner import Place
    from headrace.types import ReplicaId, Seconds

CRASH_LOOP = "crash_loop"


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What stays the same while a server runs. ``begun`` is on the process's clock."""

    version: str
    url: str
    begun: Seconds
    console: str = ""
    has_roles: bool = False  # its replicas are not all for everything


def server_state(
    about: About, controller: Controller, gateway: GatewayState | None, *, now: Seconds
) -> ServerState:
    """Return everything there is to show."""
    autoscaler = controller.autoscaler
    return ServerState(
        version=about.version,
        url=about.url,
        console=about.console,
        uptime=now - about.begun,
        floor=autoscaler.floor,
        ceiling=autoscaler.ceiling,
        desired=max(autoscaler.present, autoscaler.floor),
        scaling=list(controller.decisions.scalings),
        gateway=gateway,
        replicas=list(replica_rows(controller, gateway, now=now)),
    )


def replica_rows(
    controller: Controller, gateway: GatewayState | None, *, now: Seconds
) -> Iterator[ReplicaRow]:
    """Yield the controller's replicas, or the gateway's where others run them."""
    seen = {} if gateway is None else {row.replica: row for row in gateway.replicas}
    places = controller.provisioner.places()
    for replica, (stage, since) in controller.autoscaler.stages().items():
        row = seen.pop(replica, None)
        place = places.get(replica)
        yield _row(replica, stage, now - since, row=row, place=place)
    if controller.autoscaler.ceiling == 0:
        yield from seen.values()


def _row(
    replica: ReplicaId,
    stage: Stage,
    seconds: Seconds,
    *,
    row: ReplicaRow | None,
    place: Place | None,
) -> ReplicaRow:
    state, reason = str(stage), "" if place is None else place.reason
    if place is not None and place.is_crash_loop:
        state = CRASH_LOOP
    elif stage is Stage.READY and row is not None:
        state, seconds, reason = row.state, row.seconds_in_state, row.reason
    row = row or ReplicaRow(replica=replica, state=state)
    row = replace(row, state=state, seconds_in_state=seconds, reason=reason)
    if place is None:
        return row
    return replace(
        row,
        pid=place.pid or 0,
        address=place.address,
        role=place.role,
        restarts=place.restarts,
        kv_tokens=place.kv_tokens,
    )
