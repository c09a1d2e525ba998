"""Fields set in the text of a JSON object; the rest stays as it was, to the byte."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidRequest
from headrace.server.gateway.foreign.editing import append_item, set_fields

MODEL = {"model": b'"z"'}


@pytest.mark.parametrize(
    ("body", "edited"),
    [
        (b'{"model":"a"}', b'{"model":"z"}'),
        (
            b' { "x" : 1.50 , "model" :\t"a" , "y":[1, 2] } ',
            b' { "x" : 1.50 , "model" :\t"z" , "y":[1, 2] } ',
        ),
        (
            b'{"model":"a","n":{"model":"b"},"model":"c"}',
            b'{"model":"z","n":{"model":"b"},"model":"z"}',
        ),
        (b'{"mod\\u0065l":"a"}', b'{"mod\\u0065l":"z"}'),
        (b'{"x":"\xff\xfe","model":"a"}', b'{"x":"\xff\xfe","model":"z"}'),
        (b'{"x":"\\"model\\":1","model":{"a":[]}}', b'{"x":"\\"model\\":1","model":"z"}'),
        (b"{}", b'{"model":"z"}'),
        (b'{"x":1 }', b'{"x":1,"model":"z" }'),
        (b'{"x":' + b"9" * 6000 + b"}", b'{"x":' + b"9" * 6000 + b',"model":"z"}'),
        ('{"x":"ü🙂","model":""}'.encode(), '{"x":"ü🙂","model":"z"}'.encode()),
    ],
)
def test_a_field_is_set_and_nothing_else(body: bytes, edited: bytes) -> None:
    assert set_fields(body, MODEL) == edited


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"a"', b'{"a":1', b'{"a":1]', b"{1:2}", b'{"a" 1}']
)
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="malformed JSON"):
        set_fields(body, MODEL)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        set_fields(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", MODEL)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(
    st.sampled_from(["model", "a", "b", "ü", 'q"']) | st.text(), VALUES, max_size=5
)


@given(OBJECTS, OBJECTS, st.booleans())
def test_it_is_as_if_the_object_had_been_decoded_and_changed(
    before: dict[str, object], changes: dict[str, object], compact: bool
) -> None:
    text = json.dumps(before, separators=(",", ":") if compact else None, ensure_ascii=compact)
    fields = {name: json.dumps(value).encode() for name, value in changes.items()}
    after = json.loads(
        set_fields(text.encode(errors="surrogatepass"), fields).decode(errors="surrogatepass")
    )
    assert json.dumps(after) == json.dumps({**before, **changes})


def test_items_are_appended() -> None:
    assert append_item(b"[]", b"1") == append_item(b"[ ] ", b"1") == b"[1]"
    assert append_item(b'[{"a":[]} ]', b"1") == b'[{"a":[]},1]'
