"""Llama 4's model card, claim by claim: what it says as data, and what this package computes or does.

In words of our own, with the line of each claim in llama-models `models/llama4/MODEL_CARD.md` (commit 038acb9f). What
no computation can reach (how many tokens were read, until when) is held against what `puna card` declares and what the
system prompt says. `test_an_altered_claim_is_found_out` changes every part of every claim and wants each one noticed.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import pytest
from PIL import Image

from puna.card import card, memory, params, places, records
from puna.card.words import LANGUAGES
from puna.cli import _parser
from puna.eval import critical, report
from puna.eval.published import COLUMNS, ROWS, Row
from puna.eval.tasks import TASKS
from puna.eval.tasks.livecodebench import WINDOW
from puna.eval.tasks.mmmu_pro import MMMU_PRO, MMMU_PRO_STANDARD, MMMU_PRO_VISION
from puna.guard import content_prompt, persona, policy, tone
from puna.hardware import KINDS, usable
from puna.meter import Site, declared, emitted
from puna.presets import CRIA, MAVERICK, SCOUT
from puna.prompt.message import ImagePart, Message
from puna.prompt.render import Renderer
from puna.prompt.tokenizer import Tokenizer
from puna.quant.swap import FORMATS, Policy
from puna.records import Energy, write_training
from puna.serve.limits import Limits
from puna.train.prepare.language import LANGUAGES as FOUND_LANGUAGES
from puna.weights import hub
from tests.card.conftest import energy, evaluation, training

CRIA_FOLDER = hub.resolve("cria")
MODELS = {"Llama 4 Scout": SCOUT, "Llama 4 Maverick": MAVERICK}
FACTOR = 0.38695
"""kg of CO2 equivalent a kWh, PUE included. The card names none: its three rows have this one in common."""
H100 = 80 * 10**9
"""Bytes of "H100-80GB" by its name; a driver leaves programs more (`puna.hardware`)."""
RELEASED_AS = {"BF16": "none", "FP8": "fp8-experts", "int4": "int4-experts"}
"""How the card calls numbers -> the scheme of `card.memory` in which Meta stores them."""
GUARDS = {"Llama Guard": "content", "Prompt Guard": "injection", "Code Shield": "code"}


class Printed(NamedTuple):
    """A number as the card prints it, and how many of its digits mean something: of "400B" two, since it is 401.6."""

    text: str
    digits: int

    @property
    def value(self) -> float:
        number, letter = (self.text[:-1], self.text[-1]) if self.text[-1].isalpha() else (self.text, "")
        return float(number) * {"": 1.0, "M": 1e6, "B": 1e9, "T": 1e12}[letter]

    def __call__(self, measured: float) -> bool:
        """Says whether a measured number is printed so."""
        unit = self.unit
        return math.floor(measured / unit + 0.5) == round(self.value / unit)

    @property
    def unit(self) -> float:
        """The value of one in the last digit that means something."""
        return float(10 ** (math.floor(math.log10(self.value)) - self.digits + 1))


class Spent(NamedTuple):
    """A row of the table of energy: GPU hours, watts, tonnes of CO2 equivalent by location and by market."""

    hours: Printed
    watts: int
    tonnes: int
    market_tonnes: int


class Sum(NamedTuple):
    """The row below."""

    hours: Printed
    tonnes: int
    market_tonnes: int


class Scored(NamedTuple):
    """A row of a table of benchmarks, with the values of its four columns."""

    table: str
    benchmark: str
    shots: str
    metric: str
    values: tuple[str, ...]


class Fit(NamedTuple):
    """A model in some numbers on so many hosts of so many GPUs of 80 GB each."""

    model: str
    numbers: str
    hosts: int
    gpus: int


class Claim(NamedTuple):
    """What the card says at a line, as data, and whether that holds."""

    line: int
    says: str
    value: Any
    holds: Callable[[Any], bool]


# What holds -----------------------------------------------------------------------------------------------------------


def tonnes(hours: float, watts: float) -> tuple[float, float]:
    """What so many GPU hours emit, by location and by market, of which all was matched by clean energy."""
    found = emitted(declared(hours, watts), Site(location_kg_per_kwh=FACTOR, market_kg_per_kwh=0.0))
    assert found is not None and found.location_kg is not None and found.market_kg is not None
    return found.location_kg / 1000, found.market_kg / 1000


def energy_row(row: Spent) -> bool:
    location, market = tonnes(row.hours.value, row.watts)
    return round(location) == row.tonnes and round(market) == row.market_tonnes


def energy_sum(row: Sum) -> bool:
    rows = [claim.value for claim in CLAIMS if isinstance(claim.value, Spent)]
    added = sum(each.hours.value for each in rows)
    whole = tonnes(added, 700)[0]
    return (
        row.hours(added) and row.tonnes == sum(each.tonnes for each in rows) == round(whole) and row.market_tonnes == 0
    )


def scored(row: Scored) -> bool:
    found = [each for each in ROWS if (each.table, each.benchmark) == (row.table, row.benchmark)]
    return len(found) == 1 and same_row(found[0], row) and all(measures(name, row) for name in found[0].tasks)


def same_row(ours: Row, row: Scored) -> bool:
    return (ours.shots, ours.metric, ours.values) == (row.shots, row.metric, row.values)


def measures(name: str, row: Scored) -> bool:
    """Whether a task exists, has the row's shots and the row's metric."""
    task = TASKS.get(name)
    shots = 0 if row.shots == "-" else int(row.shots) if row.shots.isdigit() else -1
    return task is not None and task.shots == shots and task.metric.startswith(row.metric)


def fits(claim: Fit) -> bool:
    """Whether so many hosts are enough, with room for a context of 128K tokens, and one less is not."""
    if claim.model not in MODELS or claim.numbers not in RELEASED_AS or claim.hosts < 1 or claim.gpus < 1:
        return False
    config = MODELS[claim.model]
    weights = memory.model_bytes(config, memory.SCHEMES[RELEASED_AS[claim.numbers]])
    least = math.ceil((weights + memory.sequence_bytes(config.text, 2**17)) / usable(H100))
    return math.ceil(least / claim.gpus) == claim.hosts and claim.gpus in (1, 8)


def languages(names: tuple[str, ...]) -> bool:
    known = set(LANGUAGES.values())
    prompt = persona.default()
    codes = {code for code, name in LANGUAGES.items() if name in names}
    return set(names) == known and all(name in prompt for name in names) and codes == {*FOUND_LANGUAGES} - {"other"}


def pictures(n: int) -> bool:
    """Whether requests, guards and prompts take so many pictures, and requests no more."""
    return Limits().max_images == content_prompt.GUARD4.max_images == n == len(picture_runs(n))


def picture_runs(n: int) -> list[int]:
    """The positions in a prompt of n pictures at which one begins."""
    picture = ImagePart(Image.new("RGB", (32, 32)))
    prompt = Renderer(Tokenizer.load(CRIA_FOLDER), CRIA.vision).render([Message("user", (picture,) * n)])
    return [i for i, id_ in enumerate(prompt.ids) if id_ == CRIA.image_start_id]


def heads(columns: tuple[str, ...], table: str) -> bool:
    """Whether the table that `puna eval` prints has these columns, with ours and its certainty among them."""
    ours = evaluation(task=next(row.tasks[0] for row in ROWS if row.table == table), table=table)
    (made,) = report.tables([ours])
    return (*made.head[:4], *made.head[7:-1]) == columns and COLUMNS[table] == columns[4:]  # type: ignore[index]


def protected_by_default(is_on: bool) -> bool:
    commands = (["chat"], ["complete", "x"], ["serve"], ["batch", "in", "out"])
    parser = _parser()
    chosen = [policy.load(parser.parse_args(words).guard) for words in commands]
    return is_on == all(not each.is_off and each.mode == "strict" for each in chosen)


def guarded(names: tuple[str, ...]) -> bool:
    return {GUARDS.get(name) for name in names} == {*policy.load("chatbot").guards} - {"hidden"}


def judged(points: tuple[str, ...]) -> bool:
    stations = {"input prompt": "user_input", "output response": "assistant_output"}
    where = {point for point, station in policy.load("chatbot").stations.items() if "content" in station.guards}
    return {stations.get(point) for point in points} == where


def declares(model: str, key: str, wanted: str) -> bool:
    """Whether the card of a preset shows this declared text in the row of that name."""
    return f"| {key} | {wanted} † |" in card_of(model)


@cache
def card_of(model: str) -> str:
    place = places.find(model.rpartition(" ")[2].lower())
    return card.make(records.gather(place.name, MODELS[model], place.folders)).markdown()


def read(model: str, trillions: Printed) -> bool:
    said = next(each for each in card_of(model).splitlines() if each.startswith("About "))
    return said.startswith(f"About {trillions.text.removesuffix('T')} trillion tokens")


@cache
def parameters(model: str) -> params.Parameters:
    return params.count(MODELS[model])


def phrases(said: tuple[str, ...]) -> bool:
    judged = ([span.code for span in tone.find(f"{each[0].upper()}{each[1:]}, be kind.")] for each in said)
    return len(said) == 6 and all("card" in codes for codes in judged)


# What the card says ---------------------------------------------------------------------------------------------------

LANGUAGE_NAMES = (
    "Arabic", "English", "French", "German", "Hindi", "Indonesian", "Italian", "Portuguese", "Spanish", "Tagalog",
    "Thai", "Vietnamese",
)  # fmt: skip
HEAD = ("Category", "Benchmark", "# Shots", "Metric")
BASE_COLUMNS = (*HEAD, "Llama 3.1 70B", "Llama 3.1 405B", "Llama 4 Scout", "Llama 4 Maverick")
CHAT_COLUMNS = (*HEAD, "Llama 3.3 70B", "Llama 3.1 405B", "Llama 4 Scout", "Llama 4 Maverick")
MORALISING = (
    "it’s important to", "it’s crucial to", "it’s essential to", "it's unethical to", "it's worth noting", "remember",
)  # fmt: skip

SCOUT_NAME, MAVERICK_NAME = MODELS
IDENTITY: tuple[Claim, ...] = (
    Claim(5, "Scout has 16 experts", 16, lambda n: SCOUT.text.n_experts == n),
    Claim(5, "Maverick has 128 experts", 128, lambda n: MAVERICK.text.n_experts == n),
    Claim(
        9, "a mixture of experts", True, lambda is_so: is_so == all(each.text.moe_layers for each in MODELS.values())
    ),
    Claim(9, "pictures are fused early", True, lambda is_so: is_so == all(each.vision for each in MODELS.values())),
    Claim(26, "Scout activates 17B", Printed("17B", 2), lambda n: n(parameters(SCOUT_NAME).activated)),
    Claim(27, "Scout has 109B", Printed("109B", 3), lambda n: n(parameters(SCOUT_NAME).total)),
    Claim(37, "Maverick activates 17B", Printed("17B", 2), lambda n: n(parameters(MAVERICK_NAME).activated)),
    Claim(38, "Maverick has 400B", Printed("400B", 2), lambda n: n(parameters(MAVERICK_NAME).total)),
    Claim(31, "Scout's context is 10M", Printed("10M", 2), lambda n: n(SCOUT.text.context_len)),
    Claim(42, "Maverick's context is 1M", Printed("1M", 2), lambda n: n(MAVERICK.text.context_len)),
    Claim(32, "Scout read about 40T tokens", Printed("40T", 2), lambda n: read(SCOUT_NAME, n)),
    Claim(43, "Maverick read about 22T tokens", Printed("22T", 2), lambda n: read(MAVERICK_NAME, n)),
    Claim(33, "Scout knows until August 2024", "August 2024", lambda when: declares(SCOUT_NAME, "Data cutoff", when)),
    Claim(44, "so does Maverick", "August 2024", lambda when: declares(MAVERICK_NAME, "Data cutoff", when)),
    Claim(362, "the system prompt says so", "August 2024", lambda when: f"ends in {when}. " in persona.default()),
    Claim(48, "twelve languages", LANGUAGE_NAMES, languages),
    Claim(50, "released", "5 April 2025", lambda when: declares(SCOUT_NAME, "Released", when)),
    Claim(68, "tested with five pictures", 5, pictures),
)

ENERGY: tuple[Claim, ...] = (
    Claim(82, "what Scout's training took", Spent(Printed("5.0M", 2), 700, 1354, 0), energy_row),
    Claim(83, "what Maverick's training took", Spent(Printed("2.38M", 3), 700, 645, 0), energy_row),
    Claim(84, "both together", Sum(Printed("7.38M", 3), 1999, 0), energy_sum),
    Claim(74, "hours in the text", Printed("7.38M", 3), lambda n: energy_sum(Sum(n, 1999, 0))),
    Claim(78, "tonnes in the text", 1999, lambda n: energy_sum(Sum(Printed("7.38M", 3), n, 0))),
)

TABLES: tuple[Claim, ...] = (
    Claim(105, "columns for base models", BASE_COLUMNS, lambda columns: heads(columns, "base")),
    Claim(192, "columns for chat models", CHAT_COLUMNS, lambda columns: heads(columns, "chat")),
    Claim(248, "LiveCodeBench's window", ("2024-10-01", "2025-02-01"), lambda window: window == WINDOW),
    Claim(307, "MMMU-Pro is the mean of both", ("Standard", "Vision"), lambda both: MMMU_PRO.macro and both_of(both)),
)


def both_of(names: tuple[str, ...]) -> bool:
    parts = {f"mmmu_pro_{name.lower()}" for name in names}
    return parts == {MMMU_PRO_STANDARD.name, MMMU_PRO_VISION.name} and all(
        name.lower() in MMMU_PRO.metric for name in names
    )


BENCHMARKS: Mapping[int, Scored] = {
    116: Scored("base", "MMLU", "5", "macro_avg/acc_char", ("79.3", "85.2", "79.6", "85.5")),
    126: Scored("base", "MMLU-Pro", "5", "macro_avg/em", ("53.8", "61.6", "58.2", "62.9")),
    136: Scored("base", "MATH", "4", "em_maj1@1", ("41.6", "53.5", "50.3", "61.2")),
    146: Scored("base", "MBPP", "3", "pass@1", ("66.4", "74.4", "67.8", "77.6")),
    156: Scored("base", "TydiQA", "1", "average/f1", ("29.9", "34.3", "31.5", "31.7")),
    166: Scored("base", "ChartQA", "0", "relaxed_accuracy", ("", "", "83.4", "85.3")),
    175: Scored("base", "DocVQA", "0", "anls", ("", "", "89.4", "91.6")),
    203: Scored("chat", "MMMU", "0", "accuracy", ("", "", "69.4", "73.4")),
    212: Scored("chat", "MMMU Pro", "0", "accuracy", ("", "", "52.2", "59.6")),
    221: Scored("chat", "MathVista", "0", "accuracy", ("", "", "70.7", "73.7")),
    230: Scored("chat", "ChartQA", "0", "relaxed_accuracy", ("", "", "88.8", "90.0")),
    239: Scored("chat", "DocVQA (test)", "0", "anls", ("", "", "94.4", "94.4")),
    248: Scored("chat", "LiveCodeBench (10/01/2024-02/01/2025)", "0", "pass@1", ("33.3", "27.7", "32.8", "43.4")),
    260: Scored("chat", "MMLU Pro", "0", "macro_avg/acc", ("68.9", "73.4", "74.3", "80.5")),
    270: Scored("chat", "GPQA Diamond", "0", "accuracy", ("50.5", "49.0", "57.2", "69.8")),
    280: Scored("chat", "MGSM", "0", "average/em", ("91.1", "91.6", "90.6", "92.3")),
    290: Scored("chat", "MTOB (half book) eng->kgv/kgv->eng", "-", "chrF", ("", "", "42.2/36.6", "54.0/46.4")),
    299: Scored("chat", "MTOB (full book) eng->kgv/kgv->eng", "-", "chrF", ("", "", "39.7/36.3", "50.8/46.7")),
}

QUANTIZATION: tuple[Claim, ...] = (
    Claim(312, "Scout in int4 fits one GPU", Fit(SCOUT_NAME, "int4", 1, 1), fits),
    Claim(312, "Maverick in FP8 fits a host of eight", Fit(MAVERICK_NAME, "FP8", 1, 8), fits),
    Claim(312, "int4 is made while loading", "int4", lambda to: to in FORMATS and Policy.in_memory(to).to == to),
)

SAFEGUARDS: tuple[Claim, ...] = (
    Claim(358, "phrases to avoid", MORALISING, phrases),
    Claim(371, "three protections", ("Llama Guard", "Prompt Guard", "Code Shield"), guarded),
    Claim(371, "they are on by default", True, protected_by_default),
    Claim(375, "what a guard filters", ("input prompt", "output response"), judged),
    Claim(385, "critical risks", ("cbrne", "child_safety", "cyber"), lambda areas: areas == critical.AREAS),
)

CLAIMS = (
    *IDENTITY,
    *ENERGY,
    *TABLES,
    *(Claim(line, f"{row.benchmark}, {row.table}", row, scored) for line, row in BENCHMARKS.items()),
    *QUANTIZATION,
    *SAFEGUARDS,
)


def name_of(claim: Claim) -> str:
    return f"line {claim.line}: {claim.says}"


@pytest.mark.parametrize("claim", CLAIMS, ids=name_of)
def test_the_card_holds(claim: Claim) -> None:
    assert claim.holds(claim.value)


@pytest.mark.parametrize("claim", CLAIMS, ids=name_of)
def test_an_altered_claim_is_found_out(claim: Claim) -> None:
    others = list(altered(claim.value))
    assert others and [other for other in others if claim.holds(other)] == []


def altered(value: Any) -> Iterator[Any]:
    """A claim with one part of it changed as little as it can be, once for each part and way."""
    match value:
        case bool():
            yield not value
        case Printed():
            for step in (-1, 1):
                number = value.value + step * value.unit
                letter = value.text[-1]
                yield value._replace(text=f"{number / {'M': 1e6, 'B': 1e9, 'T': 1e12}[letter]:g}{letter}")
        case int():
            yield from (value - 1, value + 1)
        case str():
            yield from (f"{value}x", f"{value}0", value[:-1]) if value else ("x",)
        case tuple():
            for i, part in enumerate(value):
                for other in altered(part):
                    parts = [*value[:i], other, *value[i + 1 :]]
                    yield type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
            if not hasattr(value, "_fields"):
                yield from (value[:-1], value[1:])


# What follows from it -------------------------------------------------------------------------------------------------


def test_scout_in_int4_leaves_so_much_context_on_one_gpu() -> None:
    """Of 80 GB, 95 % are usable. Meta's recipe leaves 169K tokens in 16 bits and 351K in 8; ours, whose attention is
    in four bits too, more; and in a cache that knows no chunks it would be 48K."""
    left = {name: usable(H100) - memory.model_bytes(SCOUT, memory.SCHEMES[name]) for name in ("int4-experts", "int4")}
    tokens = {name: [memory.longest(SCOUT.text, n, size) for size in (2, 1)] for name, n in left.items()}
    assert KINDS["h100"].memory_bytes >= H100
    assert tokens == {"int4-experts": [169_152, 351_136], "int4": [213_216, 436_608]}
    assert left["int4-experts"] // memory.uniform_bytes(SCOUT.text, 1) == pytest.approx(48_436, abs=20)


def test_what_does_not_fit_does_not() -> None:
    assert not fits(Fit(SCOUT_NAME, "BF16", 1, 1)) and not fits(Fit(SCOUT_NAME, "FP8", 1, 1))
    assert not fits(Fit(MAVERICK_NAME, "BF16", 1, 8)) and fits(Fit(MAVERICK_NAME, "BF16", 2, 8))


def test_a_card_of_ours_prints_these_emissions_from_records(tmp_path: Any) -> None:
    def spent(row: Spent) -> Energy:
        location, market = tonnes(row.hours.value, row.watts)
        joules = declared(row.hours.value, row.watts).joules
        return replace(
            energy(), seconds=row.hours.value * 3600, processors=1, joules=joules, pue=1.0, location_kg=location * 1000,
            market_kg=market * 1000, kwh=row.hours.value * row.watts / 1000,
        )  # fmt: skip

    rows = {claim.line: claim.value for claim in ENERGY if isinstance(claim.value, Spent)}
    runs = [training(name=name, energy=(spent(row),)) for name, row in zip(MODELS, rows.values(), strict=True)]
    write_training(tmp_path / "training.json", runs)
    text = card.make(records.gather("both", SCOUT, [tmp_path])).markdown()
    lines = [line for line in text.splitlines() if line.count("|") == 9][2:]
    kilograms = [int(line.split("|")[7].replace(",", "")) for line in lines]
    assert [round(each / 1000) for each in kilograms] == [row.tonnes for row in rows.values()] + [1999]
    assert [line.split("|")[8].strip() for line in lines] == ["0", "0", "0"]
