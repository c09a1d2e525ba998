"""Servers in processes of their own, with a tiny model's words; most with a simulated executor."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from headrace.testing.server_process import running_server
from headrace.testing.tiny_model import write_tiny_gguf

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from headrace.testing.server_process import ServerProcess


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The tests' own, with the user's settings and caches out of the way."""
    home = tmp_path_factory.mktemp("home")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HEADRACE_", "XDG_RUNTIME"))
    }
    own = {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "HEADRACE_ENGINE_REPORT_SECONDS": "0.02",
        "HEADRACE_SERVER_RESTART_MIN_SECONDS": "0.05",
        "TMPDIR": str(home),  # for what a killed supervisor leaves behind
    }
    return {**kept, **own}


@pytest.fixture(scope="session")
def simulated(tiny_gguf: Path) -> str:
    """The name of a model whose steps take about 10 ms and whose text is noise."""
    return f"simulated:{tiny_gguf}"


@pytest.fixture(scope="session")
def server(simulated: str, environment: Mapping[str, str]) -> Iterator[ServerProcess]:
    """A server for tests that leave it as they found it. They are one group for xdist."""
    with running_server(simulated, environment=environment) as running:
        yield running
