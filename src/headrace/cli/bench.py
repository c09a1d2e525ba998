"""``headrace bench``: the bench command, with defaults from the environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.bench import command
from headrace.config import read_environment

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``headrace bench``."""
    environment = read_environment()
    defaults = command.Defaults(
        base_url=environment.text("OPENAI_BASE_URL"), api_key=environment.text("OPENAI_API_KEY")
    )
    command.add_arguments(parser, defaults)


def main(args: argparse.Namespace) -> int:
    """Run the benchmark."""
    return command.main(args)
