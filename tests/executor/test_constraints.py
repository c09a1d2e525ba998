"""Sequences under a constraint: valid to the last token, whatever becomes of them."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.drafts import Speculation
from headrace.core.scheduler.plan import Row, SequenceStart, StepPlan
from headrace.errors import BadGrammar, MissingExtra
from headrace.executor import constraints as constraints_module
from headrace.executor.constraints import Constraints, GrammarState, Mask
from headrace.executor.sampler import Draw, Sampler
from headrace.testing.engines import simulated_engine, simulated_spec, undisturbed
from headrace.types import (
    BlockId,
    Constraint,
    ConstraintKind,
    FinishReason,
    Request,
    RequestId,
    SamplingParams,
    SequenceId,
    StepId,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.model.grammar import Grammar, GrammarCompiler
    from headrace.model.tokenizer import Tokenizer

VOCAB = 304
EOS = 2
GREEDY = SamplingParams(temperature=0)
ID = SequenceId(0)
YES = Constraint(ConstraintKind.REGEX, "yes|no")
LETTERS = Constraint(ConstraintKind.REGEX, "[a-z]*")
SCHEMA = Constraint(
    ConstraintKind.JSON_SCHEMA,
    json.dumps(
        {
            "type": "object",
            "properties": {"on": {"type": "boolean"}, "number": {"enum": [1, 22, 333]}},
            "required": ["on", "number"],
            "additionalProperties": False,
        }
    ),
)


@pytest.fixture(params=[0, 2], ids=["in the step", "beside it"])
def constraints(request: pytest.FixtureRequest, compiler: GrammarCompiler) -> Iterator[Constraints]:
    if not request.param:
        yield Constraints(compiler)
        return
    with ThreadPoolExecutor(request.param) as pool:
        yield Constraints(compiler, pool)


def start_of(
    constraint: Constraint | None,
    sequence: int = 0,
    sampling: SamplingParams = GREEDY,
    output: tuple[int, ...] = (),
    min_tokens: int = 0,
) -> SequenceStart:
    return SequenceStart(
        sequence=SequenceId(sequence),
        sampling=sampling,
        prompt=(1,),
        output=output,
        min_tokens=min_tokens,
        stop_token_ids=(EOS,),
        constraint=constraint,
    )


def rows_of(*sequences: int) -> tuple[Row, ...]:
    return tuple(Row(SequenceId(s), 0, (1,), (BlockId(0),), True) for s in sequences)


def logits(seed: int, rows: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, VOCAB)) * 2).astype(np.float32)


def say(sampler: Sampler, start: SequenceStart, limit: int = 100) -> list[int]:
    """Draw until the end; the logits depend on the position alone."""
    said: list[int] = []
    first = len(start.output)
    for at in range(first, first + limit):
        starts = (start,) if at == first else ()
        sampler.begin_step(
            StepPlan(step_id=StepId(at), rows=rows_of(start.sequence), starts=starts)
        )
        drawn = sampler.draw([Draw(start.sequence, 1 + at)], logits(at))
        assert drawn.failures == []
        (token,) = drawn.tokens
        assert token is not None
        said.append(token)
        if token == EOS:
            return said
    raise AssertionError(f"no end in {limit} tokens")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("temperature", [0, 0.7, 2])
def test_output_under_a_schema_is_valid_json(
    constraints: Constraints, tokenizer: Tokenizer, seed: int, temperature: float
) -> None:
    sampling = SamplingParams(temperature=temperature, seed=seed, repetition_penalty=1.3)
    said = say(Sampler(constraints), start_of(SCHEMA, sampling=sampling))
    value = json.loads(tokenizer.decode(said))
    assert value["on"] in (True, False)
    assert value["number"] in (1, 22, 333)


def test_a_sequence_that_goes_on_elsewhere_says_the_same(constraints: Constraints):
    sampling = SamplingParams(seed=5)
    whole = say(Sampler(constraints), start_of(SCHEMA, sampling=sampling))
    for cut in range(len(whole)):
        start = start_of(SCHEMA, sampling=sampling, output=tuple(whole[:cut]))
        assert say(Sampler(constraints), start) == whole[cut:]


def test_masks_computed_beside_the_step_are_the_same(compiler: GrammarCompiler):
    start = start_of(SCHEMA, sampling=SamplingParams(seed=9))
    with ThreadPoolExecutor(1) as pool:
        beside = say(Sampler(Constraints(compiler, pool)), start)
    assert beside == say(Sampler(Constraints(compiler)), start)


def test_a_grammar_that_is_complete_ends_before_min_tokens(constraints: Constraints):
    assert say(Sampler(constraints), start_of(YES, min_tokens=50))[-1] == EOS


def test_a_grammar_that_may_go_on_goes_on_for_min_tokens(constraints: Constraints):
    start = start_of(LETTERS, sampling=SamplingParams(logit_bias=((EOS, 100.0),)), min_tokens=7)
    assert len(say(Sampler(constraints), start)) == 8
    assert len(say(Sampler(constraints), replace(start, min_tokens=0))) == 1


def test_tokens_that_the_tokenizer_does_not_have_are_not_drawn(constraints: Constraints):
    sampler = Sampler(constraints)
    sampler.begin_step(StepPlan(step_id=StepId(0), rows=rows_of(0), starts=(start_of(LETTERS),)))
    wide = np.concatenate([logits(0), np.full((1, 40), 50, np.float32)], axis=1)
    (token,) = sampler.draw([Draw(ID, 1)], wide).tokens
    assert token is not None
    assert token < VOCAB


class Breaking:
    """Compiles grammars that break after some tokens."""

    def __init__(self, inner: GrammarCompiler, error: Exception, after: int) -> None:
        self._inner = inner
        self._error = error
        self._after = after

    def compile(self, constraint: Constraint) -> Grammar:
        if self._after == 0:
            raise self._error
        grammar = self._inner.compile(constraint)
        whole, left = grammar.forbidden, self._after

        def forbidden() -> np.ndarray:
            nonlocal left
            left -= 1
            if left < 0:
                raise self._error
            return whole()

        grammar.forbidden = forbidden  # type: ignore[method-assign]
        return grammar


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("error", [BadGrammar("too many states"), MissingExtra("too many states")])
def test_a_grammar_that_breaks_fails_its_own_sequence_alone(
    compiler: GrammarCompiler, error: Exception, after: int, beside: bool
) -> None:
    with ThreadPoolExecutor(1) as pool:
        broken = Constraints(Breaking(compiler, error, after), pool if beside else None)
        sampler = Sampler(broken)
        starts = (start_of(LETTERS, 0), start_of(None, 1), start_of(None, 2, SamplingParams()))
        for step in range(after + 2):
            sampler.begin_step(
                StepPlan(step_id=StepId(step), rows=rows_of(0, 1, 2), starts=() if step else starts)
            )
            drawn = sampler.draw([Draw(SequenceId(i), 1 + step) for i in range(3)], logits(1, 3))
            failed = step >= after
            assert drawn.failures == ([(0, "too many states")] if failed else [])
            assert [token is None for token in drawn.tokens] == [failed, False, False]


def test_a_mask_that_takes_too_long_fails_its_sequence(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constraints_module, "MASK_SECONDS", 0.01)
    release = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(release.wait)  # the thread is busy
        state = GrammarState(lambda: compiler.compile(YES), (), (EOS,), pool)
        state.prepare()
        for _ in range(2):
            with pytest.raises(BadGrammar, match=r"more than 0\.01 s"):
                state.mask()
        release.set()


def test_an_engine_without_a_compiler_fails_who_is_constrained():
    sampler = Sampler()
    sampler.begin_step(StepPlan(step_id=StepId(0), rows=rows_of(0), starts=(start_of(YES),)))
    drawn = sampler.draw([Draw(ID, 1)], logits(0))
    assert drawn.failures == [(0, "this engine cannot hold output to a grammar")]


def test_a_draft_is_held_against_the_grammar_and_taken_back(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    state = Constraints(compiler).begin(start_of(YES))
    yes, yet = tokenizer.encode("yes"), tokenizer.encode("yet")
    assert state.count_valid(yes) == len(yes)
    assert state.count_valid(yet) < len(yet)
    fork = state.fork()
    for token in yes:
        state.accept(token)
    mask = state.mask()
    assert mask is not None
    assert mask.is_complete
    state.rollback(len(yes))
    first, other = state.mask(), fork.mask()
    assert first is not None
    assert other is not None
    assert not first.is_complete
    assert np.array_equal(first.forbidden_V, other.forbidden_V)


@pytest.mark.parametrize("num_right", range(6))
def test_drafts_change_no_token_under_a_grammar(constraints: Constraints, num_right: int):
    start = start_of(SCHEMA, sampling=SamplingParams(seed=3))
    whole = say(Sampler(constraints), start)
    drafts = (*whole[:num_right], EOS, EOS)
    rows = np.concatenate([logits(at) for at in range(1 + len(drafts))])
    sampler = Sampler(constraints)
    sampler.begin_step(StepPlan(step_id=StepId(0), rows=rows_of(0), starts=(start,)))
    drawn = sampler.draw([Draw(ID, 1, drafts)], rows)
    further = dict(drawn.more).get(0, ())
    assert [*drawn.tokens, *further] == whole[: 1 + num_right]
    assert drawn.failures == []


def test_a_mask_forbids_what_it_says_and_nothing_else():
    mask = Mask(np.array([True, False, True]), is_complete=False)
    row = np.array([1, 2, 3, 4], np.float32)
    mask.apply(row)
    assert row.tolist() == [-np.inf, 2, -np.inf, -np.inf]
    short = np.array([1, 2], np.float32)
    mask.apply(short)
    assert short.tolist() == [-np.inf, 2]


def request_of(index: int, **fields: object) -> Request:
    """Return a request; odd ones are constrained."""
    request = Request(
        id=RequestId(f"r{index}"),
        prompt=(5, 6, 7, index),
        max_tokens=60,
        stop_token_ids=(EOS,),
        sampling=SamplingParams(seed=index),
        constraint=SCHEMA if index % 2 else None,
    )
    return replace(request, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("speculation", Speculation)
@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_preempted_or_with_steps_in_flight_an_engine_says_what_an_undisturbed_one_says(
    compiler: GrammarCompiler,
    tokenizer: Tokenizer,
    steps_in_flight: int,
    speculation: Speculation,
) -> None:
    constraints = Constraints(compiler)
    spec = simulated_spec(num_blocks=24, vocab_size=VOCAB)
    config = SchedulerConfig(
        max_num_seqs=8, max_steps_in_flight=steps_in_flight, speculation=speculation
    )
    engine = simulated_engine(spec, config, constraints)
    requests = [request_of(index) for index in range(8)]
    for request in requests:
        engine.submit(request)
    engine.run_until_idle()
    assert engine.reports[-1].preemptions_total > 0
    for request in requests:
        expected = undisturbed(request, spec, constraints)
        assert tuple(engine.tokens[request.id]) == expected.tokens
        assert engine.finishes[request.id] is expected.finish
        if request.constraint is not None and expected.finish is FinishReason.STOP:
            json.loads(tokenizer.decode(expected.tokens))


@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_what_a_grammar_makes_repeat_itself_comes_in_few_steps(
    compiler: GrammarCompiler, tokenizer: Tokenizer, steps_in_flight: int
):
    config = SchedulerConfig(speculation=Speculation.LOOKUP, max_steps_in_flight=steps_in_flight)
    spec = simulated_spec(vocab_size=VOCAB)
    engine = simulated_engine(spec, config, Constraints(compiler))
    many = Constraint(ConstraintKind.REGEX, "(abc){12}")
    engine.submit(request_of(1, constraint=many))
    engine.run_until_idle()
    assert engine.finishes[RequestId("r1")] is FinishReason.STOP
    assert tokenizer.decode(engine.tokens[RequestId("r1")]) == "abc" * 12
    assert len(engine.plans) < 20


def test_an_attempt_that_goes_on_elsewhere_says_the_rest(compiler: GrammarCompiler):
    constraints, spec = Constraints(compiler), simulated_spec(vocab_size=VOCAB)
    request = request_of(1)
    whole = undisturbed(request, spec, constraints).tokens
    for cut in range(1, len(whole)):
        engine = simulated_engine(spec, constraints=constraints)
        prompt = (*request.prompt, *whole[:cut])
        engine.submit(
            replace(request, prompt=prompt, num_prior=cut, max_tokens=request.max_tokens - cut)
        )
        engine.run_until_idle()
        assert tuple(engine.tokens[request.id]) == whole[cut:]


def test_a_complete_grammar_ends_a_request_before_min_tokens(compiler: GrammarCompiler):
    engine = simulated_engine(simulated_spec(vocab_size=VOCAB), constraints=Constraints(compiler))
    engine.submit(request_of(1, constraint=YES, min_tokens=50))
    engine.run_until_idle()
    assert engine.finishes[RequestId("r1")] is FinishReason.STOP
    assert len(engine.tokens[RequestId("r1")]) < 10


def test_an_engine_ends_a_request_with_a_broken_grammar_and_no_other(compiler: GrammarCompiler):
    broken = Constraints(Breaking(compiler, BadGrammar("too many states"), 3))
    engine = simulated_engine(simulated_spec(vocab_size=VOCAB), constraints=broken)
    for index in range(4):
        stops = (EOS,) if index % 2 else ()
        engine.submit(request_of(index, max_tokens=20, stop_token_ids=stops))
    engine.run_until_idle()
    for index in range(4):
        finish = engine.finishes[RequestId(f"r{index}")]
        assert (finish is FinishReason.ERROR) == bool(index % 2)
        assert len(engine.tokens[RequestId(f"r{index}")]) == (3 if index % 2 else 20)
