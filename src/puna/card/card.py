"""The card of a model: all sections in the order of Llama 4's card, from records and configuration alone.

In: records. Out: a `Card`, which is Markdown, a page of HTML, or JSON. What no record shows is missing and says so;
what people declared has a mark. Not here: where records come from (`records`) and what each section says.

Source of the order: llama-models `models/llama4/MODEL_CARD.md`.
"""

from dataclasses import asdict, dataclass
from typing import Any

from puna.card import front, markdown, page, params
from puna.card.benchmarks import benchmarks
from puna.card.document import DECLARED, Items, Missing, Section, Text
from puna.card.information import considerations, information, use
from puna.card.quantization import quantization
from puna.card.records import Records
from puna.card.safeguards import safeguards
from puna.card.stages import stages
from puna.card.training import data, hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A card: what the hub reads, and what people read. `foot` says what the card was made from."""

    name: str
    front: dict[str, Any]
    sections: tuple[Section, ...]
    foot: tuple[str, ...]
    parameters: params.Parameters

    @property
    def missing(self) -> tuple[Missing, ...]:
        """All that no record shows."""
        return tuple(each for section in self.sections for each in section.missing())

    def markdown(self) -> str:
        """Returns the card as Markdown with its front matter."""
        return front.text_of(self.front) + "\n" + markdown.text(self.name, LEAD, self.sections, self.foot)

    def page(self) -> str:
        """Returns the card as a page of HTML that needs nothing else."""
        return page.page(self.name, LEAD, self.sections, self.foot)

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values: each block with its kind."""
        return {
            "name": self.name,
            "front_matter": self.front,
            "parameters": asdict(self.parameters),
            "sections": [_section(each) for each in self.sections],
            "missing": [each._asdict() for each in self.missing],
            "foot": list(self.foot),
        }


LEAD = (
    f"This card is made by `puna card` from records and the configuration. What carries {DECLARED} was declared by "
    "people, and no record shows it; what nobody recorded is named as missing."
)


def make(records: Records) -> Card:
    """Returns the card of a model."""
    found = (
        information(records),
        use(records),
        hardware(records),
        data(records),
        stages(records),
        benchmarks(records),
        quantization(records),
        safeguards(records),
        considerations(records),
    )
    sections = tuple(each for each in found if each is not None)
    made_from = ", ".join(f"{name} ({digest})" for name, digest in records.sources.items())
    return Card(
        name=records.declared.name or records.name,
        front=front.front_matter(records),
        sections=(*sections, _gaps(sections)),
        foot=(
            f"Made from the configuration and {made_from or 'no record'}. Numbers in brackets are SHA-256, shortened.",
        ),
        parameters=params.count(records.config),
    )


def _gaps(sections: tuple[Section, ...]) -> Section:
    """Returns the list of what is missing, at the end, where it cannot be overlooked."""
    found = [each for section in sections for each in section.missing()]
    block = (
        Items(tuple(each.what for each in found)) if found else Text("Nothing: every part of this card has a record.")
    )
    return Section(title="What is not on record", blocks=(block,))


def _section(section: Section) -> dict[str, Any]:
    return {
        "title": section.title,
        "blocks": [{"kind": type(block).__name__.lower(), **block._asdict()} for block in section.blocks],
        "sections": [_section(each) for each in section.sections],
    }
