"""The report opens in a browser: text, table and pictures are there, and nothing is fetched."""

import shutil
import subprocess

import pytest
import torch
from PIL import Image

from purify_engine.evaluation.contact_sheet import exhibits
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.report import write_report
from purify_engine.evaluation.statistics import wilson
from purify_engine.evaluation.summary import Row

pytestmark = pytest.mark.system

CHROMIUM = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
CHROMIUM += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1200,1600"]


@pytest.fixture
def page(tmp_path):
    assert shutil.which("chromium"), "chromium is missing; install it to run this check"
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    sheet = exhibits(Defence("<ours>", classifier), images, 1 - images, torch.tensor([1, 2, 3]))
    rows = [Row("<ours>", {"standard": wilson([1.0, 0.0, 1.0])})]
    return write_report(tmp_path / "report.html", title="A report & its <title>", rows=rows, sheet=sheet)


def browse(page, *options):
    profile = page.parent / "profile"
    command = [*CHROMIUM, f"--user-data-dir={profile}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_the_browser_reads_what_was_written(page):
    dom = browse(page, "--dump-dom")
    assert "A report &amp; its &lt;title&gt;" in dom
    assert "&lt;ours&gt;" in dom
    assert dom.count("data:image/png;base64,") == 12  # three rows of four pictures


def test_the_page_is_drawn(page):
    picture = page.parent / "page.png"
    browse(page, f"--screenshot={picture}")
    with Image.open(picture) as drawn:
        assert drawn.size == (1200, 1600)
        assert len(drawn.convert("L").getcolors()) > 20  # text, rules and grey pixels; a blank page has one
