"""Tests of puna.train.drawings: what is drawn is what is told, and the same seed draws the same picture."""

from pathlib import Path
from random import Random

import pytest
from PIL import Image

from puna.errors import ConfigError
from puna.train.drawings import (
    COLORS,
    Fonts,
    draw_chart,
    draw_page,
    draw_receipt,
    draw_scene,
    flatten_picture,
    vary_picture,
)

FONTS = Path(__file__).parents[2] / "corpus" / "downloads" / "fonts" / "usr" / "share" / "fonts" / "truetype" / "noto"


@pytest.fixture
def fonts() -> Fonts:
    if not FONTS.is_dir():
        pytest.skip("the Noto fonts are not there; run scripts/corpus once")
    return Fonts(folder=FONTS)


@pytest.mark.parametrize("seed", range(8))
def test_every_figure_of_a_scene_has_its_color_at_its_centre(seed: int) -> None:
    rng = Random(seed)
    scene = draw_scene(rng, n_figures=rng.randint(1, 4), arrangement=rng.choice(("row", "column", "scattered")))
    for figure in scene.figures:
        assert scene.image.getpixel((round(figure.x), round(figure.y))) == COLORS[figure.color]


def test_figures_of_a_row_run_left_to_right_and_of_a_column_downwards() -> None:
    row = draw_scene(Random(1), n_figures=4, arrangement="row").figures
    column = draw_scene(Random(1), n_figures=3, arrangement="column").figures
    assert [f.x for f in row] == sorted(f.x for f in row)
    assert [f.y for f in column] == sorted(f.y for f in column)


def test_figures_of_a_row_differ_in_color() -> None:
    for seed in range(20):
        figures = draw_scene(Random(seed), n_figures=4, arrangement="row").figures
        assert len({figure.color for figure in figures}) == 4


def test_figures_do_not_reach_over_the_edge() -> None:
    for seed in range(20):
        for figure in draw_scene(Random(seed), n_figures=2, arrangement="column").figures:
            assert figure.x - figure.radius >= 0 and figure.x + figure.radius <= 96


def test_the_same_seed_draws_the_same_scene() -> None:
    first, second = (draw_scene(Random(7), n_figures=3, arrangement="row") for _ in range(2))
    assert first.image.tobytes() == second.image.tobytes()
    assert first.figures == second.figures


def test_too_many_figures_are_refused_with_the_number() -> None:
    with pytest.raises(ConfigError, match="n_figures: 5"):
        draw_scene(Random(0), n_figures=5, arrangement="row")


@pytest.mark.parametrize("kind", ["bar", "line", "pie"])
def test_highest_and_lowest_value_of_a_chart_occur_once(fonts: Fonts, kind: str) -> None:
    for seed in range(10):
        chart = draw_chart(Random(seed), fonts, kind=kind, labels="ABCDE")  # type: ignore[arg-type]
        assert chart.values.count(max(chart.values)) == chart.values.count(min(chart.values)) == 1
        assert all(1 <= value <= 9 for value in chart.values)


def test_a_higher_bar_covers_more_pixels(fonts: Fonts) -> None:
    chart = draw_chart(Random(3), fonts, kind="bar", labels="ABC")
    pixels = list(chart.image.get_flattened_data())
    areas = [pixels.count(COLORS[color]) for color in chart.colors]
    assert sorted(areas) == [area for _, area in sorted(zip(chart.values, areas, strict=True))]


def test_a_chart_of_one_label_is_refused(fonts: Fonts) -> None:
    with pytest.raises(ConfigError, match="labels"):
        draw_chart(Random(0), fonts, kind="bar", labels="A")


@pytest.mark.parametrize(("language", "word"), [("en", "milk"), ("hi", "दूध"), ("ar", "حليب"), ("th", "นม")])
def test_a_page_shows_ink_inside_its_margins_in_every_script(fonts: Fonts, language: str, word: str) -> None:
    page = draw_page(Random(0), fonts, lines=[word], language=language)
    paper = page.image.getpixel((0, 0))
    edge = [page.image.getpixel((x, y)) for x in (0, 95) for y in range(96)]
    assert set(edge) == {paper}
    assert len(page.image.getcolors(4096) or ()) > 2


def test_the_total_of_a_receipt_is_the_sum_of_its_prices(fonts: Fonts) -> None:
    assert draw_receipt(Random(0), fonts, items=[("tea", 3), ("bread", 4)]).total == 7


def test_a_folder_without_fonts_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fonts-noto-core"):
        Fonts(folder=tmp_path)


def test_flattened_pictures_keep_their_proportions_on_white() -> None:
    flat = flatten_picture(Image.new("RGBA", (40, 20), (255, 0, 0, 255)), size=20)
    assert flat.getpixel((0, 0)) == (255, 255, 255)
    assert flat.getpixel((10, 10)) == (255, 0, 0)


def test_varied_pictures_lie_on_pale_paper() -> None:
    varied = vary_picture(Random(0), Image.new("RGBA", (32, 32), (0, 0, 0, 0)), size=64)
    assert varied.size == (64, 64)
    assert all(channel >= 200 for channel in varied.getpixel((0, 0)))  # type: ignore[union-attr]
