"""A benchmark as a value: dataset, prompt, scorer; and the scoring of recorded responses.

In: a folder with the benchmark's files in their published fields, or the hub; responses by item. Out: items, prompts,
and a `Report`. The tasks themselves are in `tasks`, a file each. Not here: asking a model, resuming, tables.

Three words are kept apart, as inspect does: a response is *right* (1), *wrong* (0, also when no answer is found in it),
or *could not be scored* (no value: there is no gold answer, or the grader itself could not run). The last is counted
and reported, and is in no average.
"""

import importlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from puna.errors import ConfigError, DeviceError
from puna.eval.metrics import Estimate, average

Row = Mapping[str, Any]


class NoDataError(ConfigError):
    """A folder does not have a task's files; another may."""


# Data --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """A data set on the Hugging Face hub. `ids` are tried in order; `revision` belongs to the first; None: unpinned.

    `configs` are read one after the other; rows get the field `config`. `files` are read as JSON lines instead,
    for sets that come as a loading script, which current versions of `datasets` refuse to run.
    """

    ids: tuple[str, ...]
    split: str
    revision: str | None
    configs: tuple[str | None, ...] = (None,)
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where rows are: `folder/file` below the data folder, or the hub. `images` names the fields that hold pictures.

    `file` may be a pattern; matching files are read in the order of their names.
    """

    folder: str
    file: str
    hub: Hub | None
    images: tuple[str, ...] = ()


def read(source: Source, data: Path | None) -> list[dict[str, Any]]:
    """Returns the rows of a source: from below `data`, or from the hub when that is None.

    `data` holds the benchmark's folder, or is that folder. Relative paths of pictures become paths, which are looked
    for when a prompt is made: scoring responses needs no picture. Pictures of the hub are files as bytes.
    Raises ConfigError for missing or broken files, DeviceError without the package `datasets`.
    """
    return _from_hub(source) if data is None else _from_folder(source, data)


def read_text(source: Source, data: Path | None) -> str:
    """Returns a text file of the data folder; raises ConfigError when there is no folder or no such file."""
    return files(source, data)[0].read_text(encoding="utf-8")


def files(source: Source, data: Path | None) -> list[Path]:
    """Returns the files of a source in the order of their names; raises as `read_text`."""
    if data is None:
        raise ConfigError(f"data: {source.folder}/{source.file} is not on the hub as a file; give a folder with --data")
    for folder in (data / source.folder, data):
        if found := sorted(folder.glob(source.file)):
            return found
    raise NoDataError(f"data: {data} has no {source.folder}/{source.file}; give the folder that holds {source.folder}")


