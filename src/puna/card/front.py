"""The head of a model card that Hugging Face's hub reads: licence, languages, task, results, emissions.

In: records. Out: a mapping of JSON values, and its text between two lines of dashes. A result that must not be compared
with published ones stays out of `model-index`, which leaderboards read; so do emissions that nobody knows.

Source: huggingface/hub-docs `modelcard.md`, and its page on `co2_eq_emissions`, which are in grams. The text is YAML in
its plainest form; scalars are written as JSON, which YAML contains.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from puna.card.records import Records
from puna.card.training import METHODS, emissions_kg
from puna.records import Evaluation

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.@/+-]*")
_RESERVED = frozenset({"true", "false", "yes", "no", "on", "off", "y", "n", "null"})


def front_matter(records: Records) -> dict[str, Any]:
    """Returns what the hub is told; keys for which there is nothing are left out."""
    said, config = records.declared, records.config
    text = config.text
    kinds = ["llama4", "mixture-of-experts" if text.moe_layers else "dense", "puna"]
    return {
        key: value
        for key, value in {
            "license": said.license,
            "license_name": said.license_name,
            "license_link": said.license_link,
            "language": list(said.languages),
            "library_name": "transformers",
            "pipeline_tag": "text-generation" if config.vision is None else "image-text-to-text",
            "base_model": said.base_model,
            "datasets": list(said.data_sets),
            "tags": kinds,
            "co2_eq_emissions": _emissions(records),
            "model-index": _index(records),
        }.items()
        if value
    }


def text_of(front: Mapping[str, Any]) -> str:
    """Returns the head of a card: YAML between dashes."""
    return "\n".join(["---", *_lines(front, ""), "---", ""])


def _emissions(records: Records) -> dict[str, Any]:
    kilograms = emissions_kg(records.training)
    if kilograms is None:
        return {}
    energy = [each for run in records.training for each in run.energy]
    methods = sorted({METHODS.get(method, method) for each in energy for method in each.joules or {}})
    hosts = list(dict.fromkeys(host.processor for run in records.training for host in run.hosts))
    phases = list(dict.fromkeys(run.phase for run in records.training))
    return {
        "emissions": round(1000 * kilograms, 3),
        "source": "; ".join([*methods, *dict.fromkeys(each.source for each in energy if each.source)]),
        "training_type": ", ".join("pre-training" if phase == "pretrain" else phase for phase in phases),
        **({"hardware_used": "; ".join(hosts)} if hosts else {}),
    }


def _index(records: Records) -> list[dict[str, Any]]:
    comparable = [each for each in records.evaluations if each.score is not None and not each.differences]
    if not comparable:
        return []
    return [{"name": records.declared.name or records.name, "results": [_result(each) for each in comparable]}]


def _result(each: Evaluation) -> dict[str, Any]:
    assert each.score is not None, "only what was scored comes here"
    value = round(100 * each.score, 2) if each.unit == "share" else round(each.score, 4)
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": each.benchmark, "type": each.task},
        "metrics": [{"type": each.metric, "value": value, "name": f"{each.metric}, {each.shots} shots"}],
    }


def _lines(value: Any, indent: str) -> Iterator[str]:
    """Yields a mapping or a list, entry by entry; mappings and lists within lists begin behind their dash."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            if isinstance(each, Mapping | list):
                yield f"{indent}{key}:"
                yield from _lines(each, f"{indent}  ")
            else:
                yield f"{indent}{key}: {_scalar(each)}"
    else:
        for each in value:
            if isinstance(each, Mapping | list):
                first, *rest = _lines(each, f"{indent}  ")
                yield f"{indent}- {first.removeprefix(indent + '  ')}"
                yield from rest
            else:
                yield f"{indent}- {_scalar(each)}"


def _scalar(value: Any) -> str:
    """Returns a scalar; words stand bare where YAML takes them for nothing else, such as Norwegian for false."""
    is_word = isinstance(value, str) and _WORD.fullmatch(value) and value.lower() not in _RESERVED
    return str(value) if is_word else json.dumps(value, ensure_ascii=False)
