"""Draws the pictures in this folder again, all but the emoji. Use: python examples/pictures/draw.py FONTS

FONTS is the folder of the Debian package fonts-noto-core that holds NotoSans-Bold.ttf.
"""

import sys
from pathlib import Path
from random import Random

from puna.train.drawings import Fonts, draw_chart, draw_page, draw_scene

fonts = Fonts(folder=Path(sys.argv[1]))
here = Path(__file__).parent
draw_chart(Random(11), fonts, kind="bar", labels=("A", "B", "C", "D")).image.save(here / "chart.png")
draw_page(Random(5), fonts, lines=("good", "morning"), language="en").image.save(here / "page.png")
draw_scene(Random(3), n_figures=3, arrangement="row").image.save(here / "shapes.png")
