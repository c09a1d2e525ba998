"""Tools in words, for models whose chat template knows none.

The system message gets their signatures and the form of a call, an assistant's calls become text in
that form, and what a tool answered is told by the user. The form is that of the Hermes models
(Teknium et al. 2024), which Qwen's templates have too.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.model.chat_template import Json, Message

_MANUAL = """You can call functions. These are their signatures:
<tools>
{signatures}
</tools>
To call a function, write its name and its arguments as JSON, in this form:
<tool_call>
{{"name": "NAME", "arguments": {{...}}}}
</tool_call>"""


def in_words(messages: Sequence[Message], tools: Sequence[Message]) -> list[Message]:
    """Return messages that need no more of a template than roles and contents."""
    told = [_told(message) for message in messages]
    if not tools:
        return told
    signatures = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    manual = _MANUAL.format(signatures=signatures)
    if told and told[0].get("role") == "system":
        system = {**told[0], "content": f"{told[0].get('content')}\n\n{manual}"}
        return [system, *told[1:]]
    return [{"role": "system", "content": manual}, *told]


def _told(message: Message) -> Message:
    if message.get("role") == "tool":
        return {
            "role": "user",
            "content": f"<tool_response>\n{message.get('content')}\n</tool_response>",
        }
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    text = "\n".join([str(message.get("content") or ""), *map(_written, calls)])
    return {"role": "assistant", "content": text.lstrip("\n")}


def _written(call: Json) -> str:
    function = call.get("function") if isinstance(call, dict) else None
    return f"<tool_call>\n{json.dumps(function, ensure_ascii=False)}\n</tool_call>"
