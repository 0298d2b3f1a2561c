"""What people say of a model that no record shows: purpose, limits, data in words, from `card.toml` beside it.

In: the text of that file. Out: frozen values, all of them optional; on the card each carries a mark that says so. An
unknown key is an error, since a statement that is silently left out would be missed by nobody.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any, get_origin, get_type_hints

from puna.errors import ConfigError

FILE = "card.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """The tables of the file, flat.

    name, summary, developer, languages (ISO 639-1 codes), released, status, contact, base_model
    license, license_name, license_link   as the hub has them: a name only where the licence is "other"
    architecture        a line in addition to what the configuration shows
    intended, out_of_scope   uses; hardware, software: of training, where no record has them
    data_overview, data_cutoff, data_sets   the training data in words; hub ids of published sets
    held_out            set of the held-out record -> what it holds
    safeguards, limits  paragraphs
    attribution         who made what the model learnt from
    """

    name: str = ""
    summary: str = ""
    developer: str = ""
    license: str = ""
    license_name: str = ""
    license_link: str = ""
    languages: tuple[str, ...] = ()
    released: str = ""
    status: str = ""
    contact: str = ""
    base_model: str = ""
    architecture: str = ""
    intended: str = ""
    out_of_scope: str = ""
    hardware: str = ""
    software: str = ""
    data_overview: str = ""
    data_cutoff: str = ""
    data_sets: tuple[str, ...] = ()
    held_out: Mapping[str, str] = field(default_factory=dict)
    safeguards: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    attribution: str = ""


def read(text: str, where: str) -> Declared:
    """Returns what a file declares. Raises ConfigError that names the key and the remedy."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: is not TOML ({error}); write it again") from error
    kinds, known = get_type_hints(Declared), [each.name for each in fields(Declared)]
    for key in document:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            raise ConfigError(f"{where}: the key {key!r} is unknown; {_hint(near, known)}")
    return Declared(**{key: _value(value, kinds[key], f"{where}: {key}") for key, value in document.items()})


def _hint(near: list[str], known: list[str]) -> str:
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def _value(value: object, kind: object, where: str) -> Any:
    if kind is str:
        fits, wanted = isinstance(value, str), "a text"
    elif get_origin(kind) is tuple:
        fits, wanted = isinstance(value, list) and all(isinstance(each, str) for each in value), "a list of texts"
    else:
        fits = isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
        wanted = "a table of texts"
    if not fits:
        raise ConfigError(f"{where}: is {value!r}; give {wanted}")
    return tuple(value) if isinstance(value, list) else value
