"""Notes: why a step is as it is, for a journal. Decisions are data; nobody here writes logs."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from headrace.core.scheduler.step import Step
    from headrace.types import SequenceId, Tokens


class Bound(IntEnum):
    """What kept a step from being larger."""

    WORK = 0  # nothing: there was no more to do
    MEMORY = 1  # somebody did not fit into the KV cache
    TOKENS = 2  # max_num_batched_tokens
    TIME = 3  # an inter-token target
    PLACES = 4  # max_num_seqs


class StepNotes(NamedTuple):
    """``num_prefill``: tokens of chunks. ``budget``: tokens that could have been added.

    ``num_decodes`` and ``context`` are those of ``StepLoad``.
    """

    num_prefill: Tokens = 0
    num_decodes: int = 0
    context: Tokens = 0
    budget: Tokens = 0
    bound: Bound = Bound.WORK
    passed_over: tuple[SequenceId, ...] = ()  # newcomers that did not fit
    parked: tuple[SequenceId, ...] = ()  # they wait for content that others compute
    preempted: tuple[SequenceId, ...] = ()


NO_NOTES = StepNotes()


def notes_of(step: Step, *, has_places: bool) -> StepNotes:
    """Return the notes of a step that is sent off."""
    return StepNotes(
        step.num_prefill,
        step.num_decodes,
        step.context,
        step.budget,
        _bound(step, has_places=has_places),
        tuple([sequence.id for sequence in step.set_aside]),
        tuple(step.parked),
        step.preempted,
    )


def _bound(step: Step, *, has_places: bool) -> Bound:
    if step.set_aside:
        return Bound.MEMORY
    if not step.budget:
        return Bound.TOKENS
    if step.seconds <= 0:
        return Bound.TIME
    return Bound.WORK if has_places else Bound.PLACES
