"""One replica: an EngineCore on the event loop, its Executor in a thread, gateways on a socket.

    gateway --Submit, Abort-->    EngineListener --> AsyncioDriver --Execute--> ExecutorThread
            <--TokenFrame, Load,                 <--   (EngineCore)  <--StepDone--
               KvChange, Beat--

Ends when it is told to (drained), when its supervisor is gone, or with exit code 1 when steps fail
again and again or hang: whoever started it starts a fresh one.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from headrace.clock import wall_time
from headrace.core.kvcache.eviction.config import EvictionConfig
from headrace.core.kvcache.transfers import Tier
from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.engine_core import build_engine_core
from headrace.core.scheduler.events import (
    Emit,
    Execute,
    Incident,
    KvChanged,
    KvSnapshot,
    Reject,
    ReportLoad,
    StepDone,
    StepFailed,
    Transfer,
)
from headrace.machine import Source
from headrace.monitoring.logging import event as log_event
from headrace.monitoring.step_journal import NoStepJournal, StepJournal
from headrace.server.block_moves import BlockMoves, lending_path, start_block_moves
from headrace.server.child import Ready
from headrace.server.driver import AsyncioDriver
from headrace.server.executor_thread import ExecutorThread
from headrace.server.incidents import Incidents, Recorded
from headrace.server.kv_tiers.build import block_seconds, tier_config
from headrace.server.links import ReplicaDescription
from headrace.server.transport.listener import EngineListener
from headrace.server.vitals import vitals
from headrace.types import ReplicaId

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.clock import Clock
    from headrace.core.scheduler.engine_core import EngineCore
    from headrace.core.scheduler.events import EngineEffect, EngineEvent
    from headrace.executor.base import Executor, ExecutorSpec
    from headrace.server.settings import EngineProcess, EngineSettings
    from headrace.types import Seconds

WATCH_SECONDS = 1.0
"""How often the engine looks whether its step still moves."""

SETTLE_SECONDS = 10.0
"""For saves of an engine that ends, if the drain took less time than it may."""

_log = logging.getLogger(__name__)


class Engine:
    """A replica. When it cannot go on it sets ``stop``, and fails when it is stopped."""

    def __init__(self, *, settings: EngineSettings, clock: Clock, stop: asyncio.Event) -> None:
        self._settings = settings
        self._clock = clock
        self._execution = ExecutorThread(finished=self._step_finished, clock=clock)
        self._driver: AsyncioDriver[EngineEvent, EngineEffect] | None = None
        self._incidents: Incidents | None = None
        self._listener: EngineListener | None = None
        self._moves = BlockMoves()
        self._num_faults = 0  # in a row
        self._stop = stop
        self._failure: str | None = None

    async def start(self, process: EngineProcess, build: Callable[[], Executor]) -> ExecutorSpec:
        """Build the executor, then listen: whoever can connect finds the engine ready."""
        spec = await self._execution.start(build)
        tiers = tier_config(self._settings, spec)
        core = build_engine_core(spec, scheduler_config(self._settings), tiers)
        journal = step_journal(core, self._settings.journal_bytes)
        directory = Path(process.cache_dir or Path(process.socket).parent) / "incidents"
        self._incidents = Incidents(journal, directory, process.replica, self._clock)
        self._driver = AsyncioDriver(
            Recorded(core, journal),
            perform=self._perform,
            clock=self._clock,
            loop=asyncio.get_running_loop(),
            on_fault=self._machine_died,
        )
        self._listener = EngineListener(
            description=_description(process, spec),
            deliver=self._driver.feed,
            clock=self._clock,
            limits=process.transport,
        )
        self._moves = start_block_moves(
            process,
            self._execution.executor,
            holdings=core.scheduler.kv.survey,
            clock=self._clock,
            tell=partial(self._driver.feed, source=Source.DEVICE),
        )
        await self._listener.start(Path(process.socket))
        return spec

    async def stop(self, *, drain_seconds: float) -> int:
        """Let running requests finish for so long, then end; return the exit code."""
        if self._listener is not None:
            if self._failure is None:
                until = self._clock.now() + drain_seconds
                await self._drain(self._listener, drain_seconds)
                await self._settle(min(until - self._clock.now(), SETTLE_SECONDS))
            self._listener.close(self._failure or "the replica is shutting down")
        if self._driver is not None:
            self._driver.close()
        await self._moves.stop()
        await self._execution.stop()
        if self._failure is None:
            return 0
        _log.critical("the engine ends: %s", self._failure)
        return 1

    async def _drain(self, listener: EngineListener, drain_seconds: float) -> None:
        try:
            async with asyncio.timeout(drain_seconds):
                await listener.drain()
        except TimeoutError:
            _log.warning("%d requests did not finish in time", listener.num_requests)

    async def _settle(self, seconds: Seconds) -> None:
        """Let what is worth keeping reach the disk, for so long."""
        if self._settings.disk_cache_dir:
            await self._moves.settle(seconds)

    async def watch(self) -> None:
        """Break off when a step takes far too long: a device that hangs tells nobody."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if self._execution.busy_seconds() > self._settings.step_seconds:
                self._break(f"a step takes more than {self._settings.step_seconds:g} s")

    async def beat(self, period: Seconds) -> None:
        """Tell gateways at fixed intervals that this process lives, and how long its step takes."""
        assert self._listener is not None
        while True:
            self._listener.gateways.send_beat(vitals(step_seconds=self._execution.busy_seconds()))
            await asyncio.sleep(period)

    def _perform(self, effect: EngineEffect) -> None:
        assert self._listener is not None
        match effect:
            case Execute(plan):
                self._execution.submit(plan)
            case Emit(outputs):
                self._listener.send_outputs(outputs)
            case Reject():
                self._listener.send_rejection(effect)
            case ReportLoad():
                self._listener.gateways.send_load(effect)
            case KvChanged():
                self._listener.gateways.send_change(effect)
            case Incident():
                self._report_incident(effect)
            case KvSnapshot():
                self._listener.gateways.send_content(effect)
            case Transfer():
                self._moves.submit(effect)
            case _:
                assert_never(effect)

    def write_journal(self, reason: str) -> None:
        """Write the journal of steps into a file, if the engine has started."""
        if self._incidents is not None:
            self._incidents.write(reason)

    def _report_incident(self, incident: Incident) -> None:
        assert self._incidents is not None
        self._incidents.happened(f"{incident.kind.value}: {incident.reason}")
        log_event(
            _log,
            logging.ERROR,
            "the engine gave something up to go on",
            kind=incident.kind.value,
            reason=incident.reason,
            request=incident.request_id,
        )

    def _step_finished(self, outcome: StepDone | StepFailed) -> None:
        """Tell the core, and count faults in a row."""
        assert self._driver is not None
        self._driver.feed(outcome, Source.DEVICE)
        self._num_faults = 0 if isinstance(outcome, StepDone) else self._num_faults + 1
        if self._num_faults >= self._settings.max_faults:
            # After the driver's turn, so that the requests hear of their failure first.
            asyncio.get_running_loop().call_soon(
                self._break, f"{self._num_faults} steps in a row failed"
            )

    def _machine_died(self, error: Exception) -> None:
        _log.critical("the engine core died", exc_info=error)
        self._break(f"the engine core died: {error}")

    def _break(self, reason: str) -> None:
        if self._failure is None:
            self._failure = reason
            self.write_journal(reason)
        self._stop.set()


