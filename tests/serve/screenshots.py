"""Draws the pictures of the page that the documents show: cria on this machine, asked a few things.

    python -m tests.serve.screenshots docs/page

Needs a Chromium; letters look as the machine's fonts do.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

import puna
from tests.serve import chromium
from tests.serve.conftest import Running

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "examples" / "pictures"


def main(folder: Path) -> None:
    """Writes all pictures into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    server = Running(puna.load("cria"), model="cria")
    try:
        with tempfile.TemporaryDirectory() as profile, chromium.browser(Path(profile)) as browser:
            with opened(browser, server, "light") as page:
                save(page, folder / "welcome.png")
            with opened(browser, server, "light") as page:
                talk(page)
                page.click("#tab-routing")
                show_tokens(page)
                save(page, folder / "conversation-light.png")
            with opened(browser, server, "dark") as page:
                talk(page)
                page.click("#tab-routing")
                page.click("#routing-scope label:nth-of-type(2)")
                show_tokens(page)
                page.point(".heat", right=0.5, down=0.5)
                save(page, folder / "conversation-dark.png")
            with opened(browser, server, "dark") as page:
                page.click("#tab-live")
                time.sleep(3)
                for _ in range(4):
                    ask(page, "Tell me a long story.")
                time.sleep(2)
                save(page, folder / "server-dark.png")
            with opened(browser, server, "light", width=390, height=800) as page:
                talk(page)
                save(page, folder / "narrow.png")
    finally:
        server.server.drain()
        server.stop()


@contextmanager
def opened(
    browser: chromium.Browser, server: Running, scheme: str, *, width: int = 1280, height: int = 860
) -> Iterator[chromium.Page]:
    """Gives a page that is ready."""
    page = browser.open(server.url + "/", width=width, height=height, features=[("prefers-color-scheme", scheme)])
    page.wait("'ready' in document.body.dataset")
    yield page
    page.close()


def talk(page: chromium.Page) -> None:
    """Asks about a picture, then for a story."""
    page.run(
        "for (const [name, value] of [['temperature', 0.6], ['seed', 4], ['max_tokens', 80]]) {"
        "const field = document.querySelector(`[name=${name}]`); field.value = value;"
        "field.dispatchEvent(new Event('input', { bubbles: true })) } return null"
    )
    page.drop("main", PICTURES / "shapes.png")
    page.wait("document.querySelector('#chosen li')")
    ask(page, "How many shapes are there?")
    ask(page, "Tell me a story about a dog and the moon.")


def ask(page: chromium.Page, text: str) -> None:
    """Asks and waits for the answer."""
    n = page.run("document.querySelectorAll('.assistant').length")
    page.run("document.querySelector('#ask').focus()")
    page.type(text)
    page.press("Enter")
    page.wait("document.querySelectorAll('.assistant:not(.growing)').length > n", n=n)


def show_tokens(page: chromium.Page) -> None:
    """Shows the last answer token by token, one of them in full."""
    page.run("[...document.querySelectorAll('[aria-label=\"Token probabilities\"]')].at(-1).click()")
    page.point(".token:nth-child(6)")


def save(page: chromium.Page, path: Path) -> None:
    """Writes the page as a small PNG."""
    time.sleep(1.5)  # until the server's numbers have come
    page.screenshot(path)
    with Image.open(path) as drawn:
        drawn.convert("RGB").save(path, optimize=True)
    assert not page.errors, page.errors


if __name__ == "__main__":
    main(Path(sys.argv[1]))
