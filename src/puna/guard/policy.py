"""A policy: which guard looks where, from which score its findings count, and what follows.

In: a TOML file, or the name of a preset, which is such a file too. Out: a frozen `Policy`, and by `decide` what one
verdict means under it. Whatever a file does not name is not checked, and an unknown key is an error. Not here: running
guards (`pipeline`), holding text back (`gate`).
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from puna.errors import ConfigError
from puna.guard.guard import Point
from puna.guard.verdict import Action, Span, Verdict, action_of

PRESETS = ("chatbot", "visual_qa", "coding_assistant", "agent", "off")
GUARDS = ("content", "injection", "code", "hidden")
ORDER: tuple[Action, ...] = ("allow", "flag", "rewrite", "escalate", "block")
"""Actions, each stricter than the one before."""

Mode = Literal["strict", "audit"]
OnError = Literal["block", "pass"]
Mark = Literal["always", "flagged", "never"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """From which score findings count, and what follows where they reach the upper bound.

    Without `flag_at` and `block_at` the guard's own recommendation counts. `codes` holds rules for single codes, which
    replace this one for them: `hit = "allow"` drops a code.
    """

    flag_at: float | None = None
    block_at: float | None = None
    hit: Action = "block"
    codes: Mapping[str, "Rule"] = field(default_factory=dict)

    @property
    def can_stop(self) -> bool:
        """Says whether anything found under this rule can stop or change an answer, rather than only count."""
        return any(each.hit not in {"allow", "flag"} for each in (self, *self.codes.values()))

    def action(self, recommended: Action, score: float) -> Action:
        """Returns what follows from a score and a guard's recommendation."""
        if self.flag_at is not None or self.block_at is not None:
            block_at = 2.0 if self.block_at is None else self.block_at  # out of reach: everything is a flag
            recommended = action_of(
                score, flag_at=block_at if self.flag_at is None else self.flag_at, block_at=block_at
            )
        if recommended == "allow":
            return "allow"
        return min("flag", self.hit, key=ORDER.index) if recommended == "flag" else self.hit


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """What happens at one point of a conversation: rules by guard, and what follows when a guard cannot judge.

    `on_error` is for a guard that fails, `on_skipped` for one that could not see all, such as a lexicon before a
    picture. `mark` says when text from outside is told apart from what people said, at the two points that have it.
    """

    guards: Mapping[str, Rule] = field(default_factory=dict)
    on_error: OnError = "block"
    on_skipped: OnError = "pass"
    mark: Mark = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """All stations, and what they share.

    `mode` "audit" lets everything pass and counts what "strict" would have done. `message` stands in for what was
    withheld, `notice` for a passage cut out of text from outside. Streams are held back until a guard has seen
    `window_chars` more, or with `hold` "answer" until the end; a check is made every `step_chars`, with
    `context_chars` of what was released before. `content` is where the content guard comes from: "auto", "lexicon",
    "judge", or a checkpoint of Llama Guard; `injection` likewise: "auto", or a folder with Prompt Guard 2.
    """

    name: str
    mode: Mode = "strict"
    message: str = "This was stopped by the protections of the system."
    notice: str = "[a passage was removed: it tried to give instructions]"
    timeout_seconds: float = 20.0
    hold: Literal["window", "answer"] = "window"
    window_chars: int = 320
    step_chars: int = 64
    context_chars: int = 256
    content: str = "auto"
    injection: str = "auto"
    stations: Mapping[Point, Station] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that change with everything that the policy says."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def is_off(self) -> bool:
        """Says whether nothing is checked anywhere."""
        return not any(station.guards for station in self.stations.values())

    @property
    def guards(self) -> tuple[str, ...]:
        """The guards that are needed, in the order of `GUARDS`."""
        needed = {name for station in self.stations.values() for name in station.guards}
        return tuple(name for name in GUARDS if name in needed)

    def at(self, point: Point) -> Station:
        """Returns what happens at a point: nothing where the file does not name it."""
        return self.stations.get(point, Station())


class Decision(NamedTuple):
    """What a verdict means under a policy: the strictest action of its codes, and the codes and places that led to it.

    `failed` says that the guard could not judge all of it, so that the action is what the station says of that.
    """

    action: Action
    codes: tuple[str, ...]
    spans: tuple[Span, ...]
    failed: bool


def decide(station: Station, guard: str, verdict: Verdict) -> Decision:
    """Returns what follows from the verdict of the guard of that name at a station.

    A verdict of which not everything was judged follows the station, unless what was judged is bad already. Findings
    that only have dropped codes are dropped; a recommendation without any code counts as the rule says.
    """
    rule = station.guards[guard]
    kept = {code: _of_code(rule, code, verdict) for code in verdict.codes}
    actions = list(kept.values()) if verdict.codes else [rule.action(verdict.action, verdict.score)]
    action = max(actions, key=ORDER.index)
    if verdict.status == "error":
        return Decision("block" if station.on_error == "block" else "allow", (), (), True)
    if verdict.status == "skipped" and action in {"allow", "flag"}:
        return Decision("block" if station.on_skipped == "block" else action, (), (), True)
    codes = tuple(code for code in verdict.codes if kept[code] != "allow")
    spans = tuple(span for span in verdict.spans if kept.get(span.code, action) == action)
    return Decision(action, codes, spans if action != "allow" else (), False)


