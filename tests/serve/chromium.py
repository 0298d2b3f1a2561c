"""A headless Chromium, driven over its own protocol through a pipe: no driver, no package, nothing fetched.

`Page.run` evaluates JavaScript and returns its value; `errors` collects whatever the console, the content policy or an
exception complained of. Debian calls the program `chromium`.

Source: Chrome DevTools Protocol (domains Page, Runtime, Log, Input, Emulation); `--remote-debugging-pipe` reads
messages that end with a zero byte from file descriptor 3 and writes to 4.
"""

import base64
import contextlib
import json
import os
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_SECONDS = 120  # for anything that must happen; what takes longer is a fault

_T = TypeVar("_T")
_OPTIONS = (
    "--headless",
    "--no-sandbox",  # tests may run as root
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-renderer-backgrounding",  # several pages, each in use
    "--disable-backgrounding-occluded-windows",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
)


def program() -> str | None:
    """Returns the path of a Chromium, None where there is none."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


@contextlib.contextmanager
def browser(profile: Path) -> Iterator["Browser"]:
    """Starts a Chromium whose files live in `profile`."""
    path = program()
    assert path is not None, "check `program` first"
    read_commands, write_commands = os.pipe()
    read_answers, write_answers = os.pipe()
    joined = f'exec "$@" 3<&{read_commands} 4>&{write_answers}'  # dash knows one digit only
    command = ["bash", "-c", joined, "chromium", path, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        command,
        pass_fds=(read_commands, write_answers),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_commands)
    os.close(write_answers)
    with os.fdopen(write_commands, "wb") as commands, os.fdopen(read_answers, "rb") as answers:
        running = Browser(commands, answers)
        try:
            yield running
        finally:
            with contextlib.suppress(OSError, AssertionError):
                running.call("Browser.close")
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Browser:
    """A running Chromium."""

    def __init__(self, commands: Any, answers: Any) -> None:
        self._commands = commands
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        self._n_calls = 0
        threading.Thread(target=self._listen, args=(answers,), daemon=True).start()

    def open(
        self, url: str, *, width: int = 1280, height: int = 860, features: Sequence[tuple[str, str]] = ()
    ) -> "Page":
        """Returns a page at `url` in a profile of its own; `features` are media features such as a colour scheme."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        size = {"width": width, "height": height}
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context, **size)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session, context)
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.call("Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=1, mobile=False)
        media = [{"name": name, "value": value} for name, value in features]
        page.call("Emulation.setEmulatedMedia", features=media)
        page.call("Page.addScriptToEvaluateOnNewDocument", source=_WATCH_POLICY)
        page.call("Page.bringToFront")
        page.call("Page.navigate", url=url)
        assert page.loaded.wait(PATIENCE_SECONDS), f"{url} does not load"
        return page

    def call(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        """Returns the result of a command."""
        self._n_calls += 1
        number, coming = self._n_calls, queue.SimpleQueue[dict[str, Any]]()
        self._answers[number] = coming
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        answer = coming.get(timeout=PATIENCE_SECONDS)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _listen(self, answers: Any) -> None:
        rest = b""
        while part := answers.read1(2**16):
            *messages, rest = (rest + part).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    self._answers.pop(message["id"]).put(message)
                elif page := self._pages.get(message.get("sessionId", "")):
                    page.hear(message["method"], message["params"])


class Page:
    """One page. `errors` holds what went wrong on it so far."""

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        self._browser = browser
        self._session = session
        self._context = context
        self.errors: list[str] = []
        self.loaded = threading.Event()

    def call(self, method: str, **parameters: Any) -> Any:
        return self._browser.call(method, self._session, **parameters)

    def close(self) -> None:
        """Closes the page and all that its profile kept."""
        self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)

    def hear(self, method: str, parameters: dict[str, Any]) -> None:
        """Takes an event of the protocol."""
        if method == "Page.loadEventFired":
            self.loaded.set()
        elif method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.errors.append(str([each.get("value") for each in parameters["args"]]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.errors.append(parameters["entry"]["text"] + " " + parameters["entry"].get("url", ""))

    def run(self, script: str, **values: Any) -> Any:
        """Returns what the expression or the body of an async function gives; `values` are its variables."""
        names = ", ".join(values)
        body = script if "return" in script else f"return ({script})"
        call = f"(async ({{{names}}}) => {{{body}}})({json.dumps(values)})"
        as_the_page = {"userGesture": True, "allowUnsafeEvalBlockedByCSP": False}
        done = self.call("Runtime.evaluate", expression=call, awaitPromise=True, returnByValue=True, **as_the_page)
        assert "exceptionDetails" not in done, done["exceptionDetails"]["exception"].get("description")
        return done["result"].get("value")

    def wait(self, condition: str, **values: Any) -> None:
        """Returns once an expression is true; what does not become so is a fault."""
        try:
            until(lambda: self.run(f"Boolean({condition})", **values), bool, condition)
        except AssertionError as error:
            raise AssertionError(f"{error}; the page said {self.errors}") from error

    def type(self, text: str) -> None:
        """Writes where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, *, code: str | None = None, alt: bool = False, shift: bool = False) -> None:
        """Presses a key, such as Enter, Tab or ArrowLeft."""
        numbers = {
            "Enter": 13,
            "Tab": 9,
            "Escape": 27,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
        }
        common = {
            "key": key,
            "code": code or key,
            "modifiers": alt * 1 + shift * 8,
            "windowsVirtualKeyCode": numbers.get(key, 0),
        }
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": "\r"} if key == "Enter" else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def point(self, selector: str, *, right: float = 0.5, down: float = 0.5, clicks: int = 0) -> None:
        """Moves the pointer to a place within an element, in fractions of its size, and clicks there."""
        box = "const { x, y, width, height } = e.getBoundingClientRect()"
        find = "const e = document.querySelector(selector); e.scrollIntoView({ block: 'nearest' })"
        x, y = self.run(
            f"{find}; {box}; return [x + width * right, y + height * down]", selector=selector, right=right, down=down
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased") * clicks:
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def click(self, selector: str) -> None:
        """Clicks on an element."""
        self.point(selector, clicks=1)

    def drop(self, selector: str, *paths: Path) -> None:
        """Drops files on an element, as from a file manager."""
        x, y = self.run(
            "const b = document.querySelector(selector).getBoundingClientRect(); "
            "return [b.x + b.width / 2, b.y + b.height / 2]",
            selector=selector,
        )
        data = {"items": [], "files": [str(path.resolve()) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def choose(self, selector: str, *paths: Path) -> None:
        """Gives files to a file input, as its dialog would."""
        input_ = self.call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")["result"]
        self.call("DOM.setFileInputFiles", objectId=input_["objectId"], files=[str(path.resolve()) for path in paths])

    def save_into(self, folder: Path) -> None:
        """Has files that the page saves put into a folder."""
        where = {"browserContextId": self._context, "downloadPath": str(folder)}
        self._browser.call("Browser.setDownloadBehavior", behavior="allow", **where)

    def screenshot(self, path: Path) -> None:
        """Writes what can be seen as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


def until(look: Callable[[], _T], is_good: Callable[[_T], bool], about: str = "") -> _T:
    """Returns what `look` gives once it is good; what does not become so is a fault."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_good(value := look()):
        assert time.monotonic() < deadline, f"did not happen: {about} {value!r}"
        time.sleep(0.02)
    return value


_WATCH_POLICY = """
addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy: ${event.violatedDirective} refused ${event.blockedURI} ${event.sample}`));
"""