def step_journal(core: EngineCore, max_bytes: int) -> StepJournal | NoStepJournal:
    """Return what keeps a core's steps in so many bytes."""
    return StepJournal(core, max_bytes=max_bytes) if max_bytes else NoStepJournal()


def scheduler_config(settings: EngineSettings) -> SchedulerConfig:
    """Return what the Batch Scheduler is told of the settings."""
    return SchedulerConfig(
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_num_waiting=settings.max_waiting,
        max_steps_in_flight=settings.steps_in_flight,
        speculation=settings.speculation,
        max_drafts=settings.max_drafts,
        report_period=settings.report_seconds,
        itl=settings.itl_ms / 1000 or None,
        batch_itl=settings.batch_itl_ms / 1000 or None,
        order=settings.order,
        fair=settings.fair,
        preemption=settings.preemption,
        refuse_late=settings.refuse_late,
        share_waiting=settings.share_waiting,
        share_partial=settings.share_partial,
        eviction=EvictionConfig(
            order=settings.eviction,
            pinned_share=settings.pinned_share,
            tenant_share=settings.tenant_share,
        ),
        slice_blocks=settings.slice_blocks,
        audit_steps=settings.audit_steps,
        shed_stalled=settings.shed_stalled,
        max_setbacks=settings.max_setbacks,
    )


def _description(process: EngineProcess, spec: ExecutorSpec) -> ReplicaDescription:
    return ReplicaDescription(
        replica=ReplicaId(process.replica),
        model_identity=spec.model_identity,
        vocab_size=spec.vocab_size,
        max_model_len=spec.max_model_len,
        block_size=spec.block_size,
        num_blocks=spec.num_blocks,
        max_num_seqs=process.engine.max_num_seqs,
        max_num_batched_tokens=process.engine.max_num_batched_tokens,
        pid=os.getpid(),
        epoch=int(1e6 * wall_time()),
        role=process.role,
        lends_at=str(lending_path(process) or ""),
        peer_block_seconds=block_seconds(Tier.PEER, spec),
    )


async def serve_engine(
    process: EngineProcess,
    *,
    build: Callable[[], Executor],
    clock: Clock,
    report: Callable[[Ready], None],
    stop: asyncio.Event,
) -> int:
    """Run an engine until ``stop``; return the exit code. ``build`` is called in its thread."""
    scheduler_config(process.engine)  # a wrong setting is told before minutes of loading
    engine = Engine(settings=process.engine, clock=clock, stop=stop)
    starting = asyncio.create_task(engine.start(process, build))
    stopping = asyncio.create_task(_set(stop))
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():  # told to end while the model loads
        starting.cancel()
        return await engine.stop(drain_seconds=0)
    spec = starting.result()
    gc.collect()
    gc.freeze()  # what is here now stays: collections need not look at it again
    report(Ready(model=spec.model_identity, kv_tokens=spec.num_blocks * spec.block_size))
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, engine.write_journal, "somebody asked for it")
    watching = asyncio.create_task(engine.watch())
    beating = asyncio.create_task(engine.beat(process.transport.beat_seconds))
    await stopping
    watching.cancel()
    try:
        return await engine.stop(drain_seconds=process.drain_seconds)
    finally:
        beating.cancel()  # not before: an engine that drains is alive
        loop.remove_signal_handler(signal.SIGUSR1)


async def _set(event: asyncio.Event) -> None:
    await event.wait()
