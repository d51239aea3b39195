"""The report opens in a browser: text, table and pictures are there, nothing is fetched or run, and a telephone holds it."""

import pytest
import torch
from PIL import Image

from purify_engine.evaluation.contact_sheet import exhibits
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.report import write_report
from purify_engine.evaluation.statistics import McNemar, paired_difference, wilson
from purify_engine.evaluation.summary import Comparison, Row
from tests.browser import browse, measured

pytestmark = pytest.mark.system

ATTACKS = ("standard", "minimum, linf", "transfer from the guide, StAdv")


@pytest.fixture
def page(tmp_path):
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    sheet = exhibits(Defence("<ours>", classifier), images, 1 - images, torch.tensor([1, 2, 3]))
    names = ("<ours>", "ours", "the guide alone", "DiffPure", "GDMP", "ours, latent", "undefended")
    rows = [Row(name, dict.fromkeys(ATTACKS, wilson([1.0, 0.0, 1.0]))) for name in names]
    gap = paired_difference([1.0, 0.0], [0.0, 1.0])
    comparisons = [Comparison("ours", "the guide alone", gap, gap, McNemar(1, 1, 1.0))]
    about = {"data": "a" * 300, "date": "today"}
    title = "A report & its <title>"
    return write_report(
        tmp_path / "report.html", title=title, rows=rows, sheet=sheet, comparisons=comparisons, about=about,
        self_test={"passed": True, "exact_error": 1e-9}, configuration={"a_long_name_" * 20: "b" * 300},
    )  # fmt: skip


def test_the_browser_reads_what_was_written(page):
    dom = browse(page, "--dump-dom")
    assert "A report &amp; its &lt;title&gt;" in dom
    assert "&lt;ours&gt;" in dom
    assert dom.count("data:image/png;base64,") == 12  # three rows of four pictures


def test_the_page_is_drawn(page):
    picture = page.parent / "page.png"
    browse(page, f"--screenshot={picture}", width=1200, height=1600)
    with Image.open(picture) as drawn:
        assert drawn.size == (1200, 1600)
        assert len(drawn.convert("L").getcolors()) > 20  # text, rules and grey pixels; a blank page has one


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_run_or_fetched_and_nothing_is_wider_than_the_screen(page, width):
    assert measured(page, width) == {"width": width, "scrolls_to": width, "scripts": 0, "requests": []}


def test_a_page_that_is_too_wide_runs_a_script_and_fetches_an_image_is_noticed(tmp_path):
    page = tmp_path / "page.html"
    policy = '<meta http-equiv="Content-Security-Policy" content="default-src *">'
    page.write_text(f'<!doctype html>{policy}<script></script><img src="a.png"><div style="width: 600px">wide</div>')
    found = measured(page, 390)
    assert found["scrolls_to"] > 600 and found["scripts"] == 1 and found["requests"] == ["a.png"]


def test_a_dark_screen_gets_a_dark_page(page):
    shades = {}
    for scheme, number in (("dark", 0), ("light", 1)):
        picture = page.parent / f"{scheme}.png"
        browse(page, f"--blink-settings=preferredColorScheme={number}", f"--screenshot={picture}")
        with Image.open(picture) as drawn:
            shades[scheme] = drawn.convert("L").getpixel((2, 2))
    assert shades["dark"] < 40 and shades["light"] > 240
