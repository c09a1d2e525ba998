"""The console's page in a headless Chromium, before a real server.

Pictures go to the directory named by SCREENSHOTS, else to the test's own.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from headrace.testing.server_process import running_server
from headrace.testing.tiny_model import write_tiny_gguf

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from headrace.testing.server_process import ServerProcess

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("screenshot", ROOT / "scripts" / "screenshot.py")
assert SPEC is not None
assert SPEC.loader is not None
screenshot = importlib.util.module_from_spec(SPEC)
sys.modules["screenshot"] = screenshot
SPEC.loader.exec_module(screenshot)

BROWSER = screenshot.find_browser()

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(300),
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine"),
]

ROWS = "document.querySelectorAll('#replica-rows .body .tr').length"
ASK = """
  document.getElementById('max-tokens').value = 40;
  document.getElementById('words').value = 'Name three rivers.';
  document.getElementById('send').click();
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("console")
    model = f"simulated:{write_tiny_gguf(directory / 'tiny.gguf')}"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")},
        "HOME": str(directory),
        "TMPDIR": str(directory),
    }
    with running_server(
        model, "--replicas", "2:3", environment=environment, console=True
    ) as running:
        yield running


def console_url(server: ServerProcess) -> str:
    match = re.search(r"^  console +(\S+)$", server.output, re.MULTILINE)
    assert match is not None, server.output
    return match[1]


@asynccontextmanager
async def opened(server: ServerProcess) -> AsyncIterator[screenshot.Page]:
    """The page, in a browser; at the end nothing was wrong and nothing left this machine."""
    url = console_url(server)
    async with screenshot.browser_page(BROWSER, url) as page:
        await page.until(f"{ROWS} == 2")
        yield page
        assert page.errors == []
        assert page.foreign_requests(url.split("/")[2]) == []


def test_state_playground_and_explanation_work_and_look_well(server: ServerProcess, tmp_path: Path):
    async def run() -> None:
        async with opened(server) as page:
            assert await page.run("location.hash") == ""
            assert await page.run("document.getElementById('health').textContent") == "healthy"
            await page.run(ASK)
            words = "document.querySelector('.bubble.assistant .text').textContent.length"
            await page.until(f"{words} > 0")
            first = await page.run(words)
            await page.until("document.querySelector('.bubble.assistant .link') != null")
            assert await page.run(words) > first  # it streamed
            under = await page.run("document.querySelector('.bubble.assistant .under').textContent")
            assert "40 tokens" in under
            assert "tokens/s" in under
            await page.until("document.querySelectorAll('#request-rows .body .tr').length == 1")
            await page.until("document.querySelectorAll('#entries li').length > 0")
            directory = Path(os.environ.get("SCREENSHOTS") or tmp_path)
            await screenshot.take_pictures(page, directory, "console")
            await page.run("document.querySelector('.bubble.assistant .link').click()")
            await page.until("document.querySelectorAll('.waterfall li').length > 3")
            assert await page.run("document.querySelectorAll('.candidates .chosen').length") == 1
            await screenshot.take_pictures(page, directory, "explain", whole=False)

    asyncio.run(run())


def test_stop_ends_an_answer_and_its_request(server: ServerProcess):
    async def run() -> None:
        async with opened(server) as page:
            await page.run(ASK.replace("= 40", "= 900"))
            await page.until("document.querySelector('.bubble.assistant .text').textContent")
            await page.run("document.getElementById('send').click()")
            await page.until(
                "document.querySelector('.bubble.assistant .under').textContent.includes('stopped')"
            )
            await page.until(
                "document.querySelector('#request-rows .c-state .pill').textContent == 'abort'"
            )

    asyncio.run(run())


def test_a_drain_is_confirmed_first_and_the_range_is_changed(server: ServerProcess):
    async def run() -> None:
        async with opened(server) as page:
            await page.run("document.querySelector('#replica-rows .c-order button').click()")
            await page.until("document.getElementById('confirm').open")
            await page.run("document.querySelector('#confirm [data-close]').click()")
            assert await page.run("document.getElementById('said').textContent") == ""
            await page.run("document.querySelectorAll('.step')[3].click()")  # ceiling, up
            await page.until("document.querySelectorAll('#range output')[1].textContent == '4'")
            await page.until("document.getElementById('said').textContent.includes('2:4')")

    asyncio.run(run())


def test_without_the_token_it_says_where_to_find_it(server: ServerProcess):
    async def run() -> None:
        url = console_url(server).partition("#")[0]
        async with screenshot.browser_page(BROWSER, url) as page:
            await page.until("!document.getElementById('locked').hidden")
            await page.run("document.getElementById('token').value = 'wrong'")
            await page.run("document.querySelector('#unlock button').click()")
            await page.until("document.getElementById('wrong').textContent.includes('headrace ps')")
            token = console_url(server)
            await page.run(f"document.getElementById('token').value = '{token}'")
            await page.run("document.querySelector('#unlock button').click()")
            await page.until(f"{ROWS} == 2")

    asyncio.run(run())


def test_a_server_that_is_gone_is_told_within_seconds(server: ServerProcess):
    """The last test of this module: it ends the server."""

    async def run() -> None:
        async with screenshot.browser_page(BROWSER, console_url(server)) as page:
            await page.until(f"{ROWS} == 2")
            await asyncio.to_thread(server.stop)
            await page.until("document.getElementById('lost').textContent.includes('trying again')")

    asyncio.run(run())
