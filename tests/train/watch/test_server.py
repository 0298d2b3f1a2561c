"""What the page of a run may do, who may read it, and, in a headless Chromium, what can be seen on it."""

import http.client
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest

from puna import cli
from puna.records import ENERGY, write_energy
from puna.train.loop import LOG
from puna.train.samples import SAMPLES
from puna.train.watch.server import Watch
from puna.train.watch.work import WORK, Work
from tests.serve import chromium
from tests.train.watch.test_news import START, line, sample, write

PAGE = Path(__file__).parents[3] / "src" / "puna" / "train" / "watch"
AUDIT = (Path(__file__).parents[2] / "serve" / "audit.js").read_text("utf-8")


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


@contextmanager
def watched(run: Path) -> Iterator[Watch]:
    with Watch(run, 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def get(server: Watch, path: str, host: str | None = None, method: str = "GET") -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    with connection.getresponse() as response:
        return Reply(response.status, response.headers, response.read())


def test_page_and_news_are_sent_with_a_strict_policy(tmp_path: Path) -> None:
    write(tmp_path / "run", 1, 2, 3)
    with watched(tmp_path / "run") as server:
        for path, kind in (("/", "text/html"), ("/watch.js", "text/javascript"), ("/watch.css", "text/css")):
            reply = get(server, path)
            assert reply.status == 200 and reply.headers["content-type"].startswith(kind)
            policy = dict(part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; "))
            assert policy["default-src"] == "'none'" and policy["script-src"] == policy["connect-src"] == "'self'"
            assert "unsafe" not in str(policy) and "http" not in str(policy)
        found = json.loads(get(server, "/news?file=0&offset=0").body)
        assert found["name"] == "run" and [each["step"] for each in found["steps"]] == [1, 2, 3]
        place = found["place"]
        assert not json.loads(get(server, f"/news?file={place['file']}&offset={place['offset']}").body)["steps"]


def test_what_is_not_asked_properly_is_refused_and_the_server_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "run", 1)
    with watched(tmp_path / "run") as server:
        for path in ("/log.jsonl", "/../news.py", "/news.py", "/%2e%2e/loop.py", "//etc/passwd"):
            assert get(server, path).status == 404, path
        assert get(server, "/news?file=x").status == 503
        assert get(server, "/", host="elsewhere.example").status == 403
        assert get(server, "/", method="POST").status == 501
        assert get(server, "/", host=f"localhost:{server.server_port}").status == 200
        (tmp_path / "run" / LOG).unlink()
        (tmp_path / "run").rmdir()
        reply = get(server, "/news")
        assert reply.status == 503 and "no such folder" in json.loads(reply.body)["error"]


def test_page_holds_no_inline_script_or_style_and_names_existing_files_and_elements() -> None:
    class Reader(HTMLParser):
        inline: list[str] = []  # noqa: RUF012
        named: list[str] = []  # noqa: RUF012
        ids: set[str] = set()  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            given = dict(attrs)
            self.inline += [f"{tag} {name}" for name in given if name.startswith("on") or name == "style"]
            self.inline += [tag] if tag == "style" or (tag == "script" and "src" not in given) else []
            self.named += [str(given[name]) for name in ("src", "href") if name in given]
            self.ids |= {str(given["id"])} if "id" in given else set()

    reader = Reader()
    reader.feed((PAGE / "index.html").read_text("utf-8"))
    assert not reader.inline
    assert all((PAGE / name).is_file() for name in reader.named)
    scripts = "".join(path.read_text("utf-8") for path in PAGE.glob("*.js"))
    assert set(re.findall(r'byId\("([\w-]+)"\)', scripts)) <= reader.ids
    assert "innerHTML" not in scripts and "://" not in scripts.replace("http://www.w3.org/2000/svg", "")


def test_command_says_where_the_page_is_and_shows_it(tmp_path: Path) -> None:
    write(tmp_path / "run", 1)
    argv = [sys.executable, "-m", "puna", "train", "watch", str(tmp_path / "run"), "--port", "0", "--json"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        host, port = re.fullmatch(r"http://([\d.]+):(\d+)/", said["url"]).groups()  # type: ignore[union-attr]
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        connection.request("GET", "/news")
        assert json.loads(connection.getresponse().read())["name"] == "run"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["watch"], "name the folder of a run"),
        (["watch", "runs/nowhere"], "runs/nowhere: no such folder"),
        (["recipes/cria.toml", "runs/cria"], "one recipe at a time; puna train watch RUN shows a run"),
    ],
    ids=["no run", "not there", "no watch"],
)
def test_command_refuses_what_it_cannot_show(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *arguments]) == 2
    assert reason in capsys.readouterr().err


