"""The images of a report, read again: each purified one beside what it was made of, whatever kind of thing it lies in."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from purify_engine.config import OfflineConfig
from purify_engine.data import ImageShape, ItemError, contact_sheet, open_sink, open_source
from purify_engine.data.contact_sheet import chosen, sheet
from purify_engine.data.report import records
from purify_engine.data.run import run
from tests.data.darkened import Darkened

LEVELS = [20, 60, 100, 140, 180, 220, 240]  # of seven images; the third and the sixth come out as NaN


def png(level):
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def folder(root):
    for index, level in enumerate(LEVELS):
        (root / f"{index % 2}").mkdir(parents=True, exist_ok=True)
        (root / f"{index % 2}" / f"{index}.png").write_bytes(png(level))
    return root


def listed(root):
    folder(root)
    path = root / "images.txt"
    path.write_text("".join(f"{index % 2}/{index}.png\n" for index in reversed(range(7))))
    return path


def array(root):
    root.mkdir()
    np.save(root / "a.npy", np.stack([np.full((4, 4), level, np.uint8) for level in LEVELS]))
    return root / "a.npy"


def tars(root):
    root.mkdir()
    for shard, members in enumerate((LEVELS[:5], LEVELS[5:])):
        with tarfile.open(root / f"s{shard}.tar", "w") as file:
            for index, level in enumerate(members):
                content = png(level)
                entry = tarfile.TarInfo(f"{index}.png")
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
    return root


def parquet(root):
    pyarrow = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    root.mkdir()
    for shard, members in enumerate((LEVELS[:5], LEVELS[5:])):
        pq.write_table(pyarrow.table({"image": [png(level) for level in members]}), root / f"{shard}.parquet")
    return root


@pytest.fixture
def pairs(monkeypatch):
    """What the sheet was made of: name, level before, level after."""
    seen, whole = [], contact_sheet._shrunk

    def noted(name, before, after, classify):
        seen.append((name, int(before.mean()), int(after.mean())))
        return whole(name, before, after, classify)

    monkeypatch.setattr(contact_sheet, "_shrunk", noted)
    return seen


@pytest.mark.parametrize("make", [folder, listed, array, tars, parquet])
def test_every_purified_image_stands_beside_its_own_input(make, tmp_path, pairs):
    source = open_source(make(tmp_path / "in"), ImageShape(1))
    output = tmp_path / ("out.npy" if make is array else "out")
    summary = run(Darkened(refused=(2, 5)), source, open_sink(source, output), config=OfflineConfig(part_size=3))
    assert (summary.ok, len(summary.failed)) == (5, 2)
    found = sheet(source, output, list(chosen(records(output), 4)))
    assert found.missing == [] and len(found.exhibits) == 5
    assert all(after == before // 2 for _, before, after in pairs)
    failed = {failure.name for failure in summary.failed}
    assert {name for name, _, _ in pairs} == {source.name(id) for id in range(7)} - failed


def test_an_image_that_would_fill_the_memory_is_not_shown():
    large = np.broadcast_to(np.uint8(7), (3, 4000, 4000))
    with pytest.raises(ItemError, match=r"too large to be shown: \[3, 4000, 4000\]"):
        contact_sheet._shrunk("large.png", large, large, None)
