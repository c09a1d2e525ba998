"""From settings to what the supervisor starts: one function for each kind of process."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from headrace.cli.models import cache_dir
from headrace.cli.places import CONTROL_SOCKET
from headrace.cluster.local import LocalReplica
from headrace.core.autoscaler.config import AutoscalerConfig
from headrace.server.child import child_command
from headrace.server.keeper import KILL_GRACE_SECONDS, KeeperLimits
from headrace.server.kv_tiers.secret import kept_secret
from headrace.server.process import ChildSpec
from headrace.server.restarts import RestartLimits
from headrace.server.settings import ConsoleProcess, EngineProcess, GatewayProcess

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from headrace.config import Config, Environment
    from headrace.server.settings import ModelFile
    from headrace.types import ReplicaId

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


def gateway_process(
    config: Config, *, listening: socket.socket, directory: Path, model: ModelFile
) -> GatewayProcess:
    """All that the gateway is told. Its replicas come over the control socket."""
    gateway = msgspec.structs.replace(
        config.gateway,
        http=config.http,
        max_model_len=config.gateway.max_model_len or config.engine.max_model_len,
    )
    return GatewayProcess(
        name="g0",
        listening_fd=listening.fileno(),
        engines={},
        control=str(directory / CONTROL_SOCKET),
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


def gateway_spec(process: GatewayProcess) -> ChildSpec:
    """How to start it."""
    return ChildSpec(
        name="gateway",
        command=child_command("child-gateway"),
        settings=msgspec.json.encode(process),
        inherited_fds=(process.listening_fd,),
    )


def engine_plan(
    config: Config, environment: Environment, *, model: ModelFile, directory: Path
) -> Callable[[ReplicaId], LocalReplica]:
    """How to start an engine of a given name. ``directory`` is for their sockets."""
    models = str(cache_dir(config, environment))

    def describe(replica: ReplicaId) -> LocalReplica:
        address = str(directory / f"{replica}.sock")
        process = EngineProcess(
            replica=replica,
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
        return LocalReplica(spec=spec, address=address)

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
