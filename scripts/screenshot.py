"""Opens a page in headless Chromium, tells what it did, and takes pictures of it.

Run as ``python scripts/screenshot.py URL DIRECTORY`` for pictures at two widths and in both
colour schemes. Speaks the Chrome DevTools protocol over the browser's pipe (descriptors 3 and 4,
messages end in NUL): no websocket, no port, no driver.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = (1280, 390)
COLOURS = ("light", "dark")
ANSWER_SECONDS = 20.0
_FLAGS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--force-color-profile=srgb"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
_MAX_MESSAGE_BYTES = 64 << 20

Json = dict[str, Any]


def find_browser() -> str | None:
    """Return the path of a Chromium, None without one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One open page. ``requests``, ``errors`` and ``bytes_received`` fill while it lives."""

    def __init__(self, reader: asyncio.StreamReader, write_fd: int) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.bytes_received = 0
        self._reader = reader
        self._write_fd = write_fd
        self._session = ""
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Json]] = {}

    async def listen(self) -> None:
        """Take what the browser says, until it ends."""
        while True:
            message = json.loads((await self._reader.readuntil(b"\0"))[:-1])
            waiting = self._answers.pop(message.get("id", 0), None)
            if waiting is not None:
                waiting.set_result(message)
            else:
                self._note(message.get("method", ""), message.get("params", {}))

    async def send(self, method: str, **parameters: object) -> Json:
        """Send a command and return its result. Raises RuntimeError."""
        number = next(self._numbers)
        message: Json = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._answers[number] = asyncio.get_running_loop().create_future()
        os.write(self._write_fd, json.dumps(message).encode() + b"\0")
        async with asyncio.timeout(ANSWER_SECONDS):
            answer = await self._answers[number]
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: Json = answer["result"]
        return result

    async def open(self, url: str) -> None:
        """Attach to a new tab and go to ``url``."""
        target = await self.send("Target.createTarget", url="about:blank")
        attached = await self.send(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            await self.send(f"{domain}.enable")
        await self.send("Page.navigate", url=url)

    async def look(self, *, width: int, colours: str, height: int = 900) -> None:
        """Set the window's width and the colour scheme that people prefer."""
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        await self.send(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": colours}],
        )

    async def run(self, script: str) -> Any:  # noqa: ANN401
        """Return the value of an expression in the page, which may be a promise."""
        answer = await self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    async def until(self, script: str, seconds: float = 15.0) -> None:
        """Wait until an expression is true; one that throws is not yet. Raises TimeoutError."""
        safely = f"(() => {{ try {{ return Boolean({script}); }} catch {{ return false; }} }})()"
        try:
            async with asyncio.timeout(seconds):
                while not await self.run(safely):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise TimeoutError(f"not within {seconds:g} s: {script}") from None

    async def picture(self, path: Path, *, whole: bool = True) -> Path:
        """Write a PNG of the page, or of what a window shows of it."""
        shot = await self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        return _write(path, base64.b64decode(shot["data"]))

    def foreign_requests(self, *allowed: str) -> list[str]:
        """Return the requests to hosts other than ``allowed`` (host:port)."""
        return [
            url
            for url in self.requests
            if urlsplit(url).scheme not in ("data", "blob", "about")
            and urlsplit(url).netloc not in allowed
        ]

    def _note(self, method: str, parameters: Json) -> None:
        match method:
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Network.dataReceived":
                self.bytes_received += parameters["encodedDataLength"]
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(parameters["exceptionDetails"])[:500])
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning"):
                self.errors.append(json.dumps(parameters["args"])[:500])
            case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                self.errors.append(json.dumps(parameters["entry"])[:500])


@asynccontextmanager
async def browser_page(browser: str, url: str) -> AsyncIterator[Page]:
    """Open ``url`` in a browser of its own, which is gone afterwards."""
    to_browser, from_us = os.pipe()
    to_us, from_browser = os.pipe()
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        script = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        process = subprocess.Popen(  # noqa: ASYNC220 (a fork and exec, no wait)
            ("bash", "-c", script, "-", browser, *_FLAGS, f"--user-data-dir={profile}"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(to_browser, from_browser),
            env={**os.environ, "HOME": profile},
        )
        os.close(to_browser)
        os.close(from_browser)
        reader = asyncio.StreamReader(limit=_MAX_MESSAGE_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(to_us, "rb")
        )
        page = Page(reader, from_us)
        listening = asyncio.create_task(page.listen())
        try:
            await page.open(url)
            yield page
        finally:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError, asyncio.IncompleteReadError):
                await listening
            transport.close()
            os.close(from_us)
            process.kill()
            process.wait()


async def take_pictures(
    page: Page, directory: Path, name: str, *, whole: bool = True
) -> list[Path]:
    """Write a PNG for each width and colour scheme."""
    paths = []
    for width in WIDTHS:
        for colours in COLOURS:
            await page.look(width=width, colours=colours)
            await asyncio.sleep(0.7)  # for one more state to be drawn at this width
            picture = page.picture(directory / f"{name}-{width}-{colours}.png", whole=whole)
            paths.append(await picture)
    return paths


def _write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


async def _main(url: str, directory: str) -> int:
    browser = find_browser()
    if browser is None:
        print(f"no browser found; install one of {', '.join(NAMES)}", file=sys.stderr)
        return 1
    async with browser_page(browser, url) as page:
        await asyncio.sleep(3)
        for path in await take_pictures(page, Path(directory), "page"):
            print(path)
        print("\n".join(page.errors))
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python scripts/screenshot.py URL DIRECTORY")
    sys.exit(asyncio.run(_main(sys.argv[1], sys.argv[2])))
