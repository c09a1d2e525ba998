"""How each server is started: ours and its peers, with the settings they are compared under."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from processes import ServerSpec

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

KV_TOKENS = 32_768  # of the pool, for every server that lets it be set

OURS = "ours"
LLAMA = "llamacpp"
LLAMA_Q4_0 = "llamacpp-q4_0"
LLAMA_DEFAULT = "llamacpp-default"
OPENVINO = "openvino"
VLLM = "vllm"
PEERS = (LLAMA, LLAMA_DEFAULT, LLAMA_Q4_0, OPENVINO, VLLM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Ours, started with other settings: a row of its own."""

    name: str
    flags: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def parse_variant(text: str) -> Variant:
    """Read ``NAME=WORDS``: settings as ``section.key=value``, and flags with their values.

    Raises ValueError.
    """
    name, equals, rest = text.partition("=")
    if not equals or not name.startswith(OURS):
        raise ValueError(f"{text!r}: a variant is {OURS}-NAME=SETTINGS")
    flags: list[str] = []
    environment: dict[str, str] = {}
    for word in shlex.split(rest):
        key, has_value, value = word.partition("=")
        section, dot, setting = key.partition(".")
        if has_value and dot and section.isidentifier() and setting.isidentifier():
            environment[f"HEADRACE_{section}_{setting}".upper()] = value
        else:
            flags.append(word)
    return Variant(name=name, flags=flags, environment=environment)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where servers and models lie."""
    add = parser.add_argument
    default_ours = f"{shlex.quote(sys.executable)} -m headrace serve --port {{port}}"
    add("--ours-command", default=default_ours, help="our server; {port} is filled in")
    add("--ours-ready-path", default="/ready")
    add(
        "--variant",
        dest="variants",
        type=parse_variant,
        action="append",
        default=[],
        metavar="NAME=SETTINGS",
        help="ours with other settings, e.g. 'ours-spec=engine.speculation=lookup --threads 1'",
    )
    add("--gguf", help="the Q4_1 model file, for llama.cpp and OpenVINO")
    add("--gguf-q4-0", help="its Q4_0 copy, for llamacpp-q4_0")
    add("--hf-dir", required=True, help="directory of export_hf.py: tokenizer, weights for vLLM")
    add("--llama-server", help="llama.cpp's llama-server")
    add("--openvino-python", help="python of the environment with openvino-genai and aiohttp")
    add("--vllm", help="the vllm command")
    add("--vllm-preload", default="", help="libraries for LD_PRELOAD: tcmalloc and libiomp5")
    add("--first-port", type=int, default=8150)


def build_spec(name: str, args: argparse.Namespace, port: int) -> ServerSpec:
    """Return how to start the server called ``name``. Raises SystemExit on a missing flag."""
    variants: dict[str, Variant] = {variant.name: variant for variant in args.variants}
    if name in variants:
        return _varied(_ours(args, port), variants[name])
    build = BUILDERS.get(name)
    if build is None:
        raise SystemExit(f"no server {name!r}; there are: {', '.join((*BUILDERS, *variants))}")
    return build(args, port)


def _varied(spec: ServerSpec, variant: Variant) -> ServerSpec:
    return replace(
        spec,
        name=variant.name,
        command=[*spec.command, *variant.flags],
        environment={**spec.environment, **variant.environment},
    )


def _need(value: str | None, flag: str) -> str:
    if not value:
        raise SystemExit(f"{flag} is needed for a server that was asked for")
    return value


def _ours(args: argparse.Namespace, port: int) -> ServerSpec:
    command = shlex.split(args.ours_command.replace("{port}", str(port)))
    return ServerSpec(name=OURS, command=command, port=port, ready_path=args.ours_ready_path)


def _llama(args: argparse.Namespace, port: int, *, name: str, model: str, slots: int) -> ServerSpec:
    binary = _need(args.llama_server, "--llama-server")
    command = [binary, "-m", model, "--host", "127.0.0.1", "--port", str(port)]
    command += ["-t", "2", "-tb", "2", "--no-webui", "--jinja"]
    if slots:
        command += ["-np", str(slots), "-c", str(KV_TOKENS), "-b", "2048", "-ub", "512"]
    return ServerSpec(name=name, command=command, port=port)


def _llama_q4_1(args: argparse.Namespace, port: int) -> ServerSpec:
    return _llama(args, port, name=LLAMA, model=_need(args.gguf, "--gguf"), slots=32)


def _llama_q4_0(args: argparse.Namespace, port: int) -> ServerSpec:
    model = _need(args.gguf_q4_0, "--gguf-q4-0")
    return _llama(args, port, name=LLAMA_Q4_0, model=model, slots=32)


def _llama_default(args: argparse.Namespace, port: int) -> ServerSpec:
    return _llama(args, port, name=LLAMA_DEFAULT, model=_need(args.gguf, "--gguf"), slots=0)


def _openvino(args: argparse.Namespace, port: int) -> ServerSpec:
    script = Path(__file__).parent / "peers" / "openvino_server.py"
    command = [_need(args.openvino_python, "--openvino-python"), str(script)]
    command += [_need(args.gguf, "--gguf"), "--tokenizer", args.hf_dir, "--port", str(port)]
    return ServerSpec(name=OPENVINO, command=command, port=port)


def _vllm(args: argparse.Namespace, port: int) -> ServerSpec:
    command = [_need(args.vllm, "--vllm"), "serve", args.hf_dir, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--dtype", "bfloat16", "--max-model-len", "2048"]
    command += ["--max-num-seqs", "64", "--enable-prefix-caching"]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_CPU_OMP_THREADS_BIND": "0-1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if args.vllm_preload:
        environment["LD_PRELOAD"] = args.vllm_preload
    return ServerSpec(
        name=VLLM, command=command, port=port, environment=environment, start_timeout_s=400.0
    )


BUILDERS: dict[str, Callable[[argparse.Namespace, int], ServerSpec]] = {
    OURS: _ours,
    LLAMA: _llama_q4_1,
    LLAMA_Q4_0: _llama_q4_0,
    LLAMA_DEFAULT: _llama_default,
    OPENVINO: _openvino,
    VLLM: _vllm,
}
