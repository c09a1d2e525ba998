"""Runs a server from its parts: supervisor, controller, control link and admin plane, wired.

``headrace serve`` and ``headrace gateway`` differ in what the gateway is told, and in whether there
are engines; everything else is here.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from headrace import __version__
from headrace.cli.announcer import ConsoleAnnouncer
from headrace.cli.places import ADMIN_SOCKET
from headrace.cli.plans import (
    autoscaler_config,
    console_process,
    console_spec,
    gateway_start,
    keeper_limits,
)
from headrace.clock import MonotonicClock, wall_time
from headrace.cluster.local import LocalProvisioner
from headrace.core.autoscaler.machine import Autoscaler
from headrace.errors import AddressInUse, UsageError
from headrace.monitoring.journal import Journal, JournalFile
from headrace.server.address import bind, bind_unix, is_loopback, url_of
from headrace.server.admin.gateways import AllGateways
from headrace.server.admin.journal import MergedJournal
from headrace.server.admin.plane import AdminPlane
from headrace.server.admin.state import About
from headrace.server.control_hub import ControlHub
from headrace.server.controller import Controller
from headrace.server.decisions import Decisions
from headrace.server.provisioner import NoProvisioner
from headrace.server.replica_range import ReplicaRange
from headrace.server.restarting import Restarter
from headrace.server.roles import RoleBook
from headrace.server.supervisor import ServerPlan, Supervisor

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from headrace.cli.announcer import Announcement
    from headrace.clock import Clock
    from headrace.cluster.local import LocalReplica
    from headrace.config import Loaded
    from headrace.server.keeper import KeeperLimits
    from headrace.server.provisioner import Provisioner, ReplicaEvents
    from headrace.server.settings import ConsoleProcess, GatewayProcess
    from headrace.server.supervisor import Ending
    from headrace.types import ReplicaId, Role, Seconds

NO_RANGE = ReplicaRange(0, 0)
GRACE_SECONDS = 30.0  # for what a restart of one replica takes beside its start and its drain


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What is to run. ``engine`` says how replicas are started, None if others run them."""

    loaded: Loaded
    listening: Sequence[socket.socket]  # one for each gateway
    directory: Path
    gateway: Callable[[int, int], GatewayProcess]  # by place and generation
    announcement: Announcement
    begun: Seconds
    range: ReplicaRange = NO_RANGE
    roles: Mapping[Role, int] = field(default_factory=dict)  # none: all do everything
    engine: Callable[[ReplicaId, Role], LocalReplica] | None = None

    @property
    def admin(self) -> Path:
        """Where its admin plane listens."""
        named = self.loaded.config.server.admin
        return Path(named).expanduser() if named else self.directory / ADMIN_SOCKET


def run_server(server: Server) -> int:
    """Run a server until it is told to end; return the exit code."""
    with ExitStack() as stack:
        admin = stack.enter_context(_admin_socket(server.admin))
        console = stack.enter_context(_console(server))
        ending = asyncio.run(_supervise(server, admin, console))
    if ending.message:
        print(f"headrace: {ending.message}", file=sys.stderr)
    return ending.exit_code


@contextmanager
def _admin_socket(path: Path) -> Iterator[socket.socket]:
    with bind_unix(path) as listening:
        try:
            yield listening
        finally:
            path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Console:
    """The console's process, and where a browser finds it."""

    process: ConsoleProcess
    url: str


@contextmanager
def _console(server: Server) -> Iterator[_Console | None]:
    """Bind the console's port; without one of its own choice it is left out if that is taken."""
    config = server.loaded.config.console
    if not config.enabled:
        yield None
        return
    if not is_loopback(config.host):
        raise UsageError(f"console.host is {config.host}: the console is for this machine only")
    server_port = server.listening[0].getsockname()[1]
    port = server_port + 1 if config.port < 0 else config.port
    try:
        listening = bind(config.host, min(port, 65535))
    except AddressInUse:
        if "console.port" in server.loaded.origins:
            raise
        print(
            f"headrace: no console: port {port} is in use; choose one with "
            f"HEADRACE_CONSOLE_PORT, or use --no-console",
            file=sys.stderr,
        )
        yield None
        return
    with listening:
        process = console_process(
            server.loaded.config,
            listening=listening,
            admin=server.admin,
            server_url=url_of(server.listening[0]),
        )
        yield _Console(process, f"{url_of(listening)}/#token={process.token}")


async def _supervise(server: Server, admin: socket.socket, console: _Console | None) -> Ending:
    config = server.loaded.config
    clock = MonotonicClock()
    limits = keeper_limits(config)
    hub = ControlHub(config.transport)
    supervisor = Supervisor(
        _plan(server, console, limits),
        announcer=ConsoleAnnouncer(_announcement(server, console)),
        links=hub,
        clock=clock,
        begun=server.begun,
    )

    autoscaler = Autoscaler(autoscaler_config(config))
    controller = Controller(
        autoscaler,
        provision=partial(_provision, server, autoscaler, supervisor, limits, clock),
        gateways=hub,
        events=supervisor,
        decisions=Decisions(_journal(config.server.journal), wall_time),
        drain_limit=config.server.drain_seconds,
        clock=clock,
    )
    about = About(
        version=__version__,
        url=url_of(server.listening[0]),
        begun=server.begun,
        console="" if console is None else console.url,
        has_roles=bool(server.roles),
    )
    everybody = AllGateways(hub)
    restarter = Restarter(
        supervisor.gateways,
        controller,
        hub,
        patience=config.server.start_seconds + config.server.drain_seconds + GRACE_SECONDS,
        clock=clock,
    )
    plane = AdminPlane(
        controller,
        gateways=everybody,
        journal=MergedJournal(controller.decisions.journal, hub),
        restarts=restarter,
        about=about,
        clock=clock,
    )
    hub.bind(controller.reports, everybody)
    if server.engine is not None:
        controller.set_range(*server.range)
    return await supervisor.run(controller, _services(hub, restarter, plane, admin))


def _provision(
    server: Server,
    autoscaler: Autoscaler,
    supervisor: Supervisor,
    limits: KeeperLimits,
    clock: Clock,
    events: ReplicaEvents,
) -> Provisioner:
    start, book = server.engine, RoleBook(server.roles)
    if start is None:
        return NoProvisioner()

    def describe(name: ReplicaId) -> LocalReplica:
        return start(name, book.assign(name, autoscaler.staying()))

    return LocalProvisioner(
        describe, events=events, progress=supervisor, limits=limits, clock=clock
    )


def _plan(server: Server, console: _Console | None, limits: KeeperLimits) -> ServerPlan:
    return ServerPlan(
        gateways=len(server.listening),
        describe=lambda place, generation: gateway_start(server.gateway(place, generation)),
        handover_seconds=server.loaded.config.server.handover_seconds,
        console=None if console is None else console_spec(console.process),
        floor=server.range.floor,
        limits=limits,
    )


def _announcement(server: Server, console: _Console | None) -> Announcement:
    return (
        server.announcement
        if console is None
        else replace(server.announcement, console=console.url)
    )


async def _services(
    hub: ControlHub, restarter: Restarter, plane: AdminPlane, admin: socket.socket
) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(hub.run())
        group.create_task(restarter.run())
        group.create_task(plane.run(admin))


def _journal(path: str) -> Journal:
    file = JournalFile(Path(path).expanduser()) if path else None
    return Journal(unix_time=wall_time, source="autoscaler", file=file)
