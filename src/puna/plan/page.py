"""A plan as one page of HTML: bars of what ranks hold, the simulated step as a timeline. No scripts, nothing fetched.

In: a plan. Out: the text of a page. Long stretches of one kind of work are drawn as one, so that a step of thousands of
tasks stays a drawing; every mark says what it is when it is pointed at.
"""

from collections.abc import Iterable, Mapping
from html import escape
from typing import NamedTuple

from puna.plan.pipeline import Simulated, Stream
from puna.plan.plan import ServePlan, TrainPlan, TunePlan

WIDTH, BAR, ROW = 960, 26, 14
LABEL = 120
MARKS = 1200
"""Stretches of work that a timeline can show: what is shorter than one of so many parts of it joins its neighbour."""

COLOURS = ("#3b6ea5", "#e0a030", "#5b9a68", "#b5534b", "#8268a8", "#6d6d6d", "#c78fb0", "#4aa3a2", "#9a7b4f", "#a9b665")
KINDS: Mapping[str, str] = {
    "forward": "#3b6ea5",
    "backward": "#5b9a68",
    "head": "#8268a8",
    "update": "#e0a030",
    "sum": "#b5534b",
    "keys": "#b5534b",
    "dispatch": "#c78fb0",
    "combine": "#c78fb0",
    "gather": "#9a7b4f",
    "reduce": "#6d6d6d",
    "replicas": "#6d6d6d",
    "hand": "#4aa3a2",
}
NAMES = {"compute": "arithmetic", "rows": "waits for", "weights": "weights", "states": "states"}

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1000px;padding:0 1rem;color:#222;background:#fff}
pre{background:#f5f4f0;padding:1rem;overflow-x:auto;font-size:13px} h2{margin-top:2rem}
svg{width:100%;height:auto} text{font:12px system-ui,sans-serif;fill:#222}
.key span{margin-right:1rem;white-space:nowrap}
.key i{display:inline-block;width:.8em;height:.8em;margin-right:.35em}
@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}pre{background:#242424}text{fill:#ddd}}
"""


class Bar(NamedTuple):
    """What one rank holds, in bytes by what for."""

    name: str
    parts: dict[str, int]


def page(plan: ServePlan | TrainPlan | TunePlan) -> str:
    """Returns the page of a plan."""
    title = f"{plan.model} on {plan.cluster.count:,} x {plan.cluster.hardware.name}"
    body = [f"<h1>{escape(title)}</h1>", f"<pre>{escape(plan.table())}</pre>", "<h2>Memory</h2>"]
    body.append(_bars(_held(plan), plan.cluster.hardware.memory_bytes))
    if isinstance(plan, TrainPlan):
        body += ["<h2>A step</h2>", _timeline(plan.found.best.simulated, plan.found.best.layout.pipeline)]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"
    return head + "\n".join(body) + "</html>\n"


def _held(plan: ServePlan | TrainPlan | TunePlan) -> list[Bar]:
    if isinstance(plan, TunePlan):
        return [Bar("each", plan.footprint.parts() | {"driver": plan.cluster.hardware.reserve_bytes})]
    if isinstance(plan, ServePlan):
        return [Bar(f"rank {rank.rank}", rank.parts()) for rank in plan.found.best.ranks]
    driver = {"driver": plan.cluster.hardware.reserve_bytes}
    return [Bar(f"rank {held.rank}", held.parts() | driver) for held in plan.found.best.ranks]


def _bars(bars: list[Bar], memory_bytes: int) -> str:
    names = list(dict.fromkeys(name for bar in bars for name in bar.parts))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    most = max(memory_bytes, *(sum(bar.parts.values()) for bar in bars))
    scale = (WIDTH - LABEL - 80) / most
    marks = []
    for i, bar in enumerate(bars):
        x, y = float(LABEL), i * (BAR + 6)
        marks.append(f"<text x=0 y={y + BAR * 0.7:.0f}>{escape(bar.name)}</text>")
        for name, n_bytes in bar.parts.items():
            marks.append(_box(x, y, n_bytes * scale, BAR, colours[name], f"{name}: {n_bytes / 1e9:.2f} GB"))
            x += n_bytes * scale
        marks.append(f"<text x={x + 6:.1f} y={y + BAR * 0.7:.0f}>{sum(bar.parts.values()) / 1e9:.1f} GB</text>")
    height, limit = len(bars) * (BAR + 6), LABEL + memory_bytes * scale
    marks.append(f'<line x1={limit:.1f} x2={limit:.1f} y1=0 y2={height} stroke="#b5534b" stroke-dasharray="4 3"/>')
    return _svg(marks, height) + _key(colours) + f"<p>The dashed line is the memory, {memory_bytes / 1e9:.1f} GB.</p>"


def _timeline(simulated: Simulated, stages: int) -> str:
    end = max(span.end for span in simulated.spans)
    streams = [Stream(stage, name) for stage in range(stages) for name in NAMES]
    used = {task.stream for task in simulated.tasks}
    rows = {stream: i for i, stream in enumerate(each for each in streams if each in used)}
    scale, marks = (WIDTH - LABEL) / end, []
    for stream, y in rows.items():
        label = f"{stream.stage} {NAMES[stream.name]}"
        marks.append(f"<text x=0 y={y * ROW + ROW - 3}>{escape(label)}</text>")
    for stream, kind, start, stop in _stretches(simulated, end / MARKS):
        says = f"{kind}: {start * 1e3:.1f} to {stop * 1e3:.1f} ms"
        marks.append(
            _box(LABEL + start * scale, rows[stream] * ROW, (stop - start) * scale, ROW - 2, KINDS[kind], says)
        )
    about = (
        f"<p>{simulated.batches} batches of a reader, {len(simulated.tasks):,} tasks, {end:.2f} s. By stage: its "
        "arithmetic, what it waits for from links, weights that come and gradients that go, states handed over.</p>"
    )
    return _svg(marks, len(rows) * ROW) + _key(KINDS) + about


def _stretches(simulated: Simulated, gap: float) -> Iterable[tuple[Stream, str, float, float]]:
    """Yields stretches of one kind on one stream, as (stream, kind, start, end)."""
    opened: dict[Stream, tuple[str, float, float]] = {}
    for task, span in zip(simulated.tasks, simulated.spans, strict=True):
        assert isinstance(task.stream, Stream), "tasks of a step run on streams of stages"
        kind = task.kind.partition(" ")[0]
        before = opened.get(task.stream)
        if before is not None and before[0] == kind and span.start - before[2] <= gap:
            opened[task.stream] = kind, before[1], span.end
            continue
        if before is not None:
            yield task.stream, *before
        opened[task.stream] = kind, span.start, span.end
    for stream, (kind, start, stop) in opened.items():
        yield stream, kind, start, stop


def _svg(marks: list[str], height: float) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role=img>{"".join(marks)}</svg>'


def _box(x: float, y: float, width: float, height: float, colour: str, says: str) -> str:
    shape = f'<rect x={x:.2f} y={y:.1f} width={max(width, 0.3):.2f} height={height} fill="{colour}">'
    return f"{shape}<title>{escape(says)}</title></rect>"


def _key(colours: Mapping[str, str]) -> str:
    spans = (f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for name, colour in colours.items())
    return f"<p class=key>{''.join(spans)}</p>"
