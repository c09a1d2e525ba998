"""``headrace serve``: settings, socket and model file, then the supervisor."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from headrace.cli.announcer import Announcement, ConsoleAnnouncer
from headrace.cli.flags import Flag, add_flags, load_settings
from headrace.cli.models import cache_dir, served_model
from headrace.clock import MonotonicClock
from headrace.config import read_environment
from headrace.errors import StartError, UsageError
from headrace.monitoring.logging import configure_logging
from headrace.server.address import bind, check_exposure, url_of
from headrace.server.child import child_command
from headrace.server.controller import ServerPlan, Supervisor
from headrace.server.process import ChildSpec
from headrace.server.restarts import RestartLimits
from headrace.server.settings import (
    EngineProcess,
    GatewayProcess,
    ModelFile,
)

if TYPE_CHECKING:
    import argparse
    import socket
    from collections.abc import Iterator

    from headrace.config import Config, Environment, Loaded
    from headrace.server.controller import Ending
    from headrace.types import Seconds

MAX_SOCKET_PATH_BYTES = 107
"""Of a Unix socket, on Linux (unix(7))."""

FLAGS = (
    Flag("--model", "model.name", "MODEL"),
    Flag("--served-model-name", "model.served_name", "NAME"),
    Flag("--host", "server.host", "HOST"),
    Flag("--port", "server.port", "PORT"),
    Flag("--api-key", "server.api_key", "KEY"),
    Flag("--insecure-no-auth", "server.insecure_no_auth"),
    Flag("--replicas", "server.replicas", "N"),
    Flag("--threads", "engine.threads", "N"),
    Flag("--kv-cache-tokens", "engine.kv_cache_tokens", "N"),
    Flag("--max-model-len", "engine.max_model_len", "N"),
    Flag("--max-num-seqs", "engine.max_num_seqs", "N"),
    Flag("--max-num-batched-tokens", "engine.max_num_batched_tokens", "N"),
    Flag("--drain-seconds", "server.drain_seconds", "S"),
    Flag("--cache-dir", "model.cache_dir", "DIR"),
    Flag("--log-level", "log.level", "LEVEL"),
    Flag("--log-format", "log.format", "FORMAT"),
)

_EPILOG = """examples:
  headrace serve                     # a small model on http://127.0.0.1:8000
  headrace serve ./model.gguf --port 8080 --replicas 2 --max-model-len 4k"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``headrace serve``."""
    parser.usage = "headrace serve [MODEL] [flags]"
    parser.description = "Serve a model over HTTP: OpenAI's API, streaming, Prometheus metrics."
    parser.epilog = _EPILOG
    parser.add_argument("positional", metavar="MODEL", nargs="?", help="the same as --model")
    add_flags(parser, FLAGS)


def main(args: argparse.Namespace) -> int:
    """Serve until told to end; return the exit code."""
    begun = MonotonicClock().now()
    environment = read_environment()
    if args.positional is not None:
        if args.model is not None:
            raise UsageError(f"two models: {args.positional} and --model {args.model}; name one")
        args.model = args.positional
    loaded = load_settings(args, FLAGS, environment)
    config = loaded.config
    configure_logging(process="supervisor", format=config.log.format, level=config.log.level)
    check_exposure(config.server)
    with bind(config.server.host, config.server.port) as listening:
        model = served_model(config, environment)
        with run_directory(environment) as directory:
            plan = server_plan(config, environment, listening, model, directory)
            announcer = ConsoleAnnouncer(_announcement(loaded, model, url_of(listening)))
            ending = asyncio.run(_supervise(plan, announcer, begun))
    if ending.message:
        print(f"headrace: {ending.message}", file=sys.stderr)
    return ending.exit_code


async def _supervise(plan: ServerPlan, announcer: ConsoleAnnouncer, begun: Seconds) -> Ending:
    clock = MonotonicClock()
    return await Supervisor(plan, announcer=announcer, clock=clock, begun=begun).run()


def _announcement(loaded: Loaded, model: ModelFile, url: str) -> Announcement:
    config = loaded.config
    return Announcement(
        model=config.model.served_name or model.name,
        url=url,
        has_key=bool(config.server.api_key),
        is_exposed=config.server.insecure_no_auth,
        settings=f"{loaded.fingerprint} ({_origins(loaded)})",
    )


def server_plan(
    config: Config,
    environment: Environment,
    listening: socket.socket,
    model: ModelFile,
    directory: Path,
) -> ServerPlan:
    """Return what the supervisor is to start. ``directory`` is for the engines' sockets."""
    sockets = {f"r{i}": str(directory / f"r{i}.sock") for i in range(config.server.replicas)}
    gateway = msgspec.structs.replace(
        config.gateway,
        http=config.http,
        max_model_len=config.gateway.max_model_len or config.engine.max_model_len,
    )
    gateway_process = GatewayProcess(
        name="g0",
        listening_fd=listening.fileno(),
        engines=sockets,
        model=model,
        served_name=config.model.served_name or model.name,
        api_keys=(config.server.api_key,) if config.server.api_key else (),
        gateway=gateway,
        transport=config.transport,
        log=config.log,
        drain_seconds=config.server.drain_seconds,
    )
    return ServerPlan(
        gateway=ChildSpec(
            name="gateway",
            command=child_command("gateway"),
            settings=msgspec.json.encode(gateway_process),
            inherited_fds=(listening.fileno(),),
        ),
        engines=tuple(
            _engine_spec(
                EngineProcess(
                    replica=replica,
                    socket=path,
                    cache_dir=str(cache_dir(config, environment)),
                    model=model,
                    engine=config.engine,
                    transport=config.transport,
                    log=config.log,
                    drain_seconds=config.server.drain_seconds,
                )
            )
            for replica, path in sockets.items()
        ),
        restarts=RestartLimits(
            min_seconds=config.server.restart_min_seconds,
            max_seconds=config.server.restart_max_seconds,
            crash_loop_deaths=config.server.crash_loop_deaths,
        ),
        start_seconds=config.server.start_seconds,
        drain_seconds=config.server.drain_seconds,
    )


def _engine_spec(process: EngineProcess) -> ChildSpec:
    return ChildSpec(
        name=f"engine {process.replica}",
        command=child_command("engine"),
        settings=msgspec.json.encode(process),
    )


@contextmanager
def run_directory(environment: Environment) -> Iterator[Path]:
    """A new directory for sockets, mode 0700, gone afterwards. Raises StartError."""
    base = environment.runtime_dir
    if base is None or not base.is_dir():
        base = Path(tempfile.gettempdir())
    try:
        directory = Path(tempfile.mkdtemp(prefix="headrace-", dir=base))
    except OSError as error:
        raise StartError(f"cannot make a directory in {base}: {error.strerror}") from None
    try:
        if len(bytes(directory / "r00.sock")) > MAX_SOCKET_PATH_BYTES:
            raise StartError(f"{directory} is too long for a socket's path; set TMPDIR to less")
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _origins(loaded: Loaded) -> str:
    places = sorted({place.partition(": ")[0] for place in loaded.origins.values()})
    return ", ".join(places) if places else "all defaults"
