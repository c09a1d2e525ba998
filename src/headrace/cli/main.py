"""The command line. A sub-command's module is imported only when it is called.

Exit codes: 0 done, 1 failed, 2 wrong use (a flag, a setting, a file), 3 a server does not answer,
130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, Protocol

from headrace.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class CommandModule(Protocol):
    """What the module of a sub-command has."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its arguments."""
        ...

    def main(self, args: argparse.Namespace) -> int:
        """Run; return the exit code. StartError ends it with one line."""
        ...


@dataclass(frozen=True, slots=True)
class Command:
    """A sub-command. ``help`` is empty for those that only the supervisor calls."""

    module: str
    help: str = ""


GROUPS = {
    "serve": {
        "serve": Command("headrace.cli.serve", "serve a model over HTTP (OpenAI's API)"),
        "gateway": Command(
            "headrace.cli.gateway", "stand before OpenAI servers that run elsewhere"
        ),
        "run": Command("headrace.cli.run", "answer one prompt in the terminal"),
        "pull": Command("headrace.cli.pull", "fetch a model into the cache"),
    },
    "look after a server": {
        "ps": Command("headrace.cli.ps", "show its replicas, load and range"),
        "scale": Command("headrace.cli.scale", "set how many replicas it may have"),
        "drain": Command("headrace.cli.drain", "end a replica when its streams have ended"),
        "restart": Command("headrace.cli.restart", "start gateways or replicas anew, one by one"),
        "explain": Command("headrace.cli.explain", "show where a request's time went, and why"),
        "journal": Command("headrace.cli.journal", "show what it decided, and why"),
        "replay": Command("headrace.cli.replay", "replay an engine's journal of steps"),
        "keys": Command("headrace.cli.keys", "create, list and revoke API keys"),
    },
    "measure and plan": {
        "bench": Command("headrace.cli.bench", "load a server and report its latencies"),
        "simulate": Command("headrace.cli.simulate", "play a trace on replicas nobody owns yet"),
        "fake-replica": Command(
            "headrace.cli.fake_replica", "run an OpenAI server without a model"
        ),
        "chaos": Command("headrace.cli.chaos", "spoil connections: a TCP fault proxy"),
        "version": Command("headrace.cli.version", "print versions"),
    },
    "": {
        "child-engine": Command("headrace.cli.children.engine"),
        "child-gateway": Command("headrace.cli.children.gateway"),
        "child-console": Command("headrace.cli.children.console"),
    },
}
"""Commands by what they are for, as the help shows them; the last group is hidden."""

COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}

_EXAMPLES = """examples:
  headrace serve                                # a small model on http://127.0.0.1:8000
  headrace run smollm2-135m-instruct "Name three rivers."

Each command has its own --help."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _top_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="headrace",
        usage="headrace COMMAND ...",
        description="LLM serving: router, batch scheduler, KV cache, load balancer, monitoring.",
        epilog="\n".join((*_command_lines(), _EXAMPLES)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(
        metavar="COMMAND", dest="command", required=True, help=argparse.SUPPRESS
    )
    for name, command in COMMANDS.items():
        if command.help:
            commands.add_parser(name, add_help=False)
    return parser


def _command_lines() -> Iterator[str]:
    for title, group in GROUPS.items():
        if title:
            yield f"{title}:"
            yield from (f"  {name:<14}{command.help}" for name, command in group.items())
            yield ""


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] not in COMMANDS:
        _top_parser().parse_args(arguments)  # prints help or an error, and exits
    name, *rest = arguments
    module: CommandModule = importlib.import_module(COMMANDS[name].module)
    parser = _Parser(prog=f"headrace {name}", formatter_class=argparse.RawDescriptionHelpFormatter)
    module.add_arguments(parser)
    return module.main(parser.parse_args(rest))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except StartError as error:
        print(f"headrace: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `headrace ... | head`
        sys.stderr.close()
        return 1
