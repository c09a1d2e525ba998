"""``headrace child-engine``: one replica, started by the supervisor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headrace.cli.executors import executor_builder
from headrace.clock import MonotonicClock
from headrace.monitoring.logging import configure_logging
from headrace.server.child import Progress, run_child
from headrace.server.engine import serve_engine
from headrace.server.settings import EngineProcess

if TYPE_CHECKING:
    import argparse
    import asyncio

    from headrace.server.child import Parent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments: the settings come from the supervisor."""
    parser.description = "One replica. Started by `headrace serve`, not by hand."


def main(args: argparse.Namespace) -> int:
    """Run the process."""
    return run_child(EngineProcess, _serve)


async def _serve(process: EngineProcess, parent: Parent, stop: asyncio.Event) -> int:
    configure_logging(process=process.replica, format=process.log.format, level=process.log.level)
    build = executor_builder(
        process.model,
        process.engine,
        cache_dir=Path(process.cache_dir),
        progress=lambda text: parent.report(Progress(text)),
    )
    return await serve_engine(
        process, build=build, clock=MonotonicClock(), report=parent.report, stop=stop
    )
