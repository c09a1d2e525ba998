"""Load generator: open- and closed-loop load against any OpenAI-compatible endpoint.

A shell, and a library: `client` sends one request and times every token, `runner` sends many,
`stats` reduces them, `report` shows them. It knows nothing of our own server. It runs beside
the server it measures, so it is built to need little processor time: one asyncio loop,
httptools, no HTTP client library.
"""

from __future__ import annotations
