"""The page and its numbers: what is sent, what it may do, and, in a headless Chromium, what people can do with it."""

import json
import re
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from puna.chat import Assistant
from puna.prompt.tiles import choose_grid, fitted_size, tile_ids
from puna.serve.look import _read_page
from tests.serve import chromium
from tests.serve.conftest import MODEL, Running, picture

KEY = "grass"
PAGE = Path(__file__).parents[2] / "src" / "puna" / "serve" / "page"
AUDIT = (Path(__file__).parent / "audit.js").read_text("utf-8")

needs_chromium = pytest.mark.skipif(chromium.program() is None, reason=f"none of {chromium.PROGRAMS} is installed")


# Without a browser ------------------------------------------------------------------------------------------------


def test_page_and_its_files_need_no_key_and_the_numbers_do(assistant: Assistant) -> None:
    server = Running(assistant, keys=(KEY,))
    try:
        assert server.get("/").status == server.get("/page/main.js").status == 200
        for path in ("/look/model", "/look/live", "/look/experts"):
            assert server.get(path).status == 401
        assert server.get("/look/model", {"Authorization": f"Bearer {KEY}"}).document["name"] == MODEL
    finally:
        server.stop()


def test_page_can_be_left_out(assistant: Assistant) -> None:
    server = Running(assistant, page=False)
    try:
        assert {server.get(path).status for path in ("/", "/page/main.js", "/look/model")} == {404}
    finally:
        server.stop()


def test_files_say_what_they_are_and_are_sent_once(running: Running) -> None:
    for name, media_type in (("", "text/html"), ("page/main.js", "text/javascript"), ("page/theme.css", "text/css")):
        first = running.get("/" + name)
        assert first.headers["content-type"].startswith(media_type)
        assert first.headers["x-content-type-options"] == "nosniff"
        for etag in (first.headers["etag"], "W/" + first.headers["etag"], f'"other", {first.headers["etag"]}', "*"):
            again = running.get("/" + name, {"If-None-Match": etag})
            assert (again.status, again.body) == (304, b"")
            assert again.headers["etag"] == first.headers["etag"]
        assert running.get("/" + name, {"If-None-Match": '"other"'}).status == 200
    assert running.get("/page/nothing.js").status == running.get("/page/../look.py").status == 404


