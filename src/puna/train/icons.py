"""Icon sets in Iconify's JSON layout: the drawing of an emoji as SVG.

In: the folder of an unpacked package with `icons.json` and, in some packages, `chars.json` (names by code points).
Out: SVG text. A set without `chars.json` is asked by the emoji's English CLDR name, as its icons are called. It draws
nothing and knows no licences: recipes/cria-sources.toml says which sets may be used.

Source: the types of Iconify's JSON (iconify.design/docs/types/iconify-json): an icon's body, width, height, left and
top, of which those of the set are the defaults; an alias names its parent.
"""

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.errors import ConfigError
from puna.train.sources import Emoji

SQUARE = 16  # units; Iconify's default for the width and the height of an icon


@dataclass(frozen=True, slots=True, kw_only=True)
class IconSet:
    """The icons of one set by name, the defaults of their boxes, and names by code points without U+FE0F."""

    icons: Mapping[str, Mapping[str, Any]]
    parents: Mapping[str, str]
    box: Mapping[str, float]
    names: Mapping[str, str]

    def svg(self, emoji: Emoji) -> str | None:
        """The SVG document that shows `emoji`, or None where the set has none."""
        name = self.names.get(emoji.code, icon_name(emoji.names["en"]))
        icon = self.icons.get(self.parents.get(name, name))
        if icon is None:
            return None
        left, top, width, height = (icon.get(key, self.box[key]) for key in ("left", "top", "width", "height"))
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
        )


def read_icons(folder: Path) -> IconSet:
    """The icon set in `folder`. Raises ConfigError where it has no icons.json."""
    file, chars = folder / "icons.json", folder / "chars.json"
    if not file.is_file():
        raise ConfigError(f"icons: {folder.parent.name!r} has no icons.json; unpack an @iconify-json package there")
    found = json.loads(file.read_text("utf-8"))
    named = json.loads(chars.read_text("utf-8")) if chars.is_file() else {}
    return IconSet(
        icons=found["icons"],
        parents={name: alias["parent"] for name, alias in found.get("aliases", {}).items()},
        box={
            key: found.get(key, SQUARE if key in ("width", "height") else 0)
            for key in ("left", "top", "width", "height")
        },
        names={code.lower().replace("-fe0f", ""): name for code, name in named.items()},
    )


def icon_name(name: str) -> str:
    """A name as icons are called: "Côte d'Ivoire" is cote-d-ivoire."""
    plain = unicodedata.normalize("NFD", name.lower()).encode("ascii", "ignore").decode()
    return re.sub("[^a-z0-9]+", "-", plain).strip("-")