def _from_folder(source: Source, data: Path) -> list[dict[str, Any]]:
    rows = []
    for path in files(source, data):
        for row in read_lines(path):
            for field in source.images:
                if isinstance(row.get(field), str):
                    row[field] = path.parent / row[field]
            rows.append(row)
    return rows


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a JSON lines file; raises ConfigError naming the line that is none."""
    if not path.is_file():
        raise ConfigError(f"file: {path} does not exist; name a JSON lines file")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ConfigError(f"file: {path}, line {number} is not JSON ({error}); write it again") from error
                if not isinstance(row, dict):
                    raise ConfigError(f"file: {path}, line {number} is {type(row).__name__}; each line is an object")
                yield row


def _from_hub(source: Source) -> list[dict[str, Any]]:
    hub = source.hub
    if hub is None:
        raise ConfigError(f"data: {source.folder}/{source.file} is not on the hub; give a folder with --data")
    failures = []
    for place, name in enumerate(hub.ids):
        revision = hub.revision if place == 0 else None
        try:
            return _hub_files(hub, name, revision) if hub.files else _hub_rows(hub, name, revision)
        except ImportError as error:
            raise DeviceError(
                f"data: reading {name} from the hub needs a package that is missing ({error}); "
                "install it with: pip install 'puna[eval]', or give a local folder with --data"
            ) from error
        except Exception as error:  # every library below has errors of its own; all of them are reported
            failures.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    raise ConfigError(
        f"data: none of {', '.join(hub.ids)} could be read ({'; '.join(failures)}); "
        "accept its terms and log in, or give a local folder with --data"
    )


def _hub_rows(hub: Hub, name: str, revision: str | None) -> list[dict[str, Any]]:
    datasets = importlib.import_module("datasets")
    rows: list[dict[str, Any]] = []
    for config in hub.configs:
        loaded = datasets.load_dataset(name, config, split=hub.split, revision=revision)
        pictures = [field for field, kind in getattr(loaded, "features", {}).items() if _is_picture(kind)]
        for field in pictures:  # kept as they are stored: thousands of decoded pages fill any memory
            loaded = loaded.cast_column(field, datasets.Image(decode=False))
        for row in loaded:
            files = {field: _picture_bytes(row[field]) for field in pictures}
            rows.append(dict(row) | files | ({"config": config} if config else {}))
    return rows


def _is_picture(kind: Any) -> bool:
    return type(kind).__name__ == "Image"


def _picture_bytes(stored: Mapping[str, Any] | None) -> bytes | None:
    """Returns the file that a data set holds for a picture, or names."""
    if stored is None:
        return None
    return stored["bytes"] if stored["bytes"] is not None else Path(stored["path"]).read_bytes()


def _hub_files(hub: Hub, name: str, revision: str | None) -> list[dict[str, Any]]:
    fetch = importlib.import_module("huggingface_hub").hf_hub_download
    paths = [fetch(name, file, repo_type="dataset", revision=revision) for file in hub.files]
    return [row for path in paths for row in read_lines(Path(path))]


# Tasks -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question. `row` has the published fields, `shots` the rows that are shown solved before it.

    `group` is the part whose result is reported on its own; `cluster` is what dependent items share ("" for none);
    `note` says how the question differs from the published one ("" where it does not).
    """

    id: str
    row: Row
    shots: tuple[Row, ...] = ()
    group: str = ""
    cluster: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A prompt that a base model continues, until one of the stops, behind pictures (paths, bytes or PIL images)."""

    text: str
    stops: tuple[str, ...]
    images: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """Messages in OpenAI's shape; pictures are parts `{"type": "image", "image": path, bytes or PIL image}`.

    With tools, in that shape too, the response may hold calls, as the model writes them.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A text and its possible continuations: the most probable one is the answer, by the label of the same place."""

    text: str
    continuations: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A text that is read, not answered: what counts is how probable all its tokens are. The response: `Likelihood`.

    Of texts longer than `window` tokens (None: the context) every token is predicted once: window by window, the first
    token of each from the one before it, that of the text from begin_of_text; the last window reaches back as far as
    it may. Source: lm-evaluation-harness 0.4.13, `get_rolling_token_windows` with one token of context.
    """

    text: str
    window: int | None = None
    images: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """A text that the model and a reference model read, in windows as a `Passage`. The response: `Divergence`."""

    text: str
    window: int = 512


Prompt = Completion | Chat | Choice | Passage | Compare


class Likelihood(NamedTuple):
    """What a model says of a passage: the natural logarithm of its probability, over `n_tokens`."""

    logprob: float
    n_tokens: int

    @classmethod
    def read(cls, response: str) -> "Likelihood | None":
        """Returns the likelihood that a response holds as a JSON object, None where it holds none."""
        found = _read_numbers(response, cls._fields)
        return cls(found[0], int(found[1])) if found else None

    def write(self) -> str:
        """Returns the response that `read` reads."""
        return json.dumps(self._asdict())


class Divergence(NamedTuple):
    """How far a model is from its reference over `n_tokens` predictions: the mean Kullback-Leibler divergence of the
    reference's distribution from the model's, in nats; the share of places where both find the same token best; by how
    many nats a token of the text costs the model more than the reference, which may be less than nothing."""

    divergence: float
    agreement: float
    excess: float
    n_tokens: int

    @classmethod
    def read(cls, response: str) -> "Divergence | None":
        """Returns the divergence that a response holds as a JSON object, None where it holds none."""
        found = _read_numbers(response, cls._fields)
        return cls(found[0], found[1], found[2], int(found[3])) if found else None

    def write(self) -> str:
        """Returns the response that `read` reads."""
        return json.dumps(self._asdict())


def _read_numbers(response: str, names: Sequence[str]) -> list[float] | None:
    try:
        document = json.loads(response)
        return [float(document[name]) for name in names]
    except (ValueError, TypeError, KeyError):
        return None


