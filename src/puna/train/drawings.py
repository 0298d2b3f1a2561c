"""Pictures whose content is known, because this file drew them: scenes, charts, pages and receipts.

In: a `random.Random` and, where letters are drawn, the fonts. Out: a PIL picture together with what it shows. The same
generator state gives the same picture, byte for byte, with the same version of Pillow and the same fonts. It does not
know questions or languages beyond the choice of a font: `questions` asks about what is drawn here.

Sizes are in pixels. Most pictures are 96 pixels wide, which is one tile of cria and therefore the cheapest picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin
from pathlib import Path
from random import Random
from typing import Literal

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from puna.errors import ConfigError

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "orange": (250, 140, 20),
    "yellow": (250, 215, 30),
    "green": (40, 160, 60),
    "blue": (40, 90, 220),
    "purple": (130, 50, 170),
    "pink": (250, 140, 185),
    "brown": (130, 80, 40),
    "black": (20, 20, 20),
    "gray": (140, 140, 140),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
PAPERS = ((255, 255, 255), (255, 255, 255), (245, 240, 225), (230, 240, 250), (232, 246, 232))
TILE = 96  # pixels on a side of one tile of cria
PAPER_MARGIN = 5  # pixels left free around written text

Arrangement = Literal["row", "column", "scattered"]
ChartKind = Literal["bar", "line", "pie"]
Ink = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One coloured shape of a scene; `x`, `y` are its centre and `radius` half its size, in pixels."""

    shape: str
    color: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Shapes on plain paper; `figures` run left to right in a row and top to bottom in a column."""

    image: Image.Image
    arrangement: Arrangement
    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart of small whole numbers; labels, colours and values belong together by position."""

    image: Image.Image
    kind: ChartKind
    labels: tuple[str, ...]
    colors: tuple[str, ...]
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Lines of large text on paper."""

    image: Image.Image
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Items with their prices, and the total below a rule."""

    image: Image.Image
    items: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        """The sum of the prices."""
        return sum(price for _, price in self.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fonts:
    """Where the Noto Sans fonts lie, and which one writes a language.

    Source: Debian package fonts-noto-core 20201225-1, SIL Open Font License 1.1.
    """

    folder: Path

    def __post_init__(self) -> None:
        """Raises ConfigError where the folder holds no NotoSans-Bold.ttf."""
        if not (self.folder / "NotoSans-Bold.ttf").is_file():
            raise ConfigError(
                f"fonts: {self.folder.name!r} has no NotoSans-Bold.ttf; unpack the Debian package fonts-noto-core"
            )

    def load(self, language: str, size: int) -> ImageFont.FreeTypeFont:
        """The bold font that covers `language` (Latin for every language not named here) at `size` pixels."""
        script = {"ar": "Arabic", "hi": "Devanagari", "th": "Thai"}.get(language, "")
        return ImageFont.truetype(str(self.folder / f"NotoSans{script}-Bold.ttf"), size)


def draw_scene(rng: Random, *, n_figures: int, arrangement: Arrangement, size: int = TILE) -> Scene:
    """One to four shapes in a row or a column, or one to six shapes scattered over a grid of two rows.

    No two figures of a row or column have the same colour and shape, so each can be named. A scattered scene repeats
    one or two kinds of figure, so that there is something to count. Raises ConfigError for another number of figures.
    """
    most = 6 if arrangement == "scattered" else 4
    if not 1 <= n_figures <= most:
        raise ConfigError(f"n_figures: {n_figures} does not fit a {arrangement}; choose 1 to {most}")
    kinds = _distinct_kinds(rng, 2 if arrangement == "scattered" else n_figures)
    drawn = [rng.choice(kinds) for _ in range(n_figures)] if arrangement == "scattered" else kinds
    centres = _centres(rng, n_figures, arrangement, size)
    radius = _radius(n_figures, arrangement, size)
    image = Image.new("RGB", (size, size), rng.choice(PAPERS))
    pen = ImageDraw.Draw(image)
    figures = tuple(
        Figure(shape=shape, color=color, x=x, y=y, radius=radius * rng.uniform(0.85, 1.0))
        for (shape, color), (x, y) in zip(drawn, centres, strict=True)
    )
    for figure in figures:
        _draw_figure(pen, figure)
    return Scene(image=image, arrangement=arrangement, figures=figures)


def draw_chart(rng: Random, fonts: Fonts, *, kind: ChartKind, labels: Sequence[str], size: int = TILE) -> Chart:
    """A chart with one value from 1 to 9 for each label; the highest and the lowest value occur once.

    A bar or a point carries its value as a digit; a slice of a pie carries only its label. Raises ConfigError for fewer
    than two or more than five labels.
    """
    if not 2 <= len(labels) <= 5:
        raise ConfigError(f"labels: a chart shows 2 to 5 of them, not {len(labels)}")
    values = _values_with_one_extreme(rng, len(labels))
    colors = tuple(rng.sample([name for name in COLORS if name != "black"], len(labels)))
    if kind == "line":
        colors = (colors[0],) * len(labels)
    image = Image.new("RGB", (size, size), (255, 255, 255))
    pen = ImageDraw.Draw(image)
    chart = Chart(image=image, kind=kind, labels=tuple(labels), colors=colors, values=values)
    painter = {"bar": _draw_bars, "line": _draw_line, "pie": _draw_pie}[kind]
    painter(pen, chart, fonts.load("en", size // 6 if max(map(len, labels)) == 1 else size // 12), size)
    return chart


def draw_page(rng: Random, fonts: Fonts, *, lines: Sequence[str], language: str, size: int = TILE) -> Page:
    """The lines, centred, as large as they fit on a square of paper, in a dark ink."""
    image = Image.new("RGB", (size, size), rng.choice(PAPERS))
    pen = ImageDraw.Draw(image)
    ink = COLORS[rng.choice(("black", "black", "blue", "red", "green", "purple"))]
    step = (size - 2 * PAPER_MARGIN) // max(2, len(lines))
    for number, line in enumerate(lines):
        font = _largest_font(fonts, language, line, width=size - 2 * PAPER_MARGIN, height=step)
        middle = size / 2 + (number - (len(lines) - 1) / 2) * step
        pen.text((size / 2, middle), line, font=font, fill=ink, anchor="mm")
    return Page(image=image, lines=tuple(lines))


def draw_receipt(rng: Random, fonts: Fonts, *, items: Sequence[tuple[str, int]], size: int = TILE) -> Receipt:
    """A receipt in English: one line for each item, names at the left, whole prices at the right, the total below.

    Raises ConfigError for fewer than one or more than four items.
    """
    if not 1 <= len(items) <= 4:
        raise ConfigError(f"items: a receipt lists 1 to 4 of them, not {len(items)}")
    image = Image.new("RGB", (size, size), rng.choice(PAPERS))
    pen = ImageDraw.Draw(image)
    receipt = Receipt(image=image, items=tuple(items))
    step = (size - 2 * PAPER_MARGIN) / (len(items) + 1)
    font = fonts.load("en", min(int(step * 0.72), size // 6))
    for number, (name, price) in enumerate((*items, ("total", receipt.total))):
        middle = PAPER_MARGIN + (number + 0.5) * step
        pen.text((PAPER_MARGIN, middle), name, font=font, fill=COLORS["black"], anchor="lm")
        pen.text((size - PAPER_MARGIN, middle), str(price), font=font, fill=COLORS["black"], anchor="rm")
    rule = size - PAPER_MARGIN - step
    pen.line((PAPER_MARGIN, rule, size - PAPER_MARGIN, rule), fill=COLORS["black"], width=max(1, size // 96))
    return receipt


def vary_picture(rng: Random, picture: Image.Image, *, size: int) -> Image.Image:
    """The picture (with transparency) a little turned, smaller and shifted, on pale paper of a random colour.

    It is never mirrored: left and right have a meaning in many emoji.
    """
    paper = tuple(rng.randint(200, 255) for _ in range(3))
    side = round(size * rng.uniform(0.75, 1.0))
    turned = picture.convert("RGBA").rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC)
    small = turned.resize((side, side), Image.Resampling.LANCZOS)
    image = Image.new("RGB", (size, size), paper)
    image.paste(small, (rng.randint(0, size - side), rng.randint(0, size - side)), small)
    return image


def restyle_picture(rng: Random, picture: Image.Image) -> Image.Image:
    """The picture (with transparency) a little paler or stronger, lighter or darker; one in four gets a dark outline.

    Colours keep their hue, which has a meaning in many emoji.
    """
    red, green, blue, opacity = picture.convert("RGBA").split()
    colored = Image.merge("RGB", (red, green, blue))
    for enhance, least, most in (
        (ImageEnhance.Color, 0.5, 1.5),
        (ImageEnhance.Brightness, 0.85, 1.15),
        (ImageEnhance.Contrast, 0.8, 1.2),
    ):
        colored = enhance(colored).enhance(rng.uniform(least, most))
    colored.putalpha(opacity)
    if rng.random() >= 0.25:
        return colored
    width = max(3, picture.width // 32 * 2 + 1)  # odd, as the filter wants it
    outlined = Image.new("RGBA", picture.size, (*COLORS["black"], 0))
    outlined.putalpha(opacity.filter(ImageFilter.MaxFilter(width)))
    return Image.alpha_composite(outlined, colored)


def flatten_picture(picture: Image.Image, *, size: int) -> Image.Image:
    """The picture (with transparency) on white paper of `size` by `size` pixels, its proportions kept."""
    opaque = picture.convert("RGBA")
    opaque.thumbnail((size, size), Image.Resampling.LANCZOS)
    image = Image.new("RGB", (size, size), (255, 255, 255))
    image.paste(opaque, ((size - opaque.width) // 2, (size - opaque.height) // 2), opaque)
    return image


def _distinct_kinds(rng: Random, n_kinds: int) -> list[tuple[str, str]]:
    """Pairs of shape and colour; colours differ, so that a colour alone names a figure."""
    return [(rng.choice(SHAPES), color) for color in rng.sample(list(COLORS), n_kinds)]


def _centres(rng: Random, n_figures: int, arrangement: Arrangement, size: int) -> list[tuple[float, float]]:
    step = size / n_figures
    along = [step * (index + 0.5) for index in range(n_figures)]
    across = size / 2 + rng.uniform(-1, 1) * (size / 2 - _radius(n_figures, arrangement, size)) * 0.6
    if arrangement == "row":
        return [(x, across) for x in along]
    if arrangement == "column":
        return [(across, y) for y in along]
    cells = [(size * (column + 0.5) / 3, size * (row + 0.5) / 2) for row in range(2) for column in range(3)]
    shift = size / 40
    return [(x + rng.uniform(-shift, shift), y + rng.uniform(-shift, shift)) for x, y in rng.sample(cells, n_figures)]


def _radius(n_figures: int, arrangement: Arrangement, size: int) -> float:
    return size * 0.14 if arrangement == "scattered" else size / max(2, n_figures) * 0.44


def _draw_figure(pen: ImageDraw.ImageDraw, figure: Figure) -> None:
    ink, x, y, r = COLORS[figure.color], figure.x, figure.y, figure.radius
    if figure.shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)
    elif figure.shape == "square":
        pen.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=ink)
    elif figure.shape == "triangle":
        pen.polygon([(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)], fill=ink)
    elif figure.shape == "cross":
        pen.rectangle((x - r, y - 0.35 * r, x + r, y + 0.35 * r), fill=ink)
        pen.rectangle((x - 0.35 * r, y - r, x + 0.35 * r, y + r), fill=ink)
    elif figure.shape == "star":
        pen.polygon(_star(x, y, r), fill=ink)
    else:
        pen.polygon(_heart(x, y, r), fill=ink)


def _star(x: float, y: float, r: float) -> list[tuple[float, float]]:
    radii = (r, 0.42 * r)
    return [(x + radii[i % 2] * sin(i * pi / 5), y - radii[i % 2] * cos(i * pi / 5)) for i in range(10)]


def _heart(x: float, y: float, r: float) -> list[tuple[float, float]]:
    """The curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, scaled to the radius."""
    turns = [2 * pi * i / 40 for i in range(40)]
    return [
        (
            x + r * sin(t) ** 3,
            y - r * (13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)) / 16,
        )
        for t in turns
    ]


def _values_with_one_extreme(rng: Random, n_values: int) -> tuple[int, ...]:
    """Whole numbers from 1 to 9 of which the highest and the lowest occur once."""
    while True:
        values = tuple(rng.randint(1, 9) for _ in range(n_values))
        if values.count(max(values)) == 1 and values.count(min(values)) == 1:
            return values


def _draw_bars(pen: ImageDraw.ImageDraw, chart: Chart, font: ImageFont.FreeTypeFont, size: int) -> None:
    text, step = font.size, size / len(chart.labels)
    floor, ceiling = size - text * 1.45, text * 1.25
    for number, (label, color, value) in enumerate(zip(chart.labels, chart.colors, chart.values, strict=True)):
        middle = (number + 0.5) * step
        top = floor - (floor - ceiling) * value / 9
        pen.rectangle((middle - 0.36 * step, top, middle + 0.36 * step, floor), fill=COLORS[color])
        pen.text((middle, floor + text * 0.1), label, font=font, fill=COLORS["black"], anchor="ma")
        pen.text((middle, top - text * 0.1), str(value), font=font, fill=COLORS["black"], anchor="md")
    pen.line((0, floor, size, floor), fill=COLORS["black"], width=max(1, size // 96))


def _draw_line(pen: ImageDraw.ImageDraw, chart: Chart, font: ImageFont.FreeTypeFont, size: int) -> None:
    text, step = font.size, size / len(chart.labels)
    floor, ceiling = size - text * 1.45, text * 1.4
    points = [
        ((number + 0.5) * step, floor - (floor - ceiling) * value / 9) for number, value in enumerate(chart.values)
    ]
    pen.line(points, fill=COLORS[chart.colors[0]], width=max(3, size // 32))
    for (x, y), label, value in zip(points, chart.labels, chart.values, strict=True):
        pen.text((x, floor + text * 0.1), label, font=font, fill=COLORS["black"], anchor="ma")
        pen.text((x, y - text * 0.2), str(value), font=font, fill=COLORS["black"], anchor="md")
    pen.line((0, floor, size, floor), fill=COLORS["black"], width=max(1, size // 96))


def _draw_pie(pen: ImageDraw.ImageDraw, chart: Chart, font: ImageFont.FreeTypeFont, size: int) -> None:
    box = (size * 0.04, size * 0.04, size * 0.96, size * 0.96)
    start, total = -90.0, sum(chart.values)
    for label, color, value in zip(chart.labels, chart.colors, chart.values, strict=True):
        end = start + 360 * value / total
        pen.pieslice(box, start, end, fill=COLORS[color], outline=(255, 255, 255), width=max(1, size // 96))
        middle = (start + end) / 2 * pi / 180
        at = (size / 2 + size * 0.31 * cos(middle), size / 2 + size * 0.31 * sin(middle))
        pen.text(at, label, font=font, fill=COLORS["black"], anchor="mm")
        start = end


def _largest_font(fonts: Fonts, language: str, line: str, *, width: int, height: int) -> ImageFont.FreeTypeFont:
    """The largest font, never under 8 pixels, in which the line is at most `width` wide and `height` high."""
    for size in range(int(height * 0.75), 8, -1):
        font = fonts.load(language, size)
        if font.getlength(line) <= width:
            return font
    return fonts.load(language, 8)
