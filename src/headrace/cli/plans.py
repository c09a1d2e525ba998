"""From settings to what the supervisor starts: one function for each kind of process."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from headrace.cli.models import cache_dir
from headrace.cli.places import CONTROL_SOCKET, GOSSIP_SOCKET
from headrace.cluster.local import LocalReplica
from headrace.core.autoscaler.config import AutoscalerConfig
from headrace.server.child import child_command
from headrace.server.gateway_set import GatewayStart
from headrace.server.keeper import KILL_GRACE_SECONDS, KeeperLimits
from headrace.server.kv_tiers.secret import kept_secret
from headrace.server.process import ChildSpec
from headrace.server.restarts import RestartLimits
from headrace.server.settings import ConsoleProcess, EngineProcess, GatewayProcess

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from headrace.config import Config, Environment
    from headrace.server.settings import ModelFile
    from headrace.types import ReplicaId, Role

_CACHE_SECRET_BYTES = 32
_TOKEN_BYTES = 16


def keeper_limits(config: Config) -> KeeperLimits:
    """How long children may take, and when they are started again."""
    server = config.server
    return KeeperLimits(
        restarts=RestartLimits(
            min_seconds=server.restart_min_seconds,
            max_seconds=server.restart_max_seconds,
            crash_loop_deaths=server.crash_loop_deaths,
        ),
        start_seconds=server.start_seconds,
        drain_seconds=server.drain_seconds,
    )


def autoscaler_config(config: Config) -> AutoscalerConfig:
    """The Autoscaler's settings. Gateways end drains; if none is there, it does."""
    drain_limit = config.server.drain_seconds + KILL_GRACE_SECONDS
    return AutoscalerConfig(**msgspec.structs.asdict(config.autoscaler), drain_limit=drain_limit)


def gateway_plan(
    config: Config, *, listening: Sequence[socket.socket], directory: Path, model: ModelFile
) -> Callable[[int, int], GatewayProcess]:
    """Return all that a gateway is told, by its place and by how many were there before it.

    Its replicas come over the control socket. Secrets are drawn once for all of them.
    """
    first = _gateway_process(config, model=model)
    places = range(len(listening))
    gossip = tuple(str(directory / GOSSIP_SOCKET.format(place=place)) for place in places)

    def describe(place: int, generation: int) -> GatewayProcess:
        name = f"g{place}-{generation + 1}" if generation else f"g{place}"
        return msgspec.structs.replace(
            first,
            name=name,
            listening_fd=listening[place].fileno(),
            control=str(directory / CONTROL_SOCKET.format(name=name)),
            gossip=gossip if len(places) > 1 else (),
            place=place,
        )

    return describe


def _gateway_process(config: Config, *, model: ModelFile) -> GatewayProcess:
    gateway = msgspec.structs.replace(
        config.gateway,
        http=config.http,
        max_model_len=config.gateway.max_model_len or config.engine.max_model_len,
    )
    return GatewayProcess(
        name="",
        listening_fd=-1,
        engines={},
        handover_seconds=config.server.handover_seconds,
        cache_secret=_cache_secret(config),
        key_file=_path(config.server.key_file),
        journal=_path(config.server.journal),
        model=model,
        served_name=config.model.served_name or model.name,
        api_keys=(config.server.api_key,) if config.server.api_key else (),
        gateway=gateway,
        transport=config.transport,
        log=config.log,
        drain_seconds=config.server.drain_seconds,
    )


def _cache_secret(config: Config) -> str:
    """Return what salts derive from; "" with a key file, which has a secret of its own.

    With blocks on disk it outlives this server, as they do. Raises ConfigError.
    """
    if config.server.key_file:
        return ""
    if config.engine.disk_cache_dir:
        return kept_secret(Path(_path(config.engine.disk_cache_dir)), _draw_secret)
    return _draw_secret()


def _draw_secret() -> str:
    return secrets.token_hex(_CACHE_SECRET_BYTES)


def _path(text: str) -> str:
    return str(Path(text).expanduser()) if text else ""


def gateway_start(process: GatewayProcess) -> GatewayStart:
    """How to start it. The only one needs no number."""
    is_only = process.name == "g0" and not process.gossip
    spec = ChildSpec(
        name="gateway" if is_only else f"gateway {process.name}",
        command=child_command("child-gateway"),
        settings=msgspec.json.encode(process),
        inherited_fds=(process.listening_fd,),
    )
    return GatewayStart(process.name, Path(process.control), spec)


def engine_plan(
    config: Config, environment: Environment, *, model: ModelFile, directory: Path
) -> Callable[[ReplicaId, Role], LocalReplica]:
    """How to start an engine of a given name and role. ``directory`` is for their sockets."""
    models = str(cache_dir(config, environment))

    def describe(replica: ReplicaId, role: Role) -> LocalReplica:
        address = str(directory / f"{replica}.sock")
        process = EngineProcess(
            replica=replica,
            role=role,
            socket=address,
            cache_dir=models,
            model=model,
            engine=config.engine,
            transport=config.transport,
            log=config.log,
            drain_seconds=config.server.drain_seconds,
        )
        spec = ChildSpec(
            name=f"engine {replica}",
            command=child_command("child-engine"),
            settings=msgspec.json.encode(process),
        )
        return LocalReplica(spec=spec, address=address, role=role)

    return describe


def console_process(
    config: Config, *, listening: socket.socket, admin: Path, server_url: str
) -> ConsoleProcess:
    """All that the console is told."""
    return ConsoleProcess(
        listening_fd=listening.fileno(),
        token=secrets.token_urlsafe(_TOKEN_BYTES),
        admin=str(admin),
        server_url=server_url,
        log=config.log,
    )


def console_spec(process: ConsoleProcess) -> ChildSpec:
    """How to start it."""
    return ChildSpec(
        name="console",
        command=child_command("child-console"),
        settings=msgspec.json.encode(process),
        inherited_fds=(process.listening_fd,),
    )