class Reader(Protocol):
    """What a task may ask of a model before it makes its items: how much it reads, and how it counts."""

    @property
    def context_len(self) -> int | None:
        """Tokens of the longest prompt with its answer; None where a server does not tell."""

    def count(self, text: str) -> int | None:
        """Returns how many tokens a text has; None where a server does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a response is worth in the task's unit, or None when it cannot be scored; what was read out of it; why."""

    value: float | None
    answer: str | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """An item with its responses (one, or several samples), their score, and what a model said beside each."""

    item: Item
    responses: tuple[str, ...]
    score: Score
    details: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Something else that the responses to a task show, reported as TASK/NAME.

    `value`: of an item that was asked, within 0..1; None where it does not concern it.
    """

    name: str
    metric: str
    value: Callable[[Judged], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A benchmark: what is asked, how, and what a response is worth.

    `items` reads the data; `prompt` asks; `score` judges one response; `gold` writes a right one, which documents the
    format and lets tests judge the judge; `chance` is what guessing reaches.

    With `vote` the samples of an item become one response by majority; without, their values are averaged.
    `macro` averages over groups instead of items. `summary` replaces averaging for measures of a whole corpus.

    unit         of its values: "share" is from 0 to 1 and shown in per cent, anything else, such as "bits per byte", is
                 shown as the number it is, and its items are neither right nor wrong
    best         whether a high value is good, or a low one
    temperature  of generated answers; several samples of an item need more than 0
    has_programs judging runs programs, which several processors may do at a time
    fit          returns the task for one model, such as with items as long as that reads; not asked without a model
    is_private   its authors ask not to show the items: prompts are written into no file
    also         what else its responses are measured by
    """

    name: str
    items: Callable[[Path | None], Iterable[Item]]
    prompt: Callable[[Item], Prompt]
    score: Callable[[Item, str], Score]
    gold: Callable[[Item], str]
    metric: str
    shots: int
    max_new_tokens: int
    chance: float
    samples: int = 1
    macro: bool = False
    id_field: str | None = None
    vote: Callable[[Sequence[str]], str] | None = None
    summary: Callable[[Sequence[Judged]], Estimate] | None = None
    unit: str = "share"
    best: Literal["high", "low"] = "high"
    temperature: float = 0.0
    has_programs: bool = False
    fit: "Callable[[Reader], Task] | None" = None
    is_private: bool = False
    also: tuple[Measure, ...] = ()


def matched(answer: str | None, accepted: Sequence[str] | str) -> Score:
    """Returns the score of an answer that must be one of the accepted texts; None is an answer that was not found."""
    texts = (accepted,) if isinstance(accepted, str) else tuple(accepted)
    if answer is None:
        return Score(value=0.0, answer=None, reason="no answer found in the response")
    right = answer in texts
    return Score(value=float(right), answer=answer, reason="" if right else f"expected {' or '.join(texts)}")


def user(*parts: str | Any) -> Chat:
    """Returns a chat of one user message; texts become text parts, anything else a picture."""
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in parts]
    return Chat(messages=({"role": "user", "content": content},))


# Scoring -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of a task: `score` over `n` scored items, `unscored` more that could not be, `missing` unanswered.

    `score` and `stderr` are None when nothing could be scored. `groups` has the estimate of each group.
    """

    task: str
    metric: str
    unit: str
    score: float | None
    stderr: float | None
    n: int
    unscored: int
    missing: int
    chance: float
    groups: Mapping[str, Estimate]
    judged: tuple[Judged, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the document of `--json`. An item is `correct` when its share is 1, null when it has none."""
        fields = ("task", "metric", "unit", "score", "stderr", "n", "unscored", "missing", "chance")
        return {
            **{name: getattr(self, name) for name in fields},
            "groups": {name: asdict(estimate) for name, estimate in self.groups.items()},
            "items": [
                {
                    "id": judged.item.id,
                    "group": judged.item.group,
                    "answer": judged.score.answer,
                    "value": judged.score.value,
                    "correct": None if judged.score.value is None or self.unit != "share" else judged.score.value == 1,
                    "reason": judged.score.reason,
                }
                for judged in self.judged
            ],
        }


def judge(task: Task, item: Item, responses: Sequence[str]) -> Judged:
    """Returns the score of one item's responses: of the majority with `vote`, otherwise the mean over the samples."""
    assert responses, "an item without a response is missing, not judged"
    if task.vote or len(responses) == 1:
        score = task.score(item, task.vote(responses) if task.vote else responses[0])
        return Judged(item=item, responses=tuple(responses), score=score)
    scores = [task.score(item, response) for response in responses]
    values = [score.value for score in scores if score.value is not None]
    value = sum(values) / len(values) if len(values) == len(scores) else None
    answers = " | ".join(str(score.answer) for score in scores)
    reason = "; ".join(dict.fromkeys(score.reason for score in scores if score.reason))
    return Judged(item=item, responses=tuple(responses), score=Score(value=value, answer=answers, reason=reason))


