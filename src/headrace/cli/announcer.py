"""What ``headrace serve`` prints: progress on standard error, one block when all is ready."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.server.provisioner import Place
    from headrace.types import Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """What is known of the server before it is ready."""

    model: str
    url: str
    has_key: bool
    is_exposed: bool
    settings: str
    range: str = ""  # how many replicas there may be, where their number may change
    elsewhere: str = ""  # replicas that others run
    console: str = ""  # its URL, with the token

    @property
    def auth(self) -> str:
        """Who may use the server."""
        if self.has_key:
            return "API key"
        return "NONE: OPEN TO THE NETWORK" if self.is_exposed else "none, this machine only"

    @property
    def title(self) -> str:
        """What it does."""
        return "stands before other servers" if self.elsewhere else f"serves {self.model}"

    @property
    def curl(self) -> str:
        """A command to try."""
        if self.elsewhere:
            key = " -H 'Authorization: Bearer YOUR_KEY'" if self.has_key else ""
            return f"curl {self.url}/v1/models{key}"
        body = json.dumps(
            {"model": self.model, "messages": [{"role": "user", "content": "Name three rivers."}]}
        )
        key = " -H 'Authorization: Bearer YOUR_KEY'" if self.has_key else ""
        return (
            f"curl {self.url}/v1/chat/completions{key} -H 'Content-Type: application/json' "
            f"-d '{body}'"
        )


class ConsoleAnnouncer:
    """Implements Announcer on the standard streams."""

    def __init__(self, announcement: Announcement) -> None:
        self._announcement = announcement

    def progress(self, child: str, text: str) -> None:
        """See Announcer."""
        print(f"{child}: {text}", file=sys.stderr, flush=True)

    def ready(self, replicas: Sequence[Place], *, seconds: Seconds) -> None:
        """See Announcer."""
        about = self._announcement
        console = f"  console    {about.console}\n" if about.console else ""
        print(
            f"headrace {__version__} {about.title}\n"
            f"  url        {about.url}/v1\n"
            f"{console}"
            f"  replicas   {about.elsewhere or _pool(replicas, about.range)}\n"
            f"  auth       {about.auth}\n"
            f"  settings   {about.settings}\n"
            f"  ready in   {seconds:.1f} s\n"
            f"try: {about.curl}",
            flush=True,
        )

    def draining(self, *, limit: Seconds) -> None:
        """See Announcer."""
        self.trouble(f"ending: running requests have {limit:g} s; a second signal ends them")

    def trouble(self, text: str) -> None:
        """See Announcer."""
        print(f"headrace: {text}", file=sys.stderr, flush=True)


def _pool(replicas: Sequence[Place], range_text: str) -> str:
    tokens = replicas[0].kv_tokens if replicas else 0
    scaled = f" of {range_text}" if ":" in range_text else ""
    return f"{len(replicas)}{scaled}, with a KV cache of {tokens:,} tokens each"
