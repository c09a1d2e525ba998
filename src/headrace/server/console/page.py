"""The page's files, read once: whatever is in the directory ``page`` is public, nothing else is."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from headrace.server.gateway.http.messages import Response

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.resources.abc import Traversable

_TYPES = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}


def load_page() -> dict[str, Response]:
    """Return every file of the page by its URL path; ``/`` is index.html."""
    page = dict(_below(files(__package__) / "page", "/"))
    page["/"] = page["/index.html"]
    return page


def _below(directory: Traversable, path: str) -> Iterator[tuple[str, Response]]:
    for entry in directory.iterdir():
        if entry.is_dir():
            yield from _below(entry, f"{path}{entry.name}/")
            continue
        content_type = _TYPES.get(entry.name.rpartition(".")[2])
        if content_type is not None:
            yield path + entry.name, Response(200, entry.read_bytes(), content_type)