def summarize(task: Task, judged: Sequence[Judged], *, missing: int = 0) -> Report:
    """Returns the report of items that have been judged; those without a value are counted and left out."""
    scored = [each for each in judged if each.score.value is not None]
    groups: dict[str, list[Judged]] = defaultdict(list)
    for each in scored:
        groups[each.item.group].append(each)
    whole = _estimate(task, scored) if scored else None
    return Report(
        task=task.name,
        metric=task.metric,
        unit=task.unit,
        score=whole.value if whole else None,
        stderr=whole.stderr if whole else None,
        n=len(scored),
        unscored=len(judged) - len(scored),
        missing=missing,
        chance=task.chance,
        groups={name: _estimate(task, members) for name, members in sorted(groups.items()) if name},
        judged=tuple(judged),
    )


def measured(task: Task, report: Report) -> Iterator[tuple[Task, Report]]:
    """Yields what else a task's responses show: for each of its measures a task of that name, and its report."""
    asked = [each for each in report.judged if each.responses]
    for measure in task.also:
        own = replace(task, name=f"{task.name}/{measure.name}", metric=measure.metric, chance=0.0, also=())
        values = ((each, measure.value(each)) for each in asked)
        found = [replace(each, score=replace(each.score, value=value)) for each, value in values if value is not None]
        yield own, summarize(own, found)


def _estimate(task: Task, judged: Sequence[Judged]) -> Estimate:
    if task.summary:
        return task.summary(judged)
    return average(
        [each.score.value for each in judged if each.score.value is not None],
        [each.item.group for each in judged] if task.macro else None,
        [each.item.cluster or each.item.id for each in judged],
    )


def score_responses(
    task: Task, responses: Mapping[str, Sequence[str]], data: Path | None, *, limit: int | None = None
) -> Report:
    """Returns the report of recorded responses, by item id; items without one are counted as missing, not as wrong.

    `limit` takes the first items only. Raises ConfigError for a response to an item that the task does not have.
    """
    items = list(task.items(data))
    known = {item.id for item in items[:limit]} if limit is not None else set(responses)
    return score_items(task, items[:limit], {id_: each for id_, each in responses.items() if id_ in known})


def score_items(task: Task, items: Sequence[Item], responses: Mapping[str, Sequence[str]]) -> Report:
    """Returns the report of recorded responses to these items. Raises ConfigError for a response to another one."""
    strange = sorted(responses.keys() - {item.id for item in items})
    if strange:
        raise ConfigError(f"id: {strange[0]!r} is no item of {task.name}, which has e.g. {items[0].id!r}; correct it")
    judged = [judge(task, item, responses[item.id]) for item in items if responses.get(item.id)]
    return summarize(task, judged, missing=len(items) - len(judged))


def read_responses(task: Task, path: Path, data: Path | None) -> dict[str, list[str]]:
    """Reads recorded responses to a task's items; see `pick_responses`."""
    return pick_responses(task, path, list(task.items(data)))


def pick_responses(task: Task, path: Path, items: Sequence[Item]) -> dict[str, list[str]]:
    """Reads recorded responses: lines of `{"id", "response"}`, `response` a text or a list of samples.

    "id" may also have the name that the benchmark gives it (`task.id_field`), and be a number. Lines of another
    "task" are left out. When no line has an id they belong to the items in order. Several lines of one id are
    samples of it. Raises ConfigError for anything else.
    """
    found: dict[str, list[str]] = defaultdict(list)
    lines = [line for line in read_lines(path) if line.get("task", task.name) == task.name]
    names = ("id", task.id_field or "id")
    in_order = not any(name in line for line in lines for name in names)
    if in_order and len(lines) > len(items):
        raise ConfigError(
            f"id: {path} has {len(lines)} lines without one, and {task.name} {len(items)} items; name them"
        )
    for number, line in enumerate(lines):
        id = items[number].id if in_order else next((str(line[name]) for name in names if name in line), None)
        response = line.get("response")
        samples = [response] if isinstance(response, str) else response
        if id is None or not isinstance(samples, list) or not all(isinstance(each, str) for each in samples):
            raise ConfigError(
                f'response: {path}, line {number + 1} needs "id" and "response", a text or a list of them'
            )
        found[id] += samples
    return dict(found)
