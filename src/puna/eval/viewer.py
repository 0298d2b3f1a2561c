"""The items of a task as one page of HTML that needs nothing else: prompt, pictures, response, what was read out of it.

In: a task and its report. Out: text. Pictures are made small and put into the page, each once; long texts lose their
middle. Of a set whose authors ask not to show it, prompts and responses are left out. Whatever a model wrote is shown
as text: nothing of it becomes part of the page.
"""

import base64
import hashlib
import html
import io
import json
from typing import Any

from puna.errors import PromptError
from puna.eval.task import Chat, Choice, Compare, Completion, Judged, Passage, Report, Task
from puna.prompt.message import open_image

MAX_ITEMS = 2000
MAX_PICTURES = 400
MAX_SIDE = 640  # pixels of a picture in the page
MAX_CHARS = 8000  # of a text in the page


def viewer(task: Task, report: Report) -> str:
    """Returns the page. Items are in the order of the report, at most MAX_ITEMS of them."""
    pictures: dict[str, str] = {}
    items = [_item(task, report, judged, pictures) for judged in report.judged[:MAX_ITEMS]]
    left_out = len(report.judged) - len(items)
    document = {
        "items": items,
        "pictures": pictures,
        "note": f"{left_out} more items are in the record file alone." if left_out else "",
    }
    data = json.dumps(document, ensure_ascii=False).replace("<", "\\u003c")
    title = html.escape(f"{task.name}: items")
    return PAGE.replace("{title}", title).replace("{style}", STYLE).replace("{script}", SCRIPT).replace("{data}", data)


def _item(task: Task, report: Report, judged: Judged, pictures: dict[str, str]) -> dict[str, Any]:
    """Returns what the page knows of an item."""
    score = judged.score
    shown: dict[str, Any] = {
        "id": judged.item.id,
        "group": judged.item.group,
        "state": _state(score.value, report.unit),
        "value": score.value,
        "answer": _clipped(score.answer) if score.answer is not None else None,
        "reason": _clipped(score.reason),
        "details": [dict(each) for each in judged.details if each],
    }
    if task.is_private:
        return shown | {"prompt": [["note", "The authors of this set ask not to show its items."]], "responses": []}
    return shown | {
        "prompt": _prompt(task, judged, pictures),
        "responses": [_clipped(response) for response in judged.responses],
    }


def _state(value: float | None, unit: str) -> str:
    if value is None:
        return "unscored"
    if unit != "share":
        return "measured"
    return "right" if value == 1 else "wrong" if value == 0 else "partly"


def _prompt(task: Task, judged: Judged, pictures: dict[str, str]) -> list[list[str]]:
    """Returns the parts of a prompt: what kind each is ("text", "picture", "note", or a role), and what it holds."""
    match task.prompt(judged.item):
        case Completion(text=text, images=images) | Passage(text=text, images=images):
            return [_picture(image, pictures) for image in images] + [["text", _clipped(text)]]
        case Choice(text=text, continuations=continuations):
            logprobs = [details["logprobs"] for details in judged.details if "logprobs" in details]
            known = logprobs[0] if logprobs else [None] * len(continuations)
            options = [
                f"{each!r}" if logprob is None else f"{each!r}  {logprob:.4f}"
                for each, logprob in zip(continuations, known, strict=True)
            ]
            return [["text", _clipped(text)], ["note", "continuations:\n" + "\n".join(options)]]
        case Compare(text=text):
            return [["text", _clipped(text)]]
        case Chat(messages=messages, tools=tools):
            offered = [["note", "tools:\n" + "\n".join(json.dumps(tool) for tool in tools)]] if tools else []
            return offered + [part for message in messages for part in _message(message, pictures)]


def _message(message: Any, pictures: dict[str, str]) -> list[list[str]]:
    content = message["content"] or ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    shown = [["role", message["role"]]]
    if message.get("tool_calls"):
        shown.append(["note", "calls:\n" + "\n".join(json.dumps(each["function"]) for each in message["tool_calls"])])
    for part in parts:
        shown.append(_picture(part["image"], pictures) if part["type"] == "image" else ["text", _clipped(part["text"])])
    return shown


def _picture(source: Any, pictures: dict[str, str]) -> list[str]:
    """Puts a picture among the page's, if it is not there. Returns the part that names it."""
    try:
        image = open_image(source)
    except PromptError as error:
        return ["note", f"a picture that cannot be shown: {error}"]
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    file = io.BytesIO()
    image.convert("RGB").save(file, "WEBP", quality=80)
    name = hashlib.sha256(file.getvalue()).hexdigest()[:12]
    if name not in pictures:
        if len(pictures) == MAX_PICTURES:
            return ["note", f"a picture; the page holds no more than {MAX_PICTURES}"]
        pictures[name] = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
    return ["picture", name]


