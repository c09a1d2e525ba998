"""A user's text never becomes a control token, and never changes."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from headrace.model.control_tokens import ControlTokens, escape

IDS = {"<|im_end|>": 0, "<|im_start|>": 1, "<s>": 2, "</s>": 3, "ab": 4, "bc": 5, "abcd": 6}
CONTROL = ControlTokens(IDS)
TEXT = st.text("ab<s>cd/|_im\n\ufdd0", max_size=30) | st.lists(
    st.sampled_from([*IDS, "<", "\ufdd0"])
).map("".join)


def split(text: str) -> list[str | int]:
    return [part for part in CONTROL.split(text) if part != ""]


@given(text=TEXT)
@example(text="abcd")
@example(text="abc")
@example(text="<|im_<|im_end|>end|>")
@example(text="\ufdd0<s>\ufdd0")
def test_shielded_text_is_split_into_nothing_but_itself(text: str):
    assert split(CONTROL.shield(text)) == ([text] if text else [])


@given(parts=st.lists(st.tuples(st.sampled_from([*IDS]), TEXT)))
def test_only_the_templates_own_control_tokens_are_found(parts: list[tuple[str, str]]):
    rendered = "".join(f"\n{name}\n{CONTROL.shield(text)}" for name, text in parts)
    found = [part for part in CONTROL.split(rendered) if not isinstance(part, str)]
    assert found == [IDS[name] for name, _ in parts]


@given(text=TEXT)
def test_escaped_text_keeps_its_control_tokens(text: str):
    names = {token: name for name, token in IDS.items()}
    parts = [part if isinstance(part, str) else names[part] for part in split(escape(text))]
    assert "".join(parts) == text


def test_the_longest_name_that_fits_is_found():
    assert split("xabcd<s>ab") == ["x", 6, 2, 4]


def test_a_model_without_control_tokens_splits_nothing():
    assert [*ControlTokens({}).split("<s>")] == ["<s>"]
    assert ControlTokens({}).shield("<s>") == "<s>"
