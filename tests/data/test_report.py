"""The report of a purification, from records as a run leaves them."""

import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from purify_engine.config import OfflineConfig
from purify_engine.data import ImageShape, open_sink, open_source
from purify_engine.data.contact_sheet import SHOWN, chosen
from purify_engine.data.report import LISTED, REASONS, record_of, write_report
from purify_engine.data.run import run
from tests.data.darkened import Darkened

NASTY = "3/\u202egnp.<script>\n\x1b[2J.png"


def save(path, value, size=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(path)


def record(part, names, failed=(), size=4):
    first, bad = part * size, dict(failed)
    good = [name for id, name in enumerate(names, first) if id not in bad]
    told = [[id, names[id - first], reason] for id, reason in failed]
    counts = {"part": part, "first": first, "count": len(names), "ok": len(good), "sizes": {"8x8": len(good)}}
    return {**counts, "failed": told, "files": [[name, 100, "hash"] for name in good]}


@pytest.fixture
def output(tmp_path):
    """A run over eight images of two classes: one failed, one file was skipped, one of its parts was done twice."""
    names = [f"{index % 2}/{index}.png" for index in (0, 2, 4, 6, 1, 3, 5, 7)]
    for index, name in enumerate(names):
        save(tmp_path / "in" / name, 10 * index)
        save(tmp_path / "out" / name, 10 * index + 5)
    out = tmp_path / "out"
    records = [record(1, names[4:]), record(0, names[:4]), record(1, names[4:], failed=[(6, "is 31x20 pixels")])]
    (out / "manifest.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in records))
    (out / "skipped.jsonl").write_text(json.dumps({"name": NASTY, "reason": "no <image>"}) + "\n")
    run = {"source": str(tmp_path / "in"), "purifier": "digits", "device": "cpu", "precision": "float32", "revision": None}
    identity = {"source": {"items": 8}, "images": {"channels": 3, "size": None}, "part_size": 4}
    run |= {"identity": identity, "pinned": {"batch_size": 64}, "config": {"guidance": {"scale": 3.5}}, "policies": {"exif": "x"}}
    (out / "run.json").write_text(json.dumps(run))
    diary = [
        (0, {"event": "start", "total": 8, "images_left": 8}),
        (2, {"event": "part", "part": 1, "count": 4}),
        (3, {"event": "out_of_memory", "images": 4, "batch_size": 2}),
        (60, {"event": "resumed", "total": 8, "images_left": 4}),
        (62, {"event": "progress", "done": 8, "failed": 1, "rss_bytes": 2**31}),
        (62, {"event": "end", "ok": 7}),
    ]
    lines = (json.dumps({"time": f"2030-01-01T00:{at // 60:02}:{at % 60:02}.000+00:00", **event}) for at, event in diary)
    (out / "events.jsonl").write_text("\n".join(lines) + "\n")
    return out


def read(output, **how):
    return write_report(output, **how).read_text(encoding="utf-8")


def test_the_report_counts_every_image_and_says_so_in_a_sentence(output):
    html = read(output)
    assert "7 of 8 images are purified; 1 failed. 1 file is no image and was skipped." in html
    assert re.findall(r"<div><b>([\d,]+)</b><span>(\w+)", html) == [
        ("7", "purified"), ("1", "failed"), ("1", "skipped"), ("0", "left"),
    ]  # fmt: skip
    for text in ("<dd>once</dd>", "on cpu in float32", "700 bytes", "8x8: 7", "2.00 GiB", "2.0 images a second over 4.0 sec"):
        assert text in html, text
    for text in ("out_of_memory</b>, images 4, batch_size 2", "<polygon", '<line class="mark" x1="50.00"'):
        assert text in html, text
    for text in ("config.guidance.scale", "3.5", "pinned.batch_size", "64", "policies.exif"):
        assert text in html, text


def test_failures_stand_under_their_reasons_with_names_that_are_visible_and_harmless(output):
    html = read(output)
    assert "is NxN pixels" in html and "is 31x20 pixels" in html and "<bdi>1/5.png</bdi>" in html
    assert "3/\\u202egnp.&lt;script&gt;\\n\\x1b[2J.png" in html and "no &lt;image&gt;" in html
    assert not re.search("[\u202e\x1b]|<script", html)


def test_the_contact_sheet_shows_images_before_and_after_with_the_classifiers_words(output):
    html = read(output, classify=lambda image: f"{image.mean() * 255:.0f}")
    assert html.count("<figure") == 7 and html.count("data:image/png") == 21
    shown = re.findall(r"<span>(\d+)</span><span class=\"moved\">(\d+)</span>", html)
    assert [(int(before), int(after)) for before, after in shown] == [(10 * n, 10 * n + 5) for n in (0, 1, 2, 3, 4, 5, 7)]
    assert "+0.02" in html  # 5 levels of 255
    assert "moved\"" not in read(output, classify=lambda image: "same") and "classifier reads" not in read(output)


def test_a_source_that_is_gone_costs_the_contact_sheet_alone(output):
    (output.parent / "in").rename(output.parent / "elsewhere")
    html = read(output)
    assert "There is none: source must be" in html and "7 of 8 images" in html
    html = read(output, source=open_source(output.parent / "elsewhere", ImageShape(3)))
    assert html.count("<figure") == 7


def test_an_image_that_is_gone_or_was_replaced_is_missing_with_its_reason(output):
    (output / "0/0.png").unlink()
    os.mkfifo(output / "0/fifo")
    save(output / "0/2.png", 0, size=9)
    html = read(output)
    assert html.count("<figure") == 5 and "2 of the chosen images could not be read again: 0/0.png" in html


def test_a_manifest_that_leads_out_of_the_output_is_not_followed(output):
    secret = output.parent / "secret.png"
    save(secret, 200)
    lines = (output / "manifest.jsonl").read_text().replace("0/0.png", "../secret.png")
    (output / "manifest.jsonl").write_text(lines)
    assert "lies outside of the output" in read(output)


def test_a_run_that_was_stopped_says_what_is_left(output):
    lines = (output / "manifest.jsonl").read_text().splitlines(keepends=True)
    (output / "manifest.jsonl").write_text(lines[1] + '{"part": 1, "fir')
    html = read(output)
    assert "4 of 8 images are purified; 4 are left: the same command goes on." in html


def test_the_shares_of_a_run_are_counted_together(output):
    lines = (output / "manifest.jsonl").read_text().splitlines(keepends=True)
    (output / "manifest.jsonl").unlink()
    for index, line in enumerate(lines[1:]):
        (output / f"manifest.{index}-of-2.jsonl").write_text(line)
    (output / "manifest.backup.jsonl").write_text(lines[0])
    assert "7 of 8 images are purified; 1 failed." in read(output)


def test_a_report_of_very_many_failures_stays_small(output):
    names = [f"{id}.png" + "x" * (3000 if id < 200 else 0) for id in range(5_000)]
    failed = [(id, f"reason {chr(97 + id % 26)}{chr(97 + id // 26 % 26)}") for id in range(5_000)]
    (output / "manifest.jsonl").write_text(json.dumps(record(0, names, failed, size=5_000)) + "\n")
    html = read(output)
    assert "5,000 failed" in html and html.count("<li>") == LISTED + 1 + 1 and len(html) < 150_000  # one skipped, one event
    assert html.count("</tr>") == REASONS + 1 + 2  # of failures, of what was skipped, and two heads


@pytest.mark.parametrize("parts", [1, 2, 5, 24, 25, 300])
def test_the_images_shown_are_spread_over_the_whole_run(parts):
    records = [record(part, ["x"] * 4, failed=[(part * 4 + 1, "")]) for part in range(parts)]
    found = list(chosen(records, parts))
    assert len(found) == min(SHOWN, 3 * parts) and len({one.id for one in found}) == len(found)
    assert {one.record["part"] for one in found} >= {0, parts - 1} if parts <= SHOWN else len(found) == SHOWN
    for one in found:
        good = [id for id in range(one.record["first"], one.record["first"] + 4) if id != one.record["first"] + 1]
        assert good[one.place] == one.id


def test_what_is_no_output_is_refused_in_a_line(tmp_path):
    with pytest.raises(ValueError, match=r"output must be one that `purify` wrote: there is no '.*run.json'"):
        write_report(tmp_path)
    for content in ("[]", "{"):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(ValueError, match="run.json must be as `purify` wrote it"):
            write_report(tmp_path)


def test_records_lie_in_a_folder_or_beside_a_file(tmp_path):
    assert record_of(tmp_path, "run.json") == tmp_path / "run.json"
    assert record_of(tmp_path / "clean.npz", "report.html") == tmp_path / "clean.report.html"


def test_a_run_that_was_killed_shows_what_it_had_purified(tmp_path):
    for number in range(4):
        save(tmp_path / "in" / f"{number}.png", 100)

    def told(event, **facts):
        if event == "part":
            raise KeyboardInterrupt

    source = open_source(tmp_path / "in", ImageShape(3))
    with pytest.raises(KeyboardInterrupt):
        run(Darkened(), source, open_sink(source, tmp_path / "out"), config=OfflineConfig(part_size=2), told=told)
    html = read(tmp_path / "out")
    assert "2 of 4 images are purified; 2 are left" in html and html.count("data:image/png") == 6
    assert str(tmp_path / "in") in html


def test_what_a_share_has_mended_counts_before_the_run_that_failed(output):
    names = ["1/1.png", "1/3.png", "1/5.png", "1/7.png"]
    (output / "manifest.0-of-2.jsonl").write_text(json.dumps(record(1, names)) + "\n")
    assert "All 8 images are purified." in read(output)