def _clipped(text: str) -> str:
    if len(text) <= MAX_CHARS:
        return text
    half = MAX_CHARS // 2
    return f"{text[:half]}\n\n[{len(text) - 2 * half:,} characters are left out here]\n\n{text[-half:]}"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{style}</style></head>
<body><h1>{title}</h1>
<p class="bar"><select id="state" aria-label="state"></select> <select id="group" aria-label="group"></select>
<input id="search" type="search" placeholder="search" aria-label="search"> <span id="count"></span></p>
<div id="items"></div><p><button id="more" hidden>more</button></p>
<script type="application/json" id="data">{data}</script><script>{script}</script></body></html>
"""

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 64rem; padding: 0 1rem; color: #1c1c1c; }
.bar { position: sticky; top: 0; background: inherit; padding: .5rem 0; background: #fff; }
select, input, button { font: inherit; padding: .2rem .4rem; }
details { border-bottom: 1px solid #ddd; padding: .35rem 0; }
summary { cursor: pointer; display: flex; gap: .8rem; }
summary .answer { color: #555; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; flex: 1; }
.state { width: 5.5rem; font-weight: 600; }
.right .state { color: #11703a; } .wrong .state { color: #b3261e; } .partly .state { color: #8a5a00; }
.unscored .state, .measured .state { color: #555; }
h2 { font-size: .85rem; text-transform: uppercase; letter-spacing: .05em; color: #555; margin: .9rem 0 .2rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f5f3; padding: .6rem; margin: .2rem 0; }
pre.note { background: none; color: #555; padding: 0; }
img { max-width: 100%; border: 1px solid #ddd; display: block; margin: .3rem 0; }
@media (prefers-color-scheme: dark) { body, .bar { background: #181818; color: #e6e6e6; } pre { background: #242424; }
  details, img { border-color: #444; } summary .answer, h2, pre.note { color: #aaa; }
  .right .state { color: #6fd08c; } .wrong .state { color: #ff8a80; } .partly .state { color: #e5b567; } }
"""

SCRIPT = """
const { items, pictures, note } = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const make = (name, text, kind) => {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  return node;
};
const fill = (select, all, values) => {
  select.append(new Option(all, ""));
  for (const value of values) select.append(new Option(value, value));
  select.hidden = values.length < 2;
};
const distinct = (name) => [...new Set(items.map((item) => item[name]))].filter(Boolean).sort();
const parts = (item) => item.prompt.map(([kind, text]) => {
  if (kind === "picture") {
    const image = make("img");
    image.src = pictures[text];
    image.alt = "picture of the prompt";
    return image;
  }
  return kind === "role" ? make("h2", text) : make("pre", text, kind);
});
const open = (node, item) => {
  if (node.childElementCount > 1) return;
  node.append(make("h2", "prompt"), ...parts(item));
  for (const response of item.responses) node.append(make("h2", "response"), make("pre", response));
  node.append(make("h2", "read out of it"), make("pre", item.answer ?? "nothing"));
  const value = item.value === null ? "none" : String(item.value);
  node.append(make("h2", "score"), make("pre", item.reason ? value + ": " + item.reason : value));
  if (item.details.length) node.append(make("h2", "details"), make("pre", JSON.stringify(item.details)));
};
const row = (item) => {
  const node = make("details", undefined, item.state), summary = make("summary");
  summary.append(make("span", item.state, "state"), make("span", item.id), make("span", item.answer ?? "", "answer"));
  node.append(summary);
  node.addEventListener("toggle", () => open(node, item));
  return node;
};
let found = [], shown = 0;
const more = () => {
  $("items").append(...found.slice(shown, shown + 200).map(row));
  shown = Math.min(shown + 200, found.length);
  $("more").hidden = shown === found.length;
};
const filter = () => {
  const text = $("search").value.toLowerCase();
  found = items.filter((item) => (!$("state").value || item.state === $("state").value)
    && (!$("group").value || item.group === $("group").value)
    && (!text || JSON.stringify([item.id, item.prompt, item.responses, item.answer]).toLowerCase().includes(text)));
  $("count").textContent = found.length + " of " + items.length + " items. " + note;
  $("items").replaceChildren();
  shown = 0;
  more();
};
fill($("state"), "all states", distinct("state"));
fill($("group"), "all groups", distinct("group"));
for (const id of ["state", "group", "search"]) $(id).addEventListener("input", filter);
$("more").addEventListener("click", more);
filter();
"""
