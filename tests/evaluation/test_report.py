import base64
import csv
import io
import json
import platform
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from purify_engine.config import PurifierConfig
from purify_engine.evaluation.contact_sheet import data_uri, exhibits
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.report import (
    best,
    by_attack,
    column_names,
    figure,
    flattened,
    render_by_attack,
    render_table,
    sizes,
    terminal_by_attack,
    terminal_table,
    versions,
    write_report,
)
from purify_engine.evaluation.statistics import Estimate, McNemar, PairedDifference
from purify_engine.evaluation.summary import Comparison, Row
from tests.evaluation.worlds import ToyPurifier, guided, linear_world

ROWS = [
    Row("undefended", {"standard": Estimate(0.975, 0.95, 0.99, 360), "exact": Estimate(0.09, 0.06, 0.12, 64)}),
    Row(
        "ours",
        {"standard": Estimate(0.966, 0.94, 0.98, 360), "exact": Estimate(0.909, 0.8, 0.95, 64, masked=True)},
        1234.5,
    ),
]


def report(tmp_path, **changes) -> str:
    classifier, images, labels = linear_world(3)
    sheet = exhibits(Defence("ours", classifier, ToyPurifier(guided(1.0))), images, images + 0.1, labels)
    gap = PairedDifference(0.23, 0.19, 0.27, 0.18, 0.28, 360)
    comparison = Comparison("ours", "DiffPure", gap, gap, McNemar(90, 7, 1e-18))
    settings = {
        "title": "Digits",
        "rows": ROWS,
        "sheet": sheet,
        "self_test": {"passed": True, "exact_error": 1e-9},
        "comparisons": [comparison],
    }
    return write_report(tmp_path / "sub" / "report.html", **{**settings, **changes}).read_text(encoding="utf-8")


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "link", "br", "hr", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_is_one_well_formed_file_without_scripts_or_network(tmp_path):
    html = report(tmp_path)
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    assert not {"script", "link", "iframe", "object", "form"} & set(reader.tags)
    assert reader.links and all(link.startswith("data:image/png;base64,") for link in reader.links)
    assert not re.search(r"https?://|@import|url\(|\bon\w+=", html)
    assert reader.tags.count("img") == 3 * 4


def test_every_text_from_outside_is_escaped(tmp_path):
    nasty = "<script>alert(1)</script>"
    rows = [Row(nasty, {nasty: Estimate(0.5, 0.4, 0.6, 10)})]
    html = report(
        tmp_path,
        title=nasty,
        rows=rows,
        self_test={nasty: nasty, "passed": False},
        configuration={nasty: nasty},
        notes=[nasty],
    )
    assert "<script" not in html and html.count("&lt;script&gt;") >= 7


def test_report_shows_figures_intervals_sizes_verdicts_and_versions(tmp_path):
    html = report(tmp_path, configuration={"purifier": {"guidance": {"scale": 3.5}}}, notes=["single draws"])
    for text in (
        ">98<",
        "95 – 99",
        'title="0.9750"',
        "n = 360",
        "n = 64",
        "masked",
        "passed",
        "purifier.guidance.scale",
        "3.5",
        "single draws",
        "torch",
        "1,234",
    ):
        assert text in html, text
    assert "✓" in html and "+18 to +28" in html


def test_a_masked_figure_is_never_the_best_of_its_column(tmp_path):
    html = report(tmp_path)
    assert re.findall('class="value best" title="([0-9.]+)"', html) == ["0.0900", "0.9750"]  # of `exact`, of `standard`


def test_markdown_table_has_n_in_the_header_and_intervals_beside_figures():
    lines = render_table(ROWS).splitlines()
    assert lines[0] == "| defence | standard (n = 360) | exact (n = 64) | images/s |"
    assert lines[2] == "| undefended | 97.5 (95.0–99.0) | 9.0 (6.0–12.0) | – |"
    assert lines[3] == "| ours | 96.6 (94.0–98.0) | 90.9 (80.0–95.0) masked | 1,234 |"


def test_terminal_table_shows_the_same_figures():
    console = Console(file=io.StringIO(), width=120)
    console.print(terminal_table(ROWS, "Digits"))
    text = console.file.getvalue()
    assert "97.5 (95.0–99.0)" in text and "n = 64" in text and "1,234" in text


def test_missing_figures_are_dashes():
    assert figure(None) == "–"
    assert "–" in render_table([ROWS[0], Row("other", {"standard": Estimate(1, 0.9, 1, 360)})]).splitlines()[-1]