# In a browser -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(chromium.program() is None, reason=f"none of {chromium.PROGRAMS} is installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_people_see_a_run_grow_and_finish(tmp_path: Path, scheme: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    features = [("prefers-color-scheme", scheme)]
    with watched(run) as server, chromium.browser(tmp_path / "profile") as browser:
        page = browser.open(server.url, features=features)
        page.wait("document.querySelector('#state').textContent === 'has not finished a step yet'")
        write(run, *range(1, 41), of=50)
        write_energy(run / ENERGY, [START])
        work = Work(token_flops=1e9, peak_flops=1e12, peak_source="1 TFLOP/s declared, times 1")
        (run / WORK).write_text(json.dumps(work._asdict()), "utf-8")
        page.wait("document.querySelector('#gauges dd')?.textContent === '40 of 50'")
        gauges = page.run("[...document.querySelectorAll('#gauges dd')].map(e => e.textContent)")
        assert gauges[1:3] == ["0.125", "0.01"] and gauges[5] == "5 s" and gauges[7] == "1 kWh"
        assert gauges[8] == "1000 (declared)"
        page.wait("document.querySelectorAll('#gauges dd')[9].textContent === '20 %'")
        assert "1 TFLOP/s declared, times 1" in page.run("document.querySelector('#work').textContent")
        labels = page.run("[...document.querySelectorAll('#charts svg')].map(e => e.getAttribute('aria-label'))")
        assert labels[0].startswith("Loss, nats per learnt token: from 5 at step 1 to 0.125 at step 40")
        assert "the 2nd is the least even; its busiest expert read 5 times" in page.run("heat.ariaLabel")
        assert page.run("heat.getContext('2d').getImageData(5, heat.height - 5, 1, 1).data[3]") == 255
        shown = sample(40, picture="<b>.png", wanted=["a sun"]) + sample(40, asked="Once", written="upon\na time")
        (run / SAMPLES).write_text(sample(20) + shown, "utf-8")
        page.wait("document.querySelectorAll('#samples-list h3').length === 2")
        written = page.run("[...document.querySelectorAll('#samples-list :is(h3, dt, dd)')].map(e => e.textContent)")
        assert written[:4] == ["Step 40", "The sun", " of step 40", "picture <b>.png; right would be: a sun"]
        assert written[4:] == ["Once", "upon\na time", "Step 20", "The sun", " of step 20"]
        page.run("cursor.focus()")
        page.press("ArrowLeft")
        page.wait("document.querySelector('#cursor-step').value === '39'")
        with (run / LOG).open("a", encoding="utf-8") as file:
            file.writelines(line(step, 50) for step in range(41, 51))
        page.wait("document.querySelector('#state').textContent === 'finished'")
        assert page.run("document.querySelector('#cursor-step').value") == "39"  # what was chosen stays
        assert page.run("document.querySelectorAll('#rows tr').length") == 20
        for theme in ("light", "dark"):
            page.click("#theme")
            assert page.run("document.documentElement.dataset.theme") == theme
            assert page.run(AUDIT) == []
        assert not page.errors