def _of_code(rule: Rule, code: str, verdict: Verdict) -> Action:
    score = max((span.score for span in verdict.spans if span.code == code), default=verdict.score)
    return rule.codes.get(code, rule).action(verdict.action, verdict.scores.get(code, score))


# Files ----------------------------------------------------------------------------------------------------------------


def load(name_or_path: str | Path) -> Policy:
    """Returns a preset by its name, or the policy in a file. Raises ConfigError that names the key and the remedy."""
    if name_or_path in PRESETS:
        source = files("puna").joinpath("assets", "guard", "policies", f"{name_or_path}.toml")
        return read(source.read_text("utf-8"), str(name_or_path))
    path = Path(name_or_path)
    if not path.is_file():
        raise ConfigError(f"policy {str(name_or_path)!r} is neither a file nor one of {', '.join(PRESETS)}")
    try:
        return read(path.read_text("utf-8"), path.stem)
    except UnicodeDecodeError as error:
        raise ConfigError(f"policy {path}: is not UTF-8 ({error.reason}); write it again") from error


def read(text: str, name: str) -> Policy:
    """Returns the policy that a TOML text describes. Raises ConfigError that names the key and the remedy."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"policy {name}: is not TOML ({error}); write it again") from error
    points = get_args(Point)
    stations = {
        point: _station(document.pop(point), f"policy {name}: {point}") for point in points if point in document
    }
    shared = {each.name for each in fields(Policy)} - {"name", "stations"}
    _refuse_unknown(document, shared | set(points), f"policy {name}")
    policy = Policy(name=name, stations=stations, **document)
    _check(policy)
    return policy


def _check(policy: Policy) -> None:
    where = f"policy {policy.name}"
    _require_one_of(policy.mode, get_args(Mode), f"{where}: mode")
    _require_one_of(policy.hold, ("window", "answer"), f"{where}: hold")
    for each in ("message", "notice", "content", "injection"):
        value = getattr(policy, each)
        _require(isinstance(value, str) and bool(value.strip()), f"{where}: {each}", value, "a text")
    _require(
        _is_number(policy.timeout_seconds) and policy.timeout_seconds > 0,
        f"{where}: timeout_seconds",
        policy.timeout_seconds,
        "a number above 0",
    )
    for each in ("window_chars", "step_chars"):
        value = getattr(policy, each)
        _require(type(value) is int and value >= 1, f"{where}: {each}", value, "a whole number, 1 or more")
    _require(
        type(policy.context_chars) is int and policy.context_chars >= 0,
        f"{where}: context_chars",
        policy.context_chars,
        "a whole number, 0 or more",
    )


def _station(table: object, where: str) -> Station:
    known = _table(table, where)
    _refuse_unknown(known, {*GUARDS, "on_error", "on_skipped", "mark"}, where)
    station = Station(
        guards={guard: _rule(known[guard], f"{where}.{guard}") for guard in GUARDS if guard in known},
        on_error=known.get("on_error", "block"),
        on_skipped=known.get("on_skipped", "pass"),
        mark=known.get("mark", "never"),
    )
    _require_one_of(station.on_error, get_args(OnError), f"{where}.on_error")
    _require_one_of(station.on_skipped, get_args(OnError), f"{where}.on_skipped")
    _require_one_of(station.mark, get_args(Mark), f"{where}.mark")
    return station


def _rule(table: object, where: str, *, of_code: bool = False) -> Rule:
    known = _table(table, where)
    _refuse_unknown(known, {"flag_at", "block_at", "hit"} | (set() if of_code else {"codes"}), where)
    codes = _table(known.get("codes", {}), f"{where}.codes")
    rule = Rule(
        flag_at=known.get("flag_at"),
        block_at=known.get("block_at"),
        hit=known.get("hit", "block"),
        codes={code: _rule(each, f"{where}.codes.{code}", of_code=True) for code, each in codes.items()},
    )
    _require_one_of(rule.hit, ORDER, f"{where}.hit")
    for each in ("flag_at", "block_at"):
        value = getattr(rule, each)
        _require(value is None or (_is_number(value) and 0 <= value <= 1), f"{where}.{each}", value, "a number 0 to 1")
    return rule


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: is {value!r}; write a table")
    return dict(value)


def _refuse_unknown(table: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in table:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise ConfigError(f"{where}: the key {key!r} is unknown; {hint}")


def _require_one_of(value: object, known: tuple[str, ...], where: str) -> None:
    _require(value in known, where, value, f"one of {', '.join(known)}")


def _require(condition: bool, where: str, value: object, remedy: str) -> None:
    if not condition:
        raise ConfigError(f"{where}: is {value!r}; give {remedy}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
