"""``headrace gateway``: one address for OpenAI servers that others run."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from headrace.cli.announcer import Announcement
from headrace.cli.flags import Flag, add_flags, load_settings
from headrace.cli.places import run_directory
from headrace.cli.plans import gateway_plan
from headrace.cli.serving import Server, run_server
from headrace.clock import MonotonicClock
from headrace.config import read_environment
from headrace.core.balancer.registry import build_policy
from headrace.monitoring.logging import configure_logging
from headrace.server.address import bind_all, check_exposure, url_of
from headrace.server.gateway.foreign.address import parse_aliases, parse_replicas
from headrace.server.gateway.foreign.kv_options import check_files
from headrace.server.settings import ModelFile

if TYPE_CHECKING:
    import argparse
    import socket
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from headrace.config import Loaded
    from headrace.server.gateway.foreign.config import ForeignReplica
    from headrace.server.settings import GatewayProcess

FLAGS = (
    Flag("--replica", "foreign.replicas", "URL[,OPTION...]", repeated=True),
    Flag("--alias", "foreign.aliases", "NAME=MODEL", repeated=True),
    Flag("--migration", "foreign.migration", "HOW"),
    Flag("--host", "server.host", "HOST"),
    Flag("--port", "server.port", "PORT"),
    Flag("--api-key", "server.api_key", "KEY"),
    Flag("--key-file", "server.key_file", "FILE"),
    Flag("--insecure-no-auth", "server.insecure_no_auth"),
    Flag("--gateways", "server.gateways", "N"),
    Flag("--policy", "gateway.policy", "NAME"),
    Flag("--drain-seconds", "server.drain_seconds", "S"),
    Flag("--admin", "server.admin", "PATH"),
    Flag("--journal", "server.journal", "FILE"),
    Flag("--no-console", "console.enabled", off=True),
    Flag("--log-level", "log.level", "LEVEL"),
    Flag("--log-format", "log.format", "FORMAT"),
)

_EPILOG = """Replicas may be any servers of the OpenAI HTTP API: vLLM, SGLang, llama.cpp, headrace.
Where they want a key, set HEADRACE_FOREIGN_API_KEY. Options of a replica, after its URL:
  model=ID      use this one of its models only      alias=NAME  what its model is called here
  weight=2      twice the load of one with 1         canary=5%   tried with that share of requests
  server=NAME   what it is, if it does not say: vllm, sglang, llamacpp, tgi, headrace
  migration=HOW what becomes of its broken streams: best_effort, exact, off
  kv-events=tcp://HOST:5557,tokenizer=PATH,model=ID  route by what it says it has cached (vLLM,
                SGLang); kv-replay=tcp://HOST:5558 for what was missed, block-size=16

examples:
  headrace gateway --replica http://10.0.0.1:8000,weight=2 --replica http://10.0.0.2:8000
  headrace gateway --replica http://10.0.0.1:8000 --alias gpt-4o-mini=llama-3.1-8b
  headrace gateway --replica http://10.0.0.1:8000 --replica http://10.0.0.2:8000,canary=5%"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``headrace gateway``."""
    parser.usage = "headrace gateway --replica URL [--replica URL ...] [flags]"
    parser.description = "Stand before OpenAI servers that run elsewhere: balance, retry, watch."
    parser.epilog = _EPILOG
    add_flags(parser, FLAGS)


def main(args: argparse.Namespace) -> int:
    """Serve until told to end; return the exit code."""
    begun = MonotonicClock().now()
    environment = read_environment()
    loaded = load_settings(args, FLAGS, environment)
    config = loaded.config
    configure_logging(process="supervisor", format=config.log.format, level=config.log.level)
    replicas = parse_replicas(config.foreign.replicas)
    parse_aliases(config.foreign.aliases)  # a wrong one is told now
    check_files(replicas)
    build_policy(config.gateway.policy)  # an unknown one is told with near names
    check_exposure(config.server)
    with ExitStack() as stack:
        sockets = bind_all(config.server.host, config.server.port, config.server.gateways)
        listening = [stack.enter_context(each) for each in sockets]
        directory = stack.enter_context(run_directory(environment))
        server = Server(
            loaded=loaded,
            listening=listening,
            directory=directory,
            gateway=_plan(loaded, listening, directory, replicas),
            announcement=_announcement(loaded, listening[0], replicas),
            begun=begun,
        )
        return run_server(server)


def _plan(
    loaded: Loaded,
    listening: Sequence[socket.socket],
    directory: Path,
    replicas: tuple[ForeignReplica, ...],
) -> Callable[[int, int], GatewayProcess]:
    config, no_model = loaded.config, ModelFile(path="", name="")
    describe = gateway_plan(config, listening=listening, directory=directory, model=no_model)

    def describe_foreign(place: int, generation: int) -> GatewayProcess:
        process = describe(place, generation)
        return msgspec.structs.replace(process, replicas=replicas, foreign=config.foreign)

    return describe_foreign


def _announcement(
    loaded: Loaded, listening: socket.socket, replicas: tuple[ForeignReplica, ...]
) -> Announcement:
    config = loaded.config
    urls = ", ".join(replica.url for replica in replicas)
    return Announcement(
        model="",
        url=url_of(listening),
        has_key=bool(config.server.api_key or config.server.key_file),
        is_exposed=config.server.insecure_no_auth,
        settings=loaded.summary,
        elsewhere=urls,
    )
