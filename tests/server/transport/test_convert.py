"""Values survive the way over the wire unchanged."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import messages
from headrace.errors import ProtocolError
from headrace.messages import Beat, Load, SubmitRequest, TokenFrame, Welcome
from headrace.server.links import ReplicaDescription, ReplicaProcess
from headrace.server.transport.convert import (
    beat_message,
    description_of,
    load_message,
    output_of,
    pack_keys,
    pack_tokens,
    process_of,
    report_of,
    request_of,
    row_message,
    submit_message,
    unpack_keys,
    unpack_tokens,
    welcome_message,
)
from headrace.types import (
    Constraint,
    ConstraintKind,
    EngineTiming,
    FinishReason,
    Output,
    PriorityClass,
    ReplicaId,
    ReportLoad,
    Request,
    RequestId,
    SamplingParams,
    TierFigures,
    TokenLogprobs,
)

u32 = st.integers(0, 2**32 - 1)
reals = st.floats(allow_nan=False, width=64)
sampling = st.builds(
    SamplingParams,
    temperature=st.floats(0, 2),
    top_p=st.floats(0.1, 1),
    top_k=st.integers(0, 100),
    logit_bias=st.lists(st.tuples(u32, reals), max_size=3).map(tuple),
    seed=st.integers(0, 2**64 - 1),
    choice=st.integers(0, 15),
    logprobs=st.none() | st.integers(0, 20),
)
requests = st.builds(
    Request,
    id=st.text(min_size=1, max_size=40).map(RequestId),
    prompt=st.lists(u32, max_size=50).map(tuple),
    max_tokens=st.integers(0, 2**40),
    min_tokens=st.integers(0, 100),
    stop_token_ids=st.lists(u32, max_size=3).map(tuple),
    sampling=sampling,
    chain=st.lists(st.binary(min_size=32, max_size=32), max_size=3).map(tuple),
    chain_root=st.binary(max_size=32),
    num_prior=st.integers(0, 5),
    deadline=st.none(),
    tenant=st.text(max_size=10),
    priority=st.sampled_from(PriorityClass),
    first_token_by=st.none(),
    itl=st.none() | reals,
    session=st.text(max_size=10),
    retention=st.none() | reals,
    weight=st.floats(0.01, 100),
    constraint=st.none() | st.builds(Constraint, st.sampled_from(ConstraintKind), st.text()),
)
logprobs = st.builds(
    TokenLogprobs, u32, reals, st.lists(st.tuples(u32, reals), max_size=3).map(tuple)
)
outputs = st.builds(
    Output,
    request_id=st.just(RequestId("r")),
    tokens=st.lists(u32, max_size=4).map(tuple),
    finish=st.none() | st.sampled_from(FinishReason),
    cached_tokens=st.integers(0, 1000),
    logprobs=st.lists(logprobs, max_size=2).map(tuple),
    reason=st.text(max_size=20),
    timing=st.none() | st.builds(EngineTiming, reals, reals, st.integers(0, 9), st.integers(0, 9)),
)


@given(requests)
def test_a_request_survives_the_wire(request: Request):
    payload = messages.encode(submit_message(request, stream=3, now=100.0))
    message = messages.decode_to_engine(payload)
    assert isinstance(message, SubmitRequest)
    assert message.stream == 3
    assert request_of(message, now=5.0) == request


def test_a_deadline_is_carried_as_the_time_that_is_left():
    request = Request(
        id=RequestId("r"), prompt=(1,), max_tokens=1, deadline=107.5, first_token_by=101.0
    )
    message = submit_message(request, stream=0, now=100.0)
    assert (message.time_left, message.first_token_in) == (7.5, 1.0)
    assert request_of(message, now=5.0).deadline == 12.5
    assert request_of(message, now=5.0).first_token_by == 6.0


@given(outputs)
def test_an_output_survives_the_wire(output: Output):
    frame = TokenFrame([1], [2], [row_message(output, stream=9)])
    received = messages.decode_to_gateway(messages.encode(frame))
    assert isinstance(received, TokenFrame)
    assert (received.streams, received.tokens) == ([1], [2])
    assert output_of(received.rows[0], request_id=output.request_id) == output


@given(st.lists(u32))
def test_packed_tokens_are_four_bytes_each(tokens: list[int]):
    packed = pack_tokens(tokens)
    assert len(packed) == 4 * len(tokens)
    assert unpack_tokens(packed) == tuple(tokens)


def test_packed_tokens_are_little_endian():
    assert pack_tokens([1, 0x01020304]) == bytes([1, 0, 0, 0, 4, 3, 2, 1])


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_packed_block_keys_are_eight_bytes_each(keys: list[int]):
    packed = pack_keys(keys)
    assert len(packed) == 8 * len(keys)
    assert unpack_keys(packed) == tuple(keys)


def test_half_a_token_is_a_protocol_error():
    with pytest.raises(ProtocolError, match="6 bytes"):
        unpack_tokens(bytes(6))
    with pytest.raises(ProtocolError, match="12 bytes"):
        unpack_keys(bytes(12))


def test_messages_have_the_fields_of_the_values_they_carry():
    assert Load.__struct_fields__ == tuple(f.name for f in dataclasses.fields(ReportLoad))
    assert Welcome.__struct_fields__ == tuple(
        f.name for f in dataclasses.fields(ReplicaDescription)
    )
    assert Beat.__struct_fields__ == tuple(f.name for f in dataclasses.fields(ReplicaProcess))
    carried = {f.name for f in dataclasses.fields(Request)} - {"id", "deadline", "first_token_by"}
    assert carried <= set(SubmitRequest.__struct_fields__)


def test_reports_and_descriptions_survive_the_wire():
    figures = {f.name: i for i, f in enumerate(dataclasses.fields(ReportLoad))}
    tiers = TierFigures(*range(len(TierFigures._fields)))
    report = ReportLoad(**{**figures, "tiers": tiers})
    message = messages.decode_to_gateway(messages.encode(load_message(report)))
    assert isinstance(message, Load)
    assert report_of(message) == report
    description = ReplicaDescription(
        replica=ReplicaId("r0"),
        model_identity="m",
        vocab_size=10,
        max_model_len=20,
        block_size=4,
        num_blocks=5,
        max_num_seqs=6,
        pid=7,
        max_num_batched_tokens=8,
    )
    welcome = messages.decode_to_gateway(messages.encode(welcome_message(description)))
    assert isinstance(welcome, Welcome)
    assert description_of(welcome) == description
    process = ReplicaProcess(step_seconds=0.5, resident_bytes=2, open_fds=3, cpu_seconds=4.5)
    beat = messages.decode_to_gateway(messages.encode(beat_message(process)))
    assert isinstance(beat, Beat)
    assert process_of(beat) == process


@given(st.binary(max_size=200))
def test_no_bytes_make_the_decoders_fail_otherwise_than_they_say(payload: bytes):
    for decode in (messages.decode_to_engine, messages.decode_to_gateway):
        try:
            decode(payload)
        except (msgspec.MsgspecError, RecursionError):
            continue


def test_a_step_of_64_plain_tokens_stays_small():
    frame = TokenFrame(list(range(1000, 1064)), list(range(40_000, 40_064)), [])
    assert len(messages.encode(frame)) < 520