def test_pictures_are_the_images_bit_for_bit():
    image = torch.tensor([[[0.0, 1.0], [0.2, 2.0]]])
    decoded = Image.open(io.BytesIO(base64.b64decode(data_uri(image).split(",")[1])))
    assert np.asarray(decoded).tolist() == [[0, 255], [51, 255]]
    colour = Image.open(io.BytesIO(base64.b64decode(data_uri(image.expand(3, 2, 2)).split(",")[1])))
    assert colour.mode == "RGB" and colour.size == (2, 2)


def test_exhibits_judge_each_stage_by_the_classifier():
    classifier, images, labels = linear_world(2)
    attacked = 1 - images  # the mirror image, on the other side of the boundary
    shown = exhibits(Defence("ours", classifier, ToyPurifier(guided(1.0))), images, attacked, labels)
    assert [row.input.right for row in shown] == [True, True]
    assert [row.attacked.right for row in shown] == [False, False]
    assert [row.difference.right for row in shown] == [None, None]


def test_nested_settings_are_flattened_for_reading():
    assert flattened({"a": {"b": 1, "c": [1, 2]}, "d": guided(2.0)})["d.guidance.scale"] == "2.0"
    assert flattened({"a": {"b": 1, "c": [1, 2]}}) == {"a.b": "1", "a.c": "[1, 2]"}


def test_many_attacks_are_shown_a_line_each():
    header, *lines = by_attack(ROWS)
    assert header == ["attack", *(row.defence for row in ROWS)]
    assert [line[0] for line in lines] == list(dict.fromkeys(name for row in ROWS for name in row.columns))
    for name, *figures in lines:
        assert figures == [figure(row.columns.get(name)) for row in ROWS]
    assert render_by_attack(ROWS).count("\n") == len(lines) + 1
    console = Console(file=io.StringIO(), width=120)
    console.print(terminal_by_attack(ROWS, "Digits"))
    assert all(text in console.file.getvalue() for text in lines[0])


def cells_of(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_columns_are_those_of_any_row_in_order_of_first_appearance_with_their_sizes():
    third = Row("third", {"late": Estimate(0.5, 0.4, 0.6, 7), "standard": Estimate(0.9, 0.8, 1, 360)})
    rows = [*ROWS, third]
    assert column_names(rows) == ["standard", "exact", "late"]
    assert sizes(rows) == {"standard": 360, "exact": 64, "late": 7}
    assert best(rows) == {"standard": 0.975, "exact": 0.09, "late": 0.5}
    assert best([Row("masked", {"exact": Estimate(0.9, 0.8, 1, 9, masked=True)})]) == {"exact": -1.0}
    lines = [cells_of(line) for line in render_table(rows).splitlines()]
    assert lines[0] == ["defence", "standard (n = 360)", "exact (n = 64)", "late (n = 7)", "images/s"]
    assert lines[4] == ["third", "90.0 (80.0–100.0)", "–", "50.0 (40.0–60.0)", "–"]


def test_without_any_speed_there_is_no_column_of_it():
    lines = render_table(ROWS[:1]).splitlines()
    assert cells_of(lines[0]) == ["defence", "standard (n = 360)", "exact (n = 64)"] and len(cells_of(lines[2])) == 3


def test_an_attack_a_line_as_markdown_and_in_the_terminal():
    lines = render_by_attack(ROWS).splitlines()
    assert [cells_of(line) for line in lines] == [
        ["attack", "undefended", "ours"],
        ["---", "---:", "---:"],
        ["standard", "97.5 (95.0–99.0)", "96.6 (94.0–98.0)"],
        ["exact", "9.0 (6.0–12.0)", "90.9 (80.0–95.0) masked"],
    ]
    table = terminal_by_attack(ROWS, "Title")
    assert table.title == "Title" and [str(column.header) for column in table.columns] == ["attack", "undefended", "ours"]
    assert [column.justify for column in table.columns] == ["left", "right", "right"]
    assert list(table.columns[2].cells) == ["96.6 (94.0–98.0)", "90.9 (80.0–95.0) masked"]


def test_a_defence_a_line_in_the_terminal():
    table = terminal_table(ROWS, "Title")
    headers = ["defence", "standard\nn = 360", "exact\nn = 64", "images/s"]
    assert table.title == "Title" and [str(column.header) for column in table.columns] == headers
    assert [column.justify for column in table.columns] == ["left", "right", "right", "right"]
    assert list(table.columns[3].cells) == ["–", "1,234"] and list(table.columns[0].cells) == ["undefended", "ours"]


def test_figures_are_percent_with_one_decimal():
    assert figure(Estimate(0.12345, 0.0, 1.0, 5)) == "12.3 (0.0–100.0)"
    assert figure(Estimate(0.5, 0.25, 0.75, 5, masked=True)) == "50.0 (25.0–75.0) masked"


def test_settings_are_flattened_as_json_but_for_text():
    said = flattened({"text": "a b", "none": None, "flag": True, "deep": {"er": {"still": 0.5}}, "path": Path("x")})
    assert said == {"text": "a b", "none": "null", "flag": "true", "deep.er.still": "0.5", "path": '"x"'}
    assert flattened({"kind": PurifierConfig}) == {"kind": json.dumps(str(PurifierConfig))}  # a class is no nested settings


def test_versions_are_those_of_the_packages_that_made_the_figures(monkeypatch):
    from purify_engine.evaluation import report as module

    found = versions()
    assert list(found) == ["python", "machine", "purify-engine", "torch", "numpy", "scipy", "pillow"]
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0] and found["numpy"] == np.__version__
    assert found["python"] == platform.python_version() and platform.machine() in found["machine"]
    monkeypatch.setattr(module, "_PACKAGES", ("no-such-package",))
    assert versions()["no-such-package"] == "not installed"


