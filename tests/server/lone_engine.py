"""An engine process on a simulated executor: ``python lone_engine.py SOCKET``. Ends with its stdin.

Says ``ready`` on stdout when it listens. A step takes its simulated time.
"""

from __future__ import annotations

import asyncio
import sys
import time

from headrace.clock import MonotonicClock
from headrace.executor.base import ExecutorSpec
from headrace.executor.simulated import SimulatedExecutor
from headrace.server.engine import serve_engine
from headrace.server.executor_thread import PacedExecutor
from headrace.server.settings import EngineProcess, EngineSettings, LogConfig, ModelFile
from headrace.server.transport.frames import ConnectionLimits

SPEC = ExecutorSpec(
    model_identity="simulated/test",
    vocab_size=1000,
    max_model_len=4096,
    block_size=16,
    num_blocks=512,
    block_bytes=0,
)
BEAT_SECONDS = 0.02


async def run(path: str) -> int:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, stop.set)
    return await serve_engine(
        EngineProcess(
            replica="r0",
            socket=path,
            cache_dir="",
            model=ModelFile(path="", name="test", simulated=True),
            engine=EngineSettings(),
            transport=ConnectionLimits(beat_seconds=BEAT_SECONDS),
            log=LogConfig(),
            drain_seconds=0,
        ),
        build=lambda: PacedExecutor(SimulatedExecutor(SPEC), speed=0.1, wait=time.sleep),
        clock=MonotonicClock(),
        report=lambda _: print("ready", flush=True),
        stop=stop,
    )


if __name__ == "__main__":
    sys.exit(asyncio.run(run(sys.argv[1])))
