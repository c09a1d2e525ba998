"""What kinds of servers there are, how they are known, and what each can do.

A server is known by ``owned_by`` in its list of models, unless its operator says what it is. What
they do was tried on vLLM 0.32 and llama.cpp b11549, and read in SGLang's documentation.
"""

from __future__ import annotations

from enum import StrEnum


class Server(StrEnum):
    """Whose server it is."""

    VLLM = "vllm"
    SGLANG = "sglang"
    LLAMA_CPP = "llamacpp"
    TGI = "tgi"
    HEADRACE = "headrace"
    OTHER = "other"

    @property
    def continues_chats(self) -> bool:
        """Whether ``continue_final_message`` makes it go on with an assistant's message."""
        return self in (Server.VLLM, Server.SGLANG, Server.LLAMA_CPP)

    @property
    def may_echo(self) -> bool:
        """Whether some builds of it say the message again, in one piece, before they go on."""
        return self is Server.LLAMA_CPP

    @property
    def tells_token_ids(self) -> bool:
        """Whether ``return_token_ids`` adds ids to a stream, and prompts may be given as ids."""
        return self is Server.VLLM


def known_server(owner: str) -> Server:
    """Return the server whose list of models says ``owned_by: owner``."""
    try:
        return Server(owner.lower())
    except ValueError:
        return Server.OTHER
