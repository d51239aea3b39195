"""The report of a purification in a browser: nothing is run or fetched, and nothing is wider than a telephone."""

import json

import numpy as np
import pytest
from PIL import Image

from purify_engine.data.events import Events
from purify_engine.data.report import write_report
from tests.browser import browse, measured

pytestmark = pytest.mark.system

LONG = "a_name_without_a_space_" * 10
NASTY = "<script>document.title='run'</script><img src=http://x.example/a.png>\u202e\n.png"


@pytest.fixture
def page(tmp_path):
    names = [f"{index}/{LONG[:200]}{index}.png" for index in range(5)]
    for index, name in enumerate(names):
        for folder in ("in", "out"):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((40, 300, 3), 40 * index + 9 * (folder == "out"), np.uint8)).save(path)
    out = tmp_path / "out"
    failed = [[5, NASTY, f"cannot read the image: {NASTY}"], [6, LONG, LONG]]
    files = [[name, 10**12, "hash"] for name in names]
    record = {"part": 0, "first": 0, "count": 7, "ok": 5, "failed": failed, "sizes": {}, "files": files}
    (out / "manifest.jsonl").write_text(json.dumps(record) + "\n")
    (out / "skipped.jsonl").write_text(json.dumps({"name": NASTY, "reason": NASTY}) + "\n")
    identity = {"source": {"items": 10**9}, "images": {"channels": 3}}
    run = {"source": str(tmp_path / "in"), "purifier": LONG, "device": "cpu", "precision": "float32", "config": {LONG: LONG}}
    (out / "run.json").write_text(json.dumps({**run, "identity": identity}))
    with Events(out / "events.jsonl") as told:
        told("start", total=7, images_left=7)
        told("out_of_memory", images=10**12, why=NASTY)
        told("part", **record)
    return write_report(out, classify=lambda image: NASTY)


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_run_or_fetched_and_nothing_is_wider_than_the_screen(page, width):
    assert measured(page, width) == {"width": width, "scrolls_to": width, "scripts": 0, "requests": []}


def test_names_stand_there_as_text(page):
    dom = browse(page, "--dump-dom")
    assert dom.count("&lt;script&gt;document.title='run'&lt;/script&gt;") > 10 and "<title>Purification of in</title>" in dom
    assert "\\u202e\\n.png" in dom and dom.count("data:image/png;base64,") == 15


def test_a_dark_screen_gets_a_dark_page(page):
    picture = page.parent / "dark.png"
    browse(page, "--blink-settings=preferredColorScheme=0", f"--screenshot={picture}")
    with Image.open(picture) as drawn:
        assert drawn.convert("L").getpixel((2, 2)) < 40
