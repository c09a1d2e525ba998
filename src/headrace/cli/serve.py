"""``headrace serve``: settings, socket and model file, then the supervisor."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from headrace.cli.announcer import Announcement
from headrace.cli.flags import Flag, add_flags, load_settings
from headrace.cli.models import served_model
from headrace.cli.places import run_directory
from headrace.cli.plans import engine_plan, gateway_plan
from headrace.cli.serving import Server, run_server
from headrace.clock import MonotonicClock
from headrace.config import read_environment
from headrace.core.balancer.registry import build_policy
from headrace.errors import UsageError
from headrace.monitoring.logging import configure_logging
from headrace.server.address import bind_all, check_exposure, url_of
from headrace.server.replica_range import ReplicaRange, parse_range
from headrace.server.roles import parse_roles

if TYPE_CHECKING:
    import argparse
    import socket

    from headrace.config import Loaded
    from headrace.server.settings import ModelFile

FLAGS = (
    Flag("--model", "model.name", "MODEL"),
    Flag("--served-model-name", "model.served_name", "NAME"),
    Flag("--host", "server.host", "HOST"),
    Flag("--port", "server.port", "PORT"),
    Flag("--api-key", "server.api_key", "KEY"),
    Flag("--insecure-no-auth", "server.insecure_no_auth"),
    Flag("--key-file", "server.key_file", "FILE"),
    Flag("--replicas", "server.replicas", "N[:MAX]"),
    Flag("--gateways", "server.gateways", "N"),
    Flag("--roles", "server.roles", "ROLE=N,.."),
    Flag("--policy", "gateway.policy", "NAME"),
    Flag("--threads", "engine.threads", "N"),
    Flag("--kv-cache-tokens", "engine.kv_cache_tokens", "N"),
    Flag("--max-model-len", "engine.max_model_len", "N"),
    Flag("--max-num-seqs", "engine.max_num_seqs", "N"),
    Flag("--max-num-batched-tokens", "engine.max_num_batched_tokens", "N"),
    Flag("--drain-seconds", "server.drain_seconds", "S"),
    Flag("--admin", "server.admin", "PATH"),
    Flag("--journal", "server.journal", "FILE"),
    Flag("--no-console", "console.enabled", off=True),
    Flag("--cache-dir", "model.cache_dir", "DIR"),
    Flag("--log-level", "log.level", "LEVEL"),
    Flag("--log-format", "log.format", "FORMAT"),
)

_EPILOG = """examples:
  headrace serve                     # a small model on http://127.0.0.1:8000
  headrace serve ./model.gguf --port 8080 --replicas 1:3 --max-model-len 4k"""


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
    replicas = checked_settings(loaded)
    check_exposure(config.server)
    with ExitStack() as stack:
        sockets = bind_all(config.server.host, config.server.port, config.server.gateways)
        listening = [stack.enter_context(each) for each in sockets]
        model = served_model(config, environment)
        with run_directory(environment) as directory:
            server = Server(
                loaded=loaded,
                listening=listening,
                directory=directory,
                gateway=gateway_plan(config, listening=listening, directory=directory, model=model),
                announcement=announcement(loaded, model, listening[0], replicas),
                begun=begun,
                range=replicas,
                roles=parse_roles(config.server.roles, place="server.roles"),
                engine=engine_plan(config, environment, model=model, directory=directory),
            )
            return run_server(server)


def checked_settings(loaded: Loaded) -> ReplicaRange:
    """Return the replicas that may be; raise UsageError for what only shows after loading."""
    config = loaded.config
    build_policy(config.gateway.policy)  # an unknown one is told with near names
    place = loaded.origins.get("server.replicas", "server.replicas")
    replicas = parse_range(config.server.replicas, place=place)
    roles = parse_roles(
        config.server.roles, place=loaded.origins.get("server.roles", "server.roles")
    )
    if not roles:
        return replicas
    total = sum(roles.values())
    if "server.replicas" in loaded.origins and replicas != (total, total):
        raise UsageError(
            f"{place} is {config.server.replicas!r}, and the roles are those of {total} replicas: "
            "leave it out (replicas with roles are not scaled)"
        )
    if not (config.engine.kv_transfer and config.gateway.kv_transfer):
        raise UsageError("roles need engine.kv_transfer and gateway.kv_transfer: switch them on")
    return ReplicaRange(total, total)


def announcement(
    loaded: Loaded, model: ModelFile, listening: socket.socket, replicas: ReplicaRange
) -> Announcement:
    """What to print when all is ready."""
    config = loaded.config
    return Announcement(
        model=config.model.served_name or model.name,
        url=url_of(listening),
        has_key=bool(config.server.api_key or config.server.key_file),
        is_exposed=config.server.insecure_no_auth,
        settings=loaded.summary,
        range=str(replicas),
    )