def test_policy_allows_own_scripts_and_nothing_else(running: Running) -> None:
    policy = dict(part.split(" ", 1) for part in running.get("/").headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in str(policy) and "http" not in str(policy)


def test_page_holds_no_inline_script_style_or_handler_and_names_existing_files() -> None:
    class Reader(HTMLParser):
        found: list[str] = []  # noqa: RUF012
        named: list[str] = []  # noqa: RUF012
        ids: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            given = dict(attrs)
            self.found += [f"{tag} {name}" for name in given if name.startswith("on") or name == "style"]
            self.found += [tag] if tag == "style" or (tag == "script" and "src" not in given) else []
            self.named += [each for each in (given.get("src"), given.get("href") if tag == "link" else None) if each]
            self.ids += [given["id"] or ""] if "id" in given else []

    reader = Reader()
    reader.feed((PAGE / "index.html").read_text("utf-8"))
    assert not reader.found
    assert len(reader.ids) == len(set(reader.ids))
    assert all((PAGE.parent / name).is_file() for name in reader.named)


def test_scripts_import_files_that_exist_and_never_parse_markup() -> None:
    for path in PAGE.glob("*.js"):
        text = path.read_text("utf-8")
        assert text.startswith("// "), f"{path.name} does not say what it is for"
        imported = re.findall(r'from "(.*?)"|import\("(.*?)"\)|^import "(.*?)"', text, re.MULTILINE)
        assert all((PAGE / name).is_file() for names in imported for name in names if name), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    sent = {name for name in _read_page()}
    assert sent == {path.name for path in PAGE.iterdir()}


def test_page_names_no_address_of_anybody_else() -> None:
    for path in PAGE.iterdir():
        found = set(re.findall(r"https?://[\w./]+", path.read_text("utf-8")))
        assert found <= {"http://www.w3.org/2000/svg"}, path.name


def test_model_is_described_as_it_is(running: Running, assistant: Assistant) -> None:
    told, config = running.get("/look/model").document, assistant.config
    assert told["context_len"] == config.text.context_len
    assert told["moe_layers"] == sorted(config.text.moe_layers)
    assert told["n_experts"] == config.text.n_experts
    assert config.vision is not None
    assert told["vision"]["tile_size"] == config.vision.tile_size
    assert told["abilities"]["guards"] is False


def test_live_numbers_come_as_events_and_end_when_the_server_goes_down(assistant: Assistant) -> None:
    server = Running(assistant)
    try:
        with urllib.request.urlopen(server.url + "/look/live", timeout=60) as stream:
            sample = json.loads(stream.readline().removeprefix(b"data: "))
            assert sample["running"] == sample["waiting"] == sample["generated_per_second"] == 0
            assert 0 <= sample["kv_use"] <= 1
            server.server.drain()
            stream.read()  # returns, since the stream ends
    finally:
        server.stop()


def test_experts_of_all_requests_are_counted(running: Running, assistant: Assistant) -> None:
    before = running.get("/look/experts").document["counts"]
    running.post(
        "/v1/chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    )
    after = running.get("/look/experts").document["counts"]
    text = assistant.config.text
    assert [len(row) for row in after] == [text.n_experts] * len(text.moe_layers)
    added = [sum(more) - sum(less) for less, more in zip(before, after, strict=True)]
    assert len(set(added)) == 1 and added[0] > 0  # every routed layer reads every token


# In a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    """One Chromium for all tests here; the server outlives it, since its pages hold connections."""
    with chromium.browser(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture
def page(browser: chromium.Browser, running: Running) -> Iterator[chromium.Page]:
    """A page that is ready; at the end nothing may have gone wrong on it."""
    opened = opened_page(browser, running)
    yield opened
    opened.close()
    assert opened.errors == []


def opened_page(browser: chromium.Browser, running: Running, **options: Any) -> chromium.Page:
    opened = browser.open(running.url + "/", **options)
    opened.wait("'ready' in document.body.dataset")
    return opened


def set_field(page: chromium.Page, name: str, value: object) -> None:
    page.run(
        "const field = document.querySelector(`[name=${name}]`); "
        "if (field.type === 'checkbox') field.checked = value; else field.value = value; "
        "field.dispatchEvent(new Event('input', { bubbles: true })); return null",
        name=name,
        value=value,
    )


def ask(page: chromium.Page, text: str) -> None:
    page.run("document.querySelector('#ask').focus()")
    page.type(text)
    page.press("Enter")


def wait_for_answer(page: chromium.Page, n: int = 1) -> None:
    page.wait(
        "document.querySelectorAll('.assistant:not(.growing) .facts span').length > 0 && "
        "document.querySelectorAll('.assistant:not(.growing)').length === n",
        n=n,
    )


def text_of(page: chromium.Page, selector: str) -> str:
    return str(page.run("document.querySelector(selector).innerText", selector=selector))


@needs_chromium
def test_people_ask_about_a_picture_read_the_answer_and_see_where_it_went(page: chromium.Page, tmp_path: Path) -> None:
    picture("red").save(tmp_path / "red.png")
    set_field(page, "max_tokens", 12)
    set_field(page, "seed", 3)
    page.drop("main", tmp_path / "red.png")
    page.wait("document.querySelectorAll('#chosen svg image').length === 1")
    assert "2 × 1 tiles + whole" in text_of(page, "#chosen")
    page.run("document.querySelector('#tab-routing').click()")
    page.wait("document.querySelector('#heat-empty').textContent.includes('light up')")
    ask(page, "hello")
    wait_for_answer(page)
    assert page.run("document.querySelectorAll('.user svg image').length") == 1
    assert re.search(r"\d+ tokens? · .* · read \d+", text_of(page, ".assistant .facts"))
    page.wait("!document.querySelector('#heat-shown').hidden")
    first = page.run("document.querySelector('.heat').toDataURL()")
    ask(page, "and now?")
    wait_for_answer(page, 2)
    page.wait("document.querySelector('.heat').toDataURL() !== first", first=first)
    set_field(page, "max_tokens", "")
    set_field(page, "temperature", 0)
    ask(page, "go on")
    page.wait("document.querySelectorAll('.growing .prose > *').length")
    assert page.run("document.querySelector('#send').dataset.busy") == "true"
    page.click("#send")
    wait_for_answer(page, 3)
    assert "stopped" in text_of(page, "#messages > :last-child .facts")
    assert page.run("document.querySelector('#send').dataset.busy") == "false"


@needs_chromium
def test_grid_of_a_picture_is_the_one_that_the_server_cuts(
    browser: chromium.Browser, running: Running, assistant: Assistant
) -> None:
    random = Random(5)
    cases = [
        (random.randint(1, 4000), random.randint(1, 4000), *random.choice([(16, 4), (336, 16), (96, 4)]))
        for _ in range(3000)
    ]
    script = browser.open(running.url + "/page/tiles.js")  # the file alone, which opens sooner than the page
    shown = script.run(
        "const { chooseGrid, fittedSize, pictureTokens } = await import('/page/tiles.js');"
        "return cases.map(([width, height, side, most]) => { const grid = chooseGrid(width, height, side, most);"
        "return [grid.rows, grid.columns, ...fittedSize(width, height, grid, side), pictureTokens(grid, 7)] })",
        cases=cases,
    )
    script.close()
    for (width, height, side, most), told in zip(cases, shown, strict=True):
        grid = choose_grid(width, height, tile_size=side, max_tiles=most)
        fitted = fitted_size((width, height), (grid.columns * side, grid.rows * side), side)
        n_tokens = len(tile_ids(grid, 7, assistant.tokenizer.special))
        assert told == [*grid, *fitted, n_tokens], (width, height, side, most)


@needs_chromium
@pytest.mark.slow
def test_markdown_becomes_elements_and_a_stream_ends_as_the_whole(page: chromium.Page) -> None:
    shown = page.run(
        """
        const { Prose } = await import("/page/prose.js");
        const show = (texts) => {
          const box = document.createElement("div");
          const prose = new Prose(box);
          texts.forEach((text) => prose.update(text));
          return [...box.querySelectorAll("*")].map((e) => e.tagName.toLowerCase()).join(" ") + "|" + box.textContent;
        };
        const parts = Array.from({ length: text.length }, (_, i) => text.slice(0, i + 1));
        return { whole: show([text]), streamed: show(parts) };
        """,
        text=MARKDOWN,
    )
    assert shown["whole"] == shown["streamed"]
    tags, text = shown["whole"].split("|", 1)
    for tag in "h4 em strong del code a ol ul li blockquote table th td pre hr br".split():
        assert tag in tags.split(), tag
    assert "<script>alert(1)</script>" in text and "<b onclick=x>" in text
    assert "script" not in tags.split() and "img" not in tags.split() and "b" not in tags.split()


@needs_chromium
@pytest.mark.slow
def test_events_are_the_same_wherever_the_network_cuts_them(page: chromium.Page) -> None:
    said = ["{}", "[DONE]", "zwei\nZeilen", "पूना 🌾", ""]
    for end in ("\n", "\r\n", "\r"):
        lines = [f": still here{end}{end}"]
        lines += ["".join(f"data: {line}{end}" for line in each.split("\n")) + f"id: 1{end}{end}" for each in said]
        stream = list(("".join(lines) + f"data: cut off{end}").encode())
        heard = page.run(
            """
            const { events } = await import("/page/events.js");
            const hear = async (parts) => {
              const found = [];
              const start = (sink) => {
                parts.forEach((part) => sink.enqueue(new Uint8Array(part)));
                sink.close();
              };
              const body = new ReadableStream({ start });
              for await (const data of events(body)) found.push(data);
              return JSON.stringify(found);
            };
            const cut = (n) => stream.flatMap((_, i) => (i % n ? [] : [stream.slice(i, i + n)]));
            const all = await Promise.all([1, 2, 3, 5, 7, 1000].map((n) => hear(cut(n))));
            return [...new Set(all)].map((each) => JSON.parse(each));
            """,
            stream=stream,
        )
        assert heard == [said], end


@needs_chromium
@pytest.mark.slow
def test_calls_of_tools_grow_from_their_parts(page: chromium.Page) -> None:
    parts = [
        {"index": 0, "id": "a", "function": {"name": "sky", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"x"'}},
        {"index": 1, "id": "b", "function": {"name": "sea", "arguments": "{}"}},
        {"index": 0, "function": {"arguments": ": 1}"}},
    ]
    grown = page.run(
        """
        const { newAnswer, take, timings } = await import("/page/answer.js");
        const answer = newAnswer(1000);
        parts.forEach((part, i) => take(answer, { choices: [{ delta: { tool_calls: [part] } }] }, 1100 + 50 * i));
        take(answer, { choices: [], usage: { prompt_tokens: 7, completion_tokens: 4 } }, 9999);
        return { calls: answer.calls, ...timings(answer) };
        """,
        parts=parts,
    )
    assert grown["calls"] == [
        {"id": "a", "name": "sky", "arguments": '{"x": 1}'},
        {"id": "b", "name": "sea", "arguments": "{}"},
    ]
    assert (grown["made"], grown["read"], grown["firstSeconds"], grown["perSecond"]) == (4, 7, 0.1, 20)


@needs_chromium
@pytest.mark.slow
def test_browser_refuses_markup_from_text_and_scripts_from_elsewhere(
    browser: chromium.Browser, running: Running
) -> None:
    opened = opened_page(browser, running)
    for attempt in (
        "document.body.innerHTML = '<b>x</b>'",
        "document.body.insertAdjacentHTML('beforeend', '<b>x</b>')",
        "eval('1')",
        "await import('https://elsewhere.example/x.js')",
        "await fetch('https://elsewhere.example/')",
    ):
        with pytest.raises(AssertionError, match=r"TypeError|EvalError|Failed to fetch"):
            opened.run(f"{attempt}; return null")
    chromium.until(lambda: str(opened.errors), lambda said: "policy: connect-src refused" in said)
    opened.close()


@needs_chromium
@pytest.mark.slow
def test_arabic_begins_at_the_right_wherever_it_stands(page: chromium.Page) -> None:
    sides = page.run(
        """
        const { Prose } = await import("/page/prose.js");
        const box = document.createElement("div");
        document.body.append(box);
        new Prose(box).update(text);
        return [...box.children].map((e) => getComputedStyle(e.querySelector("p, td") ?? e).direction);
        """,
        text="# قمر\n\nقمر\n\n- قمر\n\n> قمر\n\n| أ |\n|---|\n| ب |\n\n```\nx\n```\n\nmoon",
    )
    assert sides == ["rtl"] * 5 + ["ltr"] * 2


@needs_chromium
@pytest.mark.slow
def test_links_of_a_model_lead_only_where_links_may(page: chromium.Page) -> None:
    links = page.run(
        """
        const { Prose } = await import("/page/prose.js");
        const box = document.createElement("div");
        new Prose(box).update(text);
        return [...box.querySelectorAll("a")].map((a) => [a.protocol, a.rel, a.target]);
        """,
        text=MARKDOWN,
    )
    assert links and all(protocol in ("http:", "https:", "mailto:") for protocol, _, _ in links)
    assert all("noopener" in rel and "noreferrer" in rel and target == "_blank" for _, rel, target in links)


@needs_chromium
@pytest.mark.slow
def test_markdown_of_any_text_keeps_its_words_and_ends_soon(page: chromium.Page) -> None:
    random = Random(11)
    alphabet = [
        "*",
        "_",
        "`",
        "~",
        "[",
        "](",
        ")",
        "<",
        ">",
        "|",
        "\\n",
        "\\n\\n",
        "- ",
        "1. ",
        "> ",
        "# ",
        "```",
        "w",
        " ",
        "http://a.b",
    ]
    texts = ["".join(random.choices(alphabet, k=random.randint(1, 60))) for _ in range(3000)]
    texts = [text.replace("\\n", "\n") for text in texts]
    hostile = [
        piece * 20_000
        for piece in ("*a ", "`", "[", "[a](", "> ", "- ", "| ", "_a", "**a*", "\\", "<", "# ", "~~a", "1. ")
    ]
    words = page.run(
        """
        const { parse } = await import("/page/markdown.js");
        const { Prose } = await import("/page/prose.js");
        hostile.forEach(parse);
        return texts.map((text) => {
          const box = document.createElement("div");
          new Prose(box).update(text);
          return (box.textContent.match(/w/g) ?? []).length;
        });
        """,
        texts=texts,
        hostile=hostile,
    )
    for text, n in zip(texts, words, strict=True):
        # The name of a language behind a fence is shown above the code, and what else stands there is not.
        assert n <= text.count("w") and (n == text.count("w") or "```" in text or "~~~" in text), text


@needs_chromium
@pytest.mark.slow
def test_everything_has_a_name_and_enough_contrast(browser: chromium.Browser, running: Running, tmp_path: Path) -> None:
    conversation = tmp_path / "conversation.json"
    conversation.write_text(json.dumps(CONVERSATION), "utf-8")
    for scheme in ("light", "dark"):
        opened = opened_page(browser, running, features=[("prefers-color-scheme", scheme)])
        assert opened.run(AUDIT) == []
        opened.choose("#json-file", conversation)
        wait_for_answer(opened, 3)
        assert "What was asked was held back: Hate (S10)." in text_of(opened, ".guard")
        opened.run("document.querySelector('[aria-label=\"Token probabilities\"]').click()")
        for tab in ("settings", "routing", "live"):
            opened.run("document.querySelector(`#tab-${tab}`).click()", tab=tab)
            opened.wait(f"!document.querySelector('#pane-{tab}').hidden")
            assert opened.run(AUDIT) == [], (scheme, tab)
        for dialog in ("#show-key", "#show-shortcuts"):
            opened.click(dialog)
            assert opened.run(AUDIT) == [], (scheme, dialog)
            opened.press("Escape")
        assert opened.errors == []
        opened.close()


@needs_chromium
@pytest.mark.slow
def test_page_can_be_used_by_keyboard_alone(page: chromium.Page) -> None:
    set_field(page, "max_tokens", 8)
    set_field(page, "temperature", 0)  # an answer that is drawn may end before there is a second token
    page.press("m", code="KeyM", alt=True)
    assert page.run("document.activeElement.id") == "ask"
    page.type("hi")
    page.press("Enter", shift=True)
    page.press("Enter")
    wait_for_answer(page)
    page.press("r", code="KeyR", alt=True)
    page.wait("document.querySelector('.versions').innerText.includes('2 / 2')")
    wait_for_answer(page)
    page.run("document.querySelector('[aria-label=\"Earlier version\"]').focus()")
    page.press("Enter")
    page.wait("document.querySelector('.versions').innerText.includes('1 / 2')")
    page.run("document.querySelector('[aria-label=\"Token probabilities\"]').focus()")
    page.press("Enter")
    page.run("document.querySelector('.token').focus()")
    first = text_of(page, ".token-card")
    page.press("ArrowRight")
    assert "%" in first and page.run("[...document.querySelectorAll('.token')].indexOf(document.activeElement)") == 1
    page.press("2", code="Digit2", alt=True)
    page.wait("document.activeElement.id === 'tab-routing' && document.querySelector('.heat')?.offsetParent")
    page.press("ArrowRight")
    assert page.run("document.activeElement.id") == "tab-live"
    page.press("ArrowLeft")
    page.wait("!document.querySelector('#heat-shown').hidden")
    page.run("document.querySelector('.heat').focus()")
    page.press("ArrowRight")
    page.press("ArrowDown")
    assert text_of(page, "#cell").startswith("Layer 3, expert 0")
    page.press("e", code="KeyE", alt=True)
    assert page.run("document.activeElement.matches('.edit textarea')")
    page.run("document.activeElement.select()")
    page.type("hello again")
    page.press("Enter")
    page.wait("document.querySelector('.said').innerText === 'hello again'")
    wait_for_answer(page)
    page.press("k", code="KeyK", alt=True)
    assert page.run("document.querySelector('#shortcuts').open")
    page.press("Escape")
    page.press("n", code="KeyN", alt=True)
    page.wait("!document.querySelector('.message') && !document.querySelector('#welcome').hidden")
    order = []
    for _ in range(60):
        page.press("Tab")
        order.append(
            page.run("document.activeElement.id || document.activeElement.className || document.activeElement.tagName")
        )
    assert {"new", "theme", "ask", "attach", "send", "tab-routing"} <= set(order)


@needs_chromium
@pytest.mark.slow
def test_screen_readers_hear_that_an_answer_begins_and_then_all_of_it(page: chromium.Page) -> None:
    page.run(
        "window.heard = []; new MutationObserver(() => heard.push(document.querySelector('#status').textContent))"
        ".observe(document.querySelector('#status'), { childList: true }); return null"
    )
    set_field(page, "max_tokens", 40)
    ask(page, "hi")
    wait_for_answer(page)
    page.wait("heard.length > 1")
    heard = page.run("heard")
    assert len(heard) == 2 and heard[0] == "The model is answering." and heard[1].startswith("Answer:")
    assert page.run("document.querySelector('#messages').closest('[aria-live]')") is None


@needs_chromium
@pytest.mark.slow
def test_tools_are_called_on_cards_and_results_go_back(page: chromium.Page) -> None:
    page.run("document.querySelector('#example-tools').click()")
    [tool] = json.loads(page.run("document.querySelector('#tools').value"))
    tool["function"]["parameters"]["properties"] = {"place": {"enum": ["Puno"]}}
    set_field(page, "tools", json.dumps([tool]))
    set_field(page, "tool_choice", "required")
    set_field(page, "max_tokens", 200)
    set_field(page, "temperature", 0)
    ask(page, "weather?")
    page.wait("document.querySelector('.call')")
    wait_for_answer(page)
    assert text_of(page, ".call header") == "weather"
    set_field(page, "tool_choice", "none")
    set_field(page, "max_tokens", 10)
    page.run("document.querySelector('.call textarea').focus()")
    page.type("sunny")
    page.run("document.querySelectorAll('.call form').forEach((form) => form.requestSubmit())")
    wait_for_answer(page, 2)
    assert "sunny" in text_of(page, ".call-result")


@needs_chromium
@pytest.mark.slow
def test_settings_that_cannot_be_sent_are_said_where_they_are(page: chromium.Page) -> None:
    set_field(page, "tools", "[{")
    assert "no JSON" in text_of(page, "#tools-problem")
    ask(page, "hi")
    page.wait("!document.querySelector('#composer-problem').hidden")
    assert page.run("document.activeElement.id") == "tools"
    assert page.run("document.querySelector('#ask').value") == "hi"
    assert page.run("document.querySelector('.message')") is None
    set_field(page, "tools", "")
    ask(page, "")
    wait_for_answer(page)


@needs_chromium
@pytest.mark.slow
def test_refusals_stand_in_the_conversation_and_can_be_tried_again(browser: chromium.Browser, running: Running) -> None:
    opened = opened_page(browser, running)
    set_field(opened, "max_tokens", 100_000)
    ask(opened, "hi")
    opened.wait("document.querySelector('.problem:not([hidden])')")
    assert "context" in text_of(opened, ".problem")
    set_field(opened, "max_tokens", 5)
    opened.click(".problem button")
    wait_for_answer(opened)
    assert opened.run("document.querySelector('.versions').hidden")
    assert all("400" in error for error in opened.errors)  # the browser's own line about the refused request
    opened.close()


@needs_chromium
@pytest.mark.slow
def test_conversation_leaves_and_comes_back_as_a_file(page: chromium.Page, tmp_path: Path) -> None:
    picture("blue").save(tmp_path / "blue.png")
    set_field(page, "max_tokens", 8)
    page.drop("main", tmp_path / "blue.png")
    page.wait("document.querySelectorAll('#chosen svg image').length === 1")
    ask(page, "hi")
    wait_for_answer(page)
    page.save_into(tmp_path)
    for button in ("#save-json", "#save-markdown"):
        page.run("document.querySelector(selector).click()", selector=button)
    saved = chromium.until(lambda: sorted(tmp_path.glob("conversation-*.*[nd]")), lambda found: len(found) == 2)
    assert "## User" in saved[1].read_text("utf-8") and "blue.png" in saved[1].read_text("utf-8")
    before = text_of(page, "#messages")
    page.press("n", code="KeyN", alt=True)
    page.choose("#json-file", saved[0])
    wait_for_answer(page)
    assert text_of(page, "#messages") == before
    for damaged in (
        "{}",
        "no JSON",
        '{"puna": 1, "messages": [{"id": 1, "role": "user"}]}',
        '{"puna": 1, "messages": [{"id": 1, "role": "assistant", "shown": 0, "versions": [{"text": "x"}]}]}',
    ):
        (tmp_path / "damaged.json").write_text(damaged)
        page.choose("#json-file", tmp_path / "damaged.json")
        page.wait("!document.querySelector('#composer-problem').hidden")
        assert text_of(page, "#messages") == before


@needs_chromium
@pytest.mark.slow
def test_key_is_asked_for_and_forgotten_with_the_page(browser: chromium.Browser, assistant: Assistant) -> None:
    server = Running(assistant, keys=(KEY,))
    opened = browser.open(server.url + "/")
    try:
        for attempt in ("wrong", KEY):
            opened.wait("document.querySelector('#key-dialog').open")
            opened.run("document.querySelector('#key').focus()")
            opened.type(attempt)
            opened.press("Enter")
            opened.wait("!document.querySelector('#key-dialog').open || document.querySelector('#key').value === ''")
        opened.wait("'ready' in document.body.dataset")
        assert KEY not in str(
            opened.run("JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie])")
        )
        set_field(opened, "max_tokens", 5)
        ask(opened, "hi")
        wait_for_answer(opened)
        assert all("401" in error for error in opened.errors)
    finally:
        opened.close()
        server.stop()


@needs_chromium
@pytest.mark.slow
def test_pictures_that_the_server_would_refuse_are_turned_or_refused_at_once(
    page: chromium.Page, tmp_path: Path
) -> None:
    Image.new("RGB", (40, 20), "green").save(tmp_path / "green.bmp")
    (tmp_path / "text.png").write_text("no picture")
    page.drop("main", tmp_path / "green.bmp")
    page.wait("document.querySelectorAll('#chosen svg image').length === 1")
    assert "sent as PNG" in text_of(page, "#chosen")
    page.drop("main", tmp_path / "text.png")
    page.wait("!document.querySelector('#composer-problem').hidden")
    assert "text.png is no picture" in text_of(page, "#composer-problem")
    page.drop("main", *[tmp_path / "green.bmp"] * 5)
    page.wait("document.querySelector('#composer-problem').textContent.includes('At most 5')")
    page.errors.clear()  # the browser's own line about the file that is no picture
    set_field(page, "max_tokens", 5)
    ask(page, "hi")
    wait_for_answer(page)


@needs_chromium
@pytest.mark.slow
def test_narrow_screens_show_everything_without_scrolling_sideways(
    browser: chromium.Browser, running: Running, tmp_path: Path
) -> None:
    conversation = tmp_path / "conversation.json"
    conversation.write_text(json.dumps(CONVERSATION), "utf-8")
    for width in (320, 390, 768, 1100):
        opened = opened_page(browser, running, width=width, height=700)
        opened.choose("#json-file", conversation)
        wait_for_answer(opened, 3)
        for selector in ("html", "#scroll"):
            assert opened.run(FITS, selector=selector), (width, selector)
        if not opened.run("document.querySelector('#panel').checkVisibility()"):
            opened.click("#toggle-panel")
        for tab in ("routing", "live", "settings"):
            opened.click(f"#tab-{tab}")
            assert opened.run(FITS, selector=f"#pane-{tab}"), (width, tab)
        opened.press("Escape")
        assert opened.errors == []
        opened.close()


FITS = "(({ scrollWidth, clientWidth }) => scrollWidth <= clientWidth)(document.querySelector(selector))"

MARKDOWN = """## Head
Some *soft* and **hard** words, ~~gone~~, `code`, a [link](https://a.example/x_(y)), mailto: <mailto:a@b.example>,
<https://c.example>, bare https://d.example/path. <script>alert(1)</script> <b onclick=x>b</b>
[bad](javascript:alert(1)) [bad](data:text/html,x) ![shown](https://e.example/x.png) snake_case_name 2 * 3 * 4

1. one
2. two
   - inner
   - other

> said
> so

| a | b |
|---|--:|
| 1 | 2 |

---

```python
x = "<b>"  # comment
```
"""

CONVERSATION = {
    "puna": 1,
    "model": MODEL,
    "settings": {},
    "messages": [
        {"id": 1, "role": "user", "text": "Say much.", "pictures": []},
        {
            "id": 2,
            "role": "assistant",
            "shown": 1,
            "versions": [
                {"text": "no", "calls": [], "tokens": [], "routes": [], "finish": "stop", "error": None},
                {
                    "text": MARKDOWN,
                    "calls": [],
                    "tokens": [
                        {"token": " a", "logprob": p, "top": [{"token": " b", "logprob": -1}]}
                        for p in (-0.01, -0.3, -1, -2, -5)
                    ],
                    "routes": [[[0], [1]], [[1], [1]], [[3], [2]], [[0], [0]], [[0], [1]]],
                    "finish": "length",
                    "error": None,
                },
            ],
        },
        {"id": 3, "role": "user", "text": "And call.", "pictures": []},
        {
            "id": 4,
            "role": "assistant",
            "shown": 0,
            "versions": [
                {
                    "text": "",
                    "calls": [
                        {"id": "a", "name": "weather", "arguments": '{"place": "Puno", "days": 2}'},
                        {"id": "b", "name": "clock", "arguments": "{}"},
                    ],
                    "tokens": [],
                    "routes": [],
                    "finish": "tool_calls",
                    "error": None,
                }
            ],
        },
        {"id": 5, "role": "tool", "callId": "a", "name": "weather", "text": "cold"},
        {
            "id": 6,
            "role": "assistant",
            "shown": 0,
            "versions": [
                {
                    "text": "",
                    "calls": [],
                    "tokens": [],
                    "routes": [],
                    "finish": "content_filter",
                    "guards": {
                        "message": "This stays unsaid.",
                        "rulings": [{"point": "user_input", "action": "block", "enforced": True, "codes": ["S10"]}],
                    },
                }
            ],
        },
    ],
}
