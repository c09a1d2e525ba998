"""How each router is started before the same servers: ours, and what people run instead.

Everything listens on loopback, on ports that were free, on the one processor that it is given
(``taskset``). Settings are the defaults but for what is named here.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from processes import ServerSpec

import headrace

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

START_TIMEOUT_S = 90.0
QUESTION_TIMEOUT_S = 60.0
PORTS = 2  # of a router: requests, metrics

NGINX_CONF = """\
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_buffer_size 128k;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  keepalive_requests 100000000;
  upstream servers {{
    least_conn;
    {servers}
    keepalive 1024;
    keepalive_requests 100000000;
  }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://servers;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""

LITELLM_ENVIRONMENT = {
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
}


class Program(StrEnum):
    """What is started; ``direct``: nothing, the client asks a server itself."""

    DIRECT = "direct"
    HEADRACE = "headrace"
    VLLM = "vllm-router"
    SGLANG = "sglang-router"
    NGINX = "nginx"
    LITELLM = "litellm"


PEERS = (Program.VLLM, Program.SGLANG, Program.NGINX, Program.LITELLM)
RUST = (Program.VLLM, Program.SGLANG)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a router is asked for. LiteLLM falls over at what the others take."""

    json_connections: int = 64
    streams: int = 256
    streams_per_s: float = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """A row of the table: a program with a policy."""

    program: Program
    policy: str = ""
    load: Load = Load()

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.program, self.policy)))


DIRECT = Router(program=Program.DIRECT)
OURS_AWARE = Router(program=Program.HEADRACE, policy="predicted_ttft")
OURS_IN_TURN = Router(program=Program.HEADRACE, policy="round_robin")
RUST_AWARE = tuple(Router(program=each, policy="cache_aware") for each in RUST)
RUST_IN_TURN = tuple(Router(program=each, policy="round_robin") for each in RUST)
ROUTERS = (
    DIRECT,
    OURS_AWARE,
    OURS_IN_TURN,
    *RUST_AWARE,
    *RUST_IN_TURN,
    Router(program=Program.NGINX),
    Router(program=Program.LITELLM, load=Load(json_connections=8, streams=8, streams_per_s=5.0)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a router is to run: before which servers, on which processor, with which files."""

    upstreams: Sequence[int]  # ports
    cpu: int
    directory: Path
    key_file: Path

    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.upstreams]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where peers lie."""
    for name in PEERS:
        parser.add_argument(f"--{name}", metavar="PATH", default=name, help=f"({name})")


def find_executable(program: Program, options: argparse.Namespace) -> str | None:
    """Return the path of a program, None if it is not there."""
    if program not in PEERS:
        return sys.executable
    path: str = vars(options)[program.replace("-", "_")]
    return shutil.which(path)


def version_of(program: Program, executable: str) -> str:
    """Ask a program's environment (nginx: itself) for its version."""
    if program is Program.HEADRACE:
        return headrace.__version__
    if program is Program.NGINX:
        return _ask([executable, "-v"]).rpartition("/")[2]
    code = f"from importlib.metadata import version; print(version({program.value!r}))"
    return _ask([str(Path(executable).parent / "python"), "-c", code])


def build_spec(router: Router, executable: str, site: Site) -> ServerSpec:
    """Return how to start a router at a site; its configuration is written there."""
    port, metrics = free_ports(PORTS)
    environment: dict[str, str] = {}
    ready = "/health"
    at = ["--host", "127.0.0.1", "--port", str(port)]
    workers = ["--worker-urls", *site.urls(), "--policy", router.policy]
    workers += ["--prometheus-port", str(metrics)]
    match router.program:
        case Program.HEADRACE:
            command = [executable, "-P", "-m", "headrace", "gateway", *at, "--no-console"]
            command += ["--policy", router.policy, "--key-file", str(site.key_file)]
            command += [word for url in site.urls() for word in ("--replica", url)]
            environment = {"TMPDIR": str(site.directory)}
        case Program.VLLM:
            command = [executable, *at, *workers, "--log-level", "warning"]
        case Program.SGLANG:
            command = [executable, "launch", *at, *workers, "--log-level", "warn"]
        case Program.NGINX:
            conf = _write_nginx_conf(site, port)
            command = [executable, "-p", str(site.directory), "-c", str(conf), "-e", "stderr"]
        case Program.LITELLM:
            command = [executable, "--config", str(_write_litellm_config(site)), *at]
            command += ["--num_workers", "1"]
            environment, ready = LITELLM_ENVIRONMENT, "/health/liveliness"
        case Program.DIRECT:
            raise ValueError("nothing is started for it")
        case _:
            assert_never(router.program)
    return ServerSpec(
        name=router.name,
        command=["taskset", "--cpu-list", str(site.cpu), *command],
        port=port,
        ready_path=ready,
        environment=environment,
        start_timeout_s=START_TIMEOUT_S,
    )


def free_ports(number: int) -> list[int]:
    """Return different ports that are free now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _write_nginx_conf(site: Site, port: int) -> Path:
    path = site.directory / "nginx.conf"
    servers = "\n    ".join(f"server 127.0.0.1:{upstream};" for upstream in site.upstreams)
    path.write_text(NGINX_CONF.format(directory=site.directory, port=port, servers=servers))
    return path


def _write_litellm_config(site: Site) -> Path:
    """Write the servers as deployments of one model, chosen by its default strategy."""
    path = site.directory / "litellm.yaml"  # JSON is YAML
    models = [
        {
            "model_name": "m",
            "litellm_params": {"model": "openai/m", "api_base": f"{url}/v1", "api_key": "none"},
        }
        for url in site.urls()
    ]
    settings = {"routing_strategy": "simple-shuffle"}
    path.write_text(json.dumps({"model_list": models, "router_settings": settings}))
    return path


def _ask(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=QUESTION_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return (done.stdout or done.stderr).strip()
