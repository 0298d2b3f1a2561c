"""Draws the pictures of the page that the documents show: cria on this machine, asked a few things.

    python -m tests.serve.screenshots docs/page

Needs a Chromium; letters look as the machine's fonts do.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

import puna
from tests.serve import chromium
from tests.serve.conftest import Running

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "examples" / "pictures"
WEATHER = {
    "type": "object",
    "properties": {"place": {"enum": ["Cusco", "La Paz", "Puno"]}, "days": {"type": "integer", "maximum": 9}},
    "required": ["place", "days"],
}


def main(folder: Path) -> None:
    """Writes all pictures into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    server = Running(puna.load("cria"), model="cria")
    try:
        with tempfile.TemporaryDirectory() as scratch, chromium.browser(Path(scratch) / "profile") as browser:
            four = four_pictures(Path(scratch) / "four.png")
            with opened(browser, server, "light") as page:
                save(page, folder / "welcome.png")
            with opened(browser, server, "light") as page:
                fill(page, temperature=0.6, seed=2, max_tokens=90)
                ask(page, "Tell me a story.")
                page.click("#tab-routing")
                page.click("[aria-label='Token probabilities']")
                page.point(".token:nth-child(7)")
                save(page, folder / "tokens.png")
            with opened(browser, server, "dark") as page:
                fill(page, temperature=0, max_tokens=60)
                ask(page, "Which bar is the highest?", PICTURES / "chart.png")
                ask(page, "What is this?", four)
                page.click("#tab-routing")
                page.click("#routing-scope label:nth-of-type(2)")
                page.click("#with-prompt")
                page.point(".heat", right=0.5, down=0.5)
                save(page, folder / "pictures.png")
            with opened(browser, server, "light") as page:
                tool = {"name": "weather", "description": "The weather at a place.", "parameters": WEATHER}
                fill(page, tools=json.dumps([{"type": "function", "function": tool}], indent=1), tool_choice="required")
                fill(page, temperature=0, max_tokens=60)
                page.run("document.querySelector('[name=parallel]').click()")
                ask(page, "What will the weather be?")
                page.run("document.querySelector('#tools').scrollIntoView({ block: 'center' }); return null")
                save(page, folder / "tools.png")
            with opened(browser, server, "dark") as page:
                fill(page, seed=2, max_tokens=400)
                page.click("#tab-live")
                with others_asking(server, 2000):
                    for _ in range(3):
                        ask(page, "Tell me a long story.")
                        time.sleep(6)
                    page.screenshot(folder / "server.png")
            with opened(browser, server, "light", width=390, height=760) as page:
                fill(page, temperature=0, max_tokens=60)
                ask(page, "Which bar is the highest?", PICTURES / "chart.png")
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


def fill(page: chromium.Page, **values: object) -> None:
    """Fills in settings."""
    page.run(
        "for (const [name, value] of Object.entries(values)) {"
        "const field = document.querySelector(`[name=${name}]`); field.value = value;"
        "field.dispatchEvent(new Event('input', { bubbles: true })) } return null",
        values=values,
    )


def ask(page: chromium.Page, text: str, *pictures: Path) -> None:
    """Asks and waits for the answer."""
    n = page.run("document.querySelectorAll('.assistant').length")
    if pictures:
        page.drop("main", *pictures)
        page.wait("document.querySelector('#chosen li')")
    page.run("document.querySelector('#ask').focus()")
    page.type(text)
    page.press("Enter")
    page.wait("document.querySelectorAll('.assistant:not(.growing)').length > n", n=n)


@contextmanager
def others_asking(server: Running, n: int) -> Iterator[None]:
    """Has other clients ask for stories, a few at a time, so that there is something to see."""
    body = {"model": "cria", "messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 700}
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(server.post, "/v1/chat/completions", body | {"seed": seed}) for seed in range(n)]
        yield
        for each in asked:
            each.cancel()


def four_pictures(path: Path) -> Path:
    """Writes four of the example pictures as one, which takes more than one tile."""
    names = ("cat", "car", "shapes", "page")
    together = Image.new("RGB", (192, 192), "white")
    for i, name in enumerate(names):
        with Image.open(PICTURES / f"{name}.png") as part:
            together.paste(part.convert("RGB").resize((96, 96)), (96 * (i % 2), 96 * (i // 2)))
    together.save(path)
    return path


def save(page: chromium.Page, path: Path) -> None:
    """Writes the page as a small PNG."""
    time.sleep(1.5)  # until the server's numbers have come
    page.screenshot(path)
    with Image.open(path) as drawn:
        drawn.convert("RGB").save(path, optimize=True)
    assert not page.errors, page.errors


if __name__ == "__main__":
    main(Path(sys.argv[1]))
