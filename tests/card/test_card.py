"""A card shows what is on record, marks what is declared, and names what is missing."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

from puna.card import card, records
from puna.card.document import Table
from puna.presets import CRIA, SCOUT
from puna.records import write_training
from tests.card.conftest import training


def made(folder: Path) -> card.Card:
    return card.make(records.gather("toy", CRIA, [folder]))


def rows_of(text: str, first: str) -> list[list[str]]:
    """The cells of all table rows whose first cell is this."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in cells if row[0] == first]


def test_a_card_shows_all_that_is_on_record(folder: Path) -> None:
    text = made(folder).markdown()
    assert "7.29 M activated, 15.7 M in total" in text and "English and Thai †" in text
    assert "2 cores of Test CPU with avx512_bf16, 16 GB of memory, H100 of 80 GB" in text
    assert rows_of(text, "MMLU") == [
        ["MMLU", "5", "macro_avg/acc_char", "", "31.0", "29.0 to 33.0", "14,042 of 14,042", "79.6"]
    ]
    assert rows_of(text, "MGSM")[0][3:6] == ["3 unscored, not comparable", "–", "–"]
    assert rows_of(text, "scene: drawings †")[0][1:] == ["4", "25.0 ± 20.0", "0.0", "25.0"]
    assert rows_of(text, "int4") == [
        ["int4", "attention, routed experts", "20 MB", "512", "0.01000", "0.00100", "90.0", "20.000", "20.500"]
    ]
    assert (
        rows_of(text, "hex") == [["hex", "–", "2 of 4", "4 of 4", "0 of 4"]]
        and rows_of(text, "books") == [["books", "3", "800", "2"]] * 2
    )
    assert rows_of(text, "Training tokens") == [["Training tokens", "2,000 in 2 runs"]]


def test_settings_of_runs_stand_side_by_side_without_anybodys_folders(folder: Path) -> None:
    text = made(folder).markdown()
    assert rows_of(text, "optimizer.lr") == [["optimizer.lr", "0.005", "0.005"]]
    assert rows_of(text, "model.start") == [["model.start", "earlier/model", "earlier/model"]]
    assert rows_of(text, "lora.targets")[0][1] == "attention, experts" and not rows_of(text, "batch.tiles")
    assert "somebody" not in text


def test_the_base_of_a_tuned_model_is_on_its_card(folder: Path) -> None:
    tuned = {"model": {"base": "cria"}, "objective": {"kind": "supervised"}}
    write_training(folder / "training.json", [training(name="tuned", phase="supervised", recipe=tuned)])
    text = made(folder).markdown()
    assert rows_of(text, "Base model") == [["Base model", "cria"]] and rows_of(text, "objective.kind")


def test_energy_adds_up_over_runs_and_names_its_method(folder: Path) -> None:
    text = made(folder).markdown()
    method = "not metered: hours times declared watts"
    assert rows_of(text, "first")[1] == ["first", method, "2", "700", "1.5", "2.1", "0.84", "–"]
    assert rows_of(text, "**Total**")[1] == ["**Total**", "", "4", "–", "–", "4.2", "1.68", "–"]
    assert "Factors: the grid's yearly report." in text


def test_a_run_whose_energy_nobody_knows_leaves_emissions_out(folder: Path) -> None:
    write_training(folder / "training.json", [training(), training(name="dark", energy=())])
    card_ = made(folder)
    assert "co2_eq_emissions" not in card_.front
    assert "energy and emissions of dark" in [each.what for each in card_.missing]


def test_emissions_for_the_hub_are_grams(folder: Path) -> None:
    front = made(folder).front
    assert front["co2_eq_emissions"]["emissions"] == 1680.0
    assert front["co2_eq_emissions"]["training_type"] == "pre-training"


def test_front_matter_is_yaml_that_says_the_same_and_holds_comparable_results_only(folder: Path) -> None:
    card_ = made(folder)
    head = card_.markdown().split("---\n")[1]
    assert yaml.safe_load(head) == json.loads(json.dumps(card_.front))
    (index,) = card_.front["model-index"]
    assert [each["dataset"]["type"] for each in index["results"]] == ["mmlu"]
    assert card_.front["license"] == "apache-2.0" and card_.front["pipeline_tag"] == "image-text-to-text"


def test_the_hubs_own_reader_takes_the_card(folder: Path) -> None:
    from huggingface_hub import ModelCard

    read = ModelCard(made(folder).markdown())
    assert read.data.license == "apache-2.0" and read.data.language == ["en", "th"]
    (result,) = read.data.eval_results
    assert (result.dataset_type, result.metric_value) == ("mmlu", 31.0)


def test_without_records_a_card_has_sizes_and_names_all_else_as_missing() -> None:
    card_ = card.make(records.gather("scout", SCOUT, []))
    text = card_.markdown()
    assert "17.2 B activated, 109 B in total" in text and rows_of(text, "Licence") == [["Licence", "not recorded"]]
    missing = {each.what for each in card_.missing}
    assert {"the licence", "how the weights came to be", "benchmarks of the card", "what a red team found"} <= missing
    assert all(each.what in text.split("What is not on record")[1] for each in card_.missing)
    assert not re.search(r"\bNone\b|\bnan\b", text)


def test_a_card_with_every_record_misses_only_what_nobody_can_have(folder: Path) -> None:
    assert [each.what for each in made(folder).missing] == [
        "weapons of mass destruction, child safety and cyber attacks"
    ]


class Page(HTMLParser):
    """What a page would fetch, and its open tags."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [
            str(value) for name, value in attrs if name in {"src", "srcset"} or (tag, name) == ("link", "href")
        ]
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_from_elsewhere_and_nothing_runs_in_it(folder: Path) -> None:
    text = (folder / "card.toml").read_text() + 'developer = "<script>alert(1)</script> [x](javascript:alert(1))"\n'
    (folder / "card.toml").write_text(text.replace("[held_out]", "").replace('scene = "drawings"', ""))
    written, page = made(folder).page(), Page()
    page.feed(written)
    assert not page.open and not page.fetched
    assert "<script" not in written and 'href="javascript' not in written and "url(" not in written
    assert "prefers-color-scheme: dark" in written and "&lt;script&gt;" in written


def test_every_table_is_as_wide_as_its_head(folder: Path) -> None:
    def tables(section: dict[str, Any]) -> list[dict[str, Any]]:
        own = [block for block in section["blocks"] if block["kind"] == Table.__name__.lower()]
        return own + [table for each in section["sections"] for table in tables(each)]

    document = made(folder).to_json()
    json.dumps(document)
    found = [table for section in document["sections"] for table in tables(section)]
    assert len(found) > 10 and all(len(row) == len(table["head"]) for table in found for row in table["rows"])
