"""Fields that we know and do not carry out: refused, unless they ask for nothing.

A field that is accepted without effect would be a lie to the client. Listed with each are the
values that change nothing, as JSON without spaces; ``null`` is one for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.errors import InvalidRequest, UnsupportedField

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    import msgspec

MAX_FIELDS = 256

_FALSE = (b"false",)
_TRUE = (b"true",)
_EMPTY = (b"[]", b"{}", b'""')
_NO_TOOLS = (b'"none"', b'"auto"')

REFUSED: Mapping[str, tuple[bytes, ...]] = {
    "tools": _EMPTY,
    "tool_choice": _NO_TOOLS,
    "functions": _EMPTY,
    "function_call": _NO_TOOLS,
    "modalities": (b'["text"]',),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": (b'"none"',),
    "verbosity": (),
    "store": _FALSE,
    "best_of": (b"1",),
    "suffix": _EMPTY,
    "echo": _FALSE,
    "use_beam_search": _FALSE,
    "length_penalty": (b"1", b"1.0"),
    "early_stopping": _FALSE,
    "include_stop_str_in_output": _FALSE,
    "skip_special_tokens": _TRUE,
    "spaces_between_special_tokens": _TRUE,
    "truncate_prompt_tokens": (),
    "prompt_logprobs": (),
    "add_generation_prompt": _TRUE,
    "continue_final_message": _FALSE,
    "chat_template": (),
    "chat_template_kwargs": _EMPTY,
    "documents": _EMPTY,
    "grammar": _EMPTY,
    "json_schema": (),
    "regex": (),
    "ebnf": (),
    "allowed_token_ids": (),
    "bad_words": _EMPTY,
    "logits_processors": _EMPTY,
    "return_token_ids": _FALSE,
    "priority": (b"0",),
    "typical_p": (b"1", b"1.0"),
    "mirostat": (b"0",),
    "lora": _EMPTY,
}


def check_refused(fields: Mapping[str, msgspec.Raw], carried_out: Container[str]) -> None:
    """Raise UnsupportedField for what we do not carry out; ``fields`` is the body's object.

    ``carried_out``: the fields of this endpoint.
    """
    if len(fields) > MAX_FIELDS:
        raise InvalidRequest(f"the body has {len(fields)} fields; at most {MAX_FIELDS} are read")
    for name in fields.keys() & REFUSED.keys():
        if name in carried_out:
            continue
        value = b"".join(bytes(fields[name]).split())
        if value != b"null" and value not in REFUSED[name]:
            raise UnsupportedField(f"{name} is not supported by this server", param=name)
