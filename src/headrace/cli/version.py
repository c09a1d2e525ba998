"""``headrace version``."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from typing import TYPE_CHECKING

from headrace import __version__
from headrace.build import is_compiled

if TYPE_CHECKING:
    import argparse

PARTS = ("openvino", "tokenizers", "numpy", "msgspec", "httptools", "uvloop", "gguf")
"""Distributions whose versions matter in a report of a fault."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``headrace version``."""
    parser.description = "Print the versions of headrace and of what it stands on."
    parser.epilog = "examples:\n  headrace version\n  headrace version --json"
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def versions() -> dict[str, str | None]:
    """Return every version; None for what is not installed."""
    found: dict[str, str | None] = {
        "headrace": f"{__version__} (compiled)" if is_compiled() else __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for name in PARTS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def main(args: argparse.Namespace) -> int:
    """Print them."""
    found = versions()
    if args.json:
        print(json.dumps(found))
    else:
        for name, version in found.items():
            print(f"{name:<12}{version or '-'}")
    return 0
