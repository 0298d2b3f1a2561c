"""A model with every record that a card can show, written to a folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from puna.host import Gpu, Host
from puna.records import Energy, Evaluation, Source, Training, write_evaluations, write_training

HOST = Host(
    processor="Test CPU", instructions=("avx512_bf16",), cores=2, memory_bytes=16 * 10**9, system="Linux 6",
    gpus=(Gpu(name="H100", memory_bytes=80 * 10**9),), python="3.11", packages={"torch": "2.13.0"},
)  # fmt: skip


RECIPE = {
    "model": {"preset": "cria", "start": "/somebody/runs/earlier/model", "seed": 1},
    "batch": {"rows": 4, "row_len": 1024, "tiles": 0},
    "optimizer": {"lr": 0.005, "matrices": "muon"},
    "lora": {"rank": 8, "targets": ["attention", "experts"]},
    "data": {"documents": "/somebody/corpus.jsonl"},
}


def energy(**changes: Any) -> Energy:
    """One start: an hour on two processors of 700 W, PUE 1.5, 0.4 kg/kWh there, nothing bought."""
    plain: dict[str, Any] = {
        "phase": "pretrain", "date": "2026-03-01T00:00:00+00:00", "seconds": 3600.0, "processors": 2,
        "joules": {"declared": 5_040_000.0}, "tdp_watts": 700.0, "utilisation": 1.0, "pue": 1.5,
        "location_kg_per_kwh": 0.4, "market_kg_per_kwh": 0.0, "source": "the grid's yearly report", "kwh": 2.1,
        "location_kg": 0.84, "market_kg": None, "first_step": 0, "last_step": 10, "tokens": 1000, "version": "0.1.0",
    }  # fmt: skip
    return Energy(**plain | changes)


def training(**changes: Any) -> Training:
    """A run of ten steps, recorded whole."""
    plain: dict[str, Any] = {
        "phase": "pretrain", "name": "first", "recipe": RECIPE, "steps": 10,
        "planned": 10, "tokens": 1000, "learnt": 900, "tiles": 7, "seconds": 1800.0, "energy": (energy(),),
        "sources": {"books": Source(documents=3, tokens=800, passes=2.0)}, "hosts": (HOST,),
        "began": "2026-03-01T00:00:00+00:00", "ended": "2026-03-02T00:00:00+00:00", "version": "0.1.0",
    }  # fmt: skip
    return Training(**plain | changes)


def evaluation(**changes: Any) -> Evaluation:
    """MMLU, whole."""
    plain: dict[str, Any] = {
        "task": "mmlu", "benchmark": "MMLU", "table": "base", "shots": 5, "metric": "macro_avg/acc_char",
        "unit": "share", "best": "high", "score": 0.31, "stderr": 0.01, "low": 0.29, "high": 0.33, "n": 14042,
        "unscored": 0, "n_published": 14042, "chance": 0.25, "at_chance": False, "differences": (), "notes": (),
        "published": {"Llama 4 Scout": "79.6"}, "model": "toy", "model_hash": "0123456789abcdef", "settings": {},
        "data": "hub", "date": "2026-03-03T00:00:00+00:00", "version": "0.1.0",
    }  # fmt: skip
    return Evaluation(**plain | changes)


def rate(hits: int, n: int) -> dict[str, Any]:
    return {"hits": hits, "n": n, "rate": hits / n, "low": 0.0, "high": 1.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Every record there is."""
    write_training(tmp_path / "training.json", [training(), training(name="second")])
    few = evaluation(task="mgsm", benchmark="MGSM", table="chat", score=None, low=None, high=None, n=0, unscored=3,
                     differences=("3 of 2,750 items",), shots=0, metric="average/em")  # fmt: skip
    (tmp_path / "results.json").write_text(write_evaluations([evaluation(), few]))
    share = {"n": 4, "right": 1, "score": 0.25, "stderr": 0.2, "score_without_picture": 0.0}
    bits = {"n": 2, "n_bytes": 100, "bits_per_byte": 2.5, "bits_per_byte_without_picture": 2.6}
    held_out = {"exactness": {"scene": {"all": share, "de": share}}, "compression": {"stories": {"all": bits}}}
    documents: dict[str, Any] = {
        "evaluation.json": {"toy": held_out, "untrained": held_out},
        "quantization-int4.json": {
            "to": "int4", "parts": ["attention", "routed_experts"], "bytes": 20_000_000, "losses": [],
            "drift": {"n_tokens": 512, "divergence": 0.01, "divergence_error": 0.001, "agreement": 0.9,
                      "perplexity_full": 20.0, "perplexity_small": 20.5},
        },
        "safety.json": {
            "policy": "chatbot", "missing": [], "tone": {"n": 9, "rate": 0.0},
            "sets": {"benign/xstest": {arm: rate(1, 40) for arm in ("none", "input", "output", "both")}},
        },
        "redteam.json": {
            "policy": "chatbot",
            "passed": rate(2, 4), "succeeded": rate(0, 4),
            "disguises": {
                "hex": {"passed": rate(2, 4), "flagged": rate(4, 4), "succeeded": rate(0, 4), "stopped_by": []}
            },
        },
    }  # fmt: skip
    for name, document in documents.items():
        (tmp_path / name).write_text(json.dumps(document))
    (tmp_path / "card.toml").write_text(
        'name = "toy"\nsummary = "A toy."\nlicense = "apache-2.0"\nlanguages = ["en", "th"]\nintended = "Play."\n'
        'out_of_scope = "Work."\ndata_overview = "Books."\ndata_cutoff = "January 2026"\nlimits = ["It errs."]\n'
        '[held_out]\nscene = "drawings"\n'
    )
    (tmp_path / "model.safetensors").write_bytes(b"x" * 5000)
    return tmp_path