def test_parts_that_are_not_given_are_not_in_the_report(tmp_path):
    html = write_report(tmp_path / "r.html", title="Bare", rows=[]).read_text()
    assert "<h1>Bare</h1>" in html and "Versions" in html
    for heading in ("Accuracy", "Paired", "Contact sheet", "self-test", "Configuration"):
        assert heading not in html


def test_comparisons_and_a_failed_self_test_are_shown(tmp_path):
    html = report(tmp_path, self_test={"passed": False, "exact_error": 0.5})
    for text in ("ours − DiffPure", "+23", "+19 to +27", "+18 to +28", "90 : 7", "1e-18"):
        assert text in html, text
    assert '<span class="badge failed">failed</span>' in html and "<dt>exact_error</dt><dd>0.5</dd>" in html
    scale = re.findall(r"<span>−([0-9.]+)</span><span>0</span><span>\+([0-9.]+)</span>", html)
    assert len(scale) == 1 and scale[0][0] == scale[0][1] and float(scale[0][0]) > 0 and html.count("<figure") == 3


def test_what_was_evaluated_stands_on_top_and_ours_and_the_headline_come_first(tmp_path):
    rows = [
        Row("DiffPure", {"standard": Estimate(0.9, 0.8, 1, 50), "adaptive": Estimate(0.4, 0.3, 0.5, 50)}),
        Row("ours", {"standard": Estimate(0.9, 0.8, 1, 50), "adaptive": Estimate(0.6, 0.5, 0.7, 50)}),
    ]
    html = report(tmp_path, rows=rows, about={"data": "50 <scans>"}, budgets={"adaptive": "l∞, ε = 0.15"})
    order = ["<dd>50 &lt;scans&gt;</dd>", '<tr role="row" class="headline">', "l∞, ε = 0.15", "standard", "Paired", "Versions"]
    places = [html.index(text) for text in order]
    assert places == sorted(places)
    assert re.findall('<th scope="col"[^>]*>(ours|DiffPure)<', html) == ["ours", "DiffPure"]
    assert re.findall('<th scope="row">(adaptive|standard)<', html) == ["adaptive", "standard"]


def test_the_figures_lie_beside_the_report_as_they_are(tmp_path):
    report(tmp_path, budgets={"exact": "l∞, ε = 0.15"}, about={"data": "digits"})
    lines = list(csv.DictReader((tmp_path / "sub" / "report.figures.csv").open(encoding="utf-8")))
    known = [(row.defence, name, each) for row in ROWS for name, each in row.columns.items()]
    assert len(lines) == len(known)
    for line, (defence, attack, each) in zip(lines, known, strict=True):
        assert (line["defence"], line["attack"], line["masked"]) == (defence, attack, str(each.masked).lower())
        assert [float(line[name]) for name in ("accuracy", "low", "high", "images")] == [each.value, each.low, each.high, each.n]
        assert line["budget"] == ("l∞, ε = 0.15" if attack == "exact" else "")
    kept = json.loads((tmp_path / "sub" / "report.figures.json").read_text(encoding="utf-8"))
    assert kept["about"] == {"data": "digits"} and kept["self_test"]["exact_error"] == 1e-9
    assert kept["rows"][1]["columns"]["exact"]["value"] == 0.909 and kept["comparisons"][0]["difference"]["high"] == 0.27
