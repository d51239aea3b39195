"""Parquet files: which column holds the images, what of a file that is damaged can still be read, and what is written."""

import json
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from purify_engine import GuidedPurifier
from purify_engine.data import ImageShape, ItemError, Part, open_sink, open_source, read_all
from tests.data.access import names
from tests.data.darkened import Darkened
from tests.data.tables import IMAGE, SCHEMA, Killed, level, pa, png, pq, purified, table, tree, write_parquet

GREY = ImageShape(1)
PAGE = Path(__file__).parents[2] / "docs" / "offline.md"
SENSELESS = ["{", "[]", '{"info": 1}', '{"info": {"features": [1]}}', '{"info": {"features": {"label": 3}}}', "[" * 9999]


class Halved(torch.nn.Module):
    def forward(self, images, ids):
        return images / 2


def items(source, size=256):
    return [item for part in source.parts(size) for item in source.items(part)]


def decoded(source, item):
    try:
        return int(source.decode(item)[0, 0, 0])
    except ItemError as reason:
        return str(reason)


def clone(root):
    """A folder as a clone from the Hub is, with two splits."""
    write_parquet(root / "data" / "train-00000-of-00002.parquet", [table(5), table(2, 5)])
    write_parquet(root / "data" / "train-00001-of-00002.parquet", [table(2, 7)])
    write_parquet(root / "data" / "test-00000-of-00001.parquet", [table(3, 9, bad={10})])
    (root / "README.md").write_text("A data set.")
    (root / ".git").mkdir()
    return root


def test_rows_come_by_sorted_file_with_their_labels_and_names_of_classes(tmp_path):
    source = open_source(clone(tmp_path / "in"), GREY)
    assert source.kind == "parquet" and source.classes == ("cat", "dog") and len(source) == 12
    assert names(source) == (
        *(f"data/test-00000-of-00001.parquet[{row}]" for row in range(3)),
        *(f"data/train-00000-of-00002.parquet[{row}]" for row in range(7)),
        *(f"data/train-00001-of-00002.parquet[{row}]" for row in range(2)),
    )
    assert [item.name for item in items(source)] == list(names(source)) and [item.id for item in items(source)] == list(range(12))
    assert source.labels.tolist() == [1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert [entry.name for entry in source.skipped] == [".git/", "README.md"]
    assert all(part.count <= 4 and len({source.name(id)[:-3] for id in part.ids}) == 1 for part in source.parts(4))


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 2, 2, 3]], ids=str)
def test_parts_are_read_in_any_order(order, tmp_path):
    write_parquet(tmp_path / "in.parquet", [table(2), table(1, 2), table(5, 3)])
    source = open_source(tmp_path / "in.parquet", GREY)
    parts = source.parts(2)
    for place in order:
        assert [decoded(source, item) for item in source.items(parts[place])] == list(parts[place].ids)


def test_other_processes_read_on_their_own(tmp_path):
    write_parquet(tmp_path / "in.parquet", [table(5)])
    source = open_source(tmp_path / "in.parquet", GREY)
    parts = source.parts(2)
    list(source.items(parts[0]))
    copy = pickle.loads(pickle.dumps(open_sink(source, tmp_path / "out"))).source
    assert [decoded(copy, item) for item in copy.items(parts[2])] == [4]
    assert [decoded(source, item) for item in source.items(parts[1])] == [2, 3]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.struct([("bytes", pa.binary())]), IMAGE], ids=str)
def test_images_of_every_type_are_found_and_written_as_they_were(kind, tmp_path):
    values = [{"bytes": png(7), "path": "a.png"}] if pa.types.is_struct(kind) else [png(7)]
    write_parquet(tmp_path / "in.parquet", [pa.table({"id": ["x"], "picture": pa.array(values, kind)})])
    assert purified(tmp_path / "in.parquet", tmp_path / "out").ok == 1
    out = pq.read_table(tmp_path / "out" / "in.parquet")
    assert out.schema.field("picture").type == kind and out["id"].to_pylist() == ["x"]
    (cell,) = out["picture"].to_pylist()
    assert level(cell["bytes"] if isinstance(cell, dict) else cell) in (3, 4)


@pytest.mark.parametrize(
    ("columns", "column", "found"),
    [
        ({"image": IMAGE, "mask": IMAGE}, None, "column must be one of image, mask, which all hold images, got None"),
        ({"image": IMAGE, "mask": IMAGE}, "mask", "mask"),
        ({"image": IMAGE, "hash": pa.binary()}, None, "image"),
        ({"image": IMAGE, "hash": pa.binary()}, "hash", "hash"),
        ({"image": IMAGE}, "text", r"column must be one that holds images \(image\), got 'text'"),
        ({"text": pa.string()}, None, r"source must be a table with a column of images, .* got '.*in.parquet \(text\)'"),
        ({"text": pa.string()}, "text", r"column must be one that holds images \(there is none\), got 'text'"),
        ({"image": pa.struct([("bytes", pa.string())])}, None, "source must be a table with a column of images"),
    ],
    ids=str,
)
def test_the_column_of_images_is_found_or_asked_for(columns, column, found, tmp_path):
    write_parquet(tmp_path / "in.parquet", [pa.table({name: pa.nulls(1, kind) for name, kind in columns.items()})])
    if " " in found:
        with pytest.raises(ValueError, match=f"^{found}"):
            open_source(tmp_path / "in.parquet", GREY, column)
    else:
        assert open_source(tmp_path / "in.parquet", GREY, column).column == found


def test_hugging_faces_metadata_says_which_column_it_is(tmp_path):
    metadata = {"huggingface": json.dumps({"info": {"features": {"photo": {"_type": "Image"}, "mask": {"_type": "Value"}}}})}
    schema = pa.schema([("mask", IMAGE), ("photo", IMAGE)], metadata)
    write_parquet(tmp_path / "in.parquet", [pa.table([pa.nulls(1, IMAGE)] * 2, schema)])
    assert open_source(tmp_path / "in.parquet", GREY).column == "photo"


@pytest.mark.parametrize("said", SENSELESS)
def test_metadata_that_makes_no_sense_says_nothing(said, tmp_path):
    write_parquet(tmp_path / "in.parquet", [table(1).replace_schema_metadata({"huggingface": said})])
    source = open_source(tmp_path / "in.parquet", GREY)
    assert source.column == "image" and source.classes is None and source.labels.tolist() == [0]


def test_files_that_name_other_classes_are_refused(tmp_path):
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": ["dog", "cat"]}}}})}
    write_parquet(tmp_path / "a.parquet", [table(1)])
    write_parquet(tmp_path / "b.parquet", [table(1).replace_schema_metadata(metadata)])
    with pytest.raises(ValueError, match="^source must be of files that name the same classes, got"):
        open_source(tmp_path, GREY)


def test_a_row_that_is_no_image_fails_alone(tmp_path):
    images = [
        {"bytes": png(1), "path": None}, None, {"bytes": None, "path": "/etc/passwd"}, {"bytes": b"", "path": "a"},
        {"bytes": b"\x89PNG\r\n\x1a\n" + b"\xff" * 40, "path": "\x1b[31m"}, {"bytes": png(5)[:-20], "path": "a"},
        {"bytes": png(6), "path": "../../a.png"},
    ]  # fmt: skip
    write_parquet(tmp_path / "in.parquet", [pa.table({"image": pa.array(images, IMAGE)})])
    source = open_source(tmp_path / "in.parquet", GREY)
    found = [decoded(source, item) for item in items(source)]
    assert [found[0], found[6]] == [1, 6]
    assert found[1:3] == ["holds no image", "holds the name of a file, which is not looked for, and no image"]
    assert all(isinstance(reason, str) for reason in found[3:6])
    summary = purified(tmp_path / "in.parquet", tmp_path / "out", part_size=10)
    assert [failure.id for failure in summary.failed] == [1, 2, 3, 4, 5]
    out = pq.read_table(tmp_path / "out" / "in.parquet")["image"].to_pylist()
    assert [row["path"] for row in out] == [None, "../../a.png"], "a path is a column as any other: nothing is written there"


def test_words_that_are_no_utf8_cost_their_row_alone(tmp_path):
    words = pa.array([b"good", b"\xff\xfe", b"good"]).view(pa.string())
    images = pa.array([{"bytes": png(row), "path": "a"} for row in range(3)], IMAGE)
    write_parquet(tmp_path / "in.parquet", [pa.table({"image": images, "text": words})])
    assert [failure.id for failure in purified(tmp_path / "in.parquet", tmp_path / "out").failed] == [1]
    assert pq.read_table(tmp_path / "out" / "in.parquet")["text"].to_pylist() == ["good", "good"]


def test_a_file_that_is_cut_short_is_one_item_that_fails_wherever_it_is_cut(tmp_path):
    write_parquet(tmp_path / "in" / "a.parquet", [table(4), table(4, 4)])
    write_parquet(tmp_path / "in" / "b.parquet", [table(2, 8)])
    whole = (tmp_path / "in" / "a.parquet").read_bytes()
    for end in [*range(0, len(whole) - 1, 97), len(whole) - 1]:
        (tmp_path / "in" / "a.parquet").write_bytes(whole[:end])
        source = open_source(tmp_path / "in", GREY)
        found = [decoded(source, item) for item in items(source)]
        assert len(found) == 3 and found[0].startswith("cannot be read: ") and "\n" not in found[0] and found[1:] == [8, 9]


def test_what_is_damaged_in_the_middle_costs_its_group_of_rows(tmp_path):
    write_parquet(tmp_path / "in.parquet", [table(4), table(4, 4), table(4, 8)], compression="NONE", use_dictionary=False)
    content = bytearray((tmp_path / "in.parquet").read_bytes())
    start = pq.read_metadata(tmp_path / "in.parquet").row_group(1).column(0).data_page_offset
    content[start : start + 12] = b"\xff" * 12  # the header of a page
    (tmp_path / "in.parquet").write_bytes(content)
    source = open_source(tmp_path / "in.parquet", GREY)
    found = [decoded(source, item) for item in items(source, 3)]
    assert found[:4] == [0, 1, 2, 3] and found[8:] == [8, 9, 10, 11]
    assert all(str(reason).startswith("cannot be read: ") for reason in found[4:8])


def test_damage_in_the_columns_never_ends_a_run_and_every_row_keeps_its_record(tmp_path):
    write_parquet(tmp_path / "in.parquet", [table(3), table(3, 3)], compression="NONE")
    whole, random = (tmp_path / "in.parquet").read_bytes(), np.random.RandomState(0)
    end = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")  # what is damaged behind it: tests/soak/test_tables.py
    read = 0
    for _ in range(60):
        content = bytearray(whole)
        for place in random.randint(0, end, 3):
            content[place] = random.randint(256)
        (tmp_path / "in.parquet").write_bytes(content)
        source = open_source(tmp_path / "in.parquet", GREY)
        found = [decoded(source, item) for item in items(source, 4)]
        assert len(found) == 6
        read += sum(isinstance(value, int) for value in found)
    assert 60 < read < 360, "rows are read past damage that does not concern them"


def test_a_file_that_says_it_has_more_rows_than_it_can_hold_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setattr("purify_engine.data.sources.tables.ROWS_A_BYTE", 0.001)
    write_parquet(tmp_path / "in.parquet", [table(9)])
    with pytest.raises(ValueError, match="it says that it has 9 rows"):
        open_source(tmp_path / "in.parquet", GREY)


def test_an_extension_type_that_names_code_runs_none(tmp_path):
    """pyarrow before 14.0.1 unpickled what such a type's metadata held."""
    payload = b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": payload}
    field = pa.field("extra", pa.binary(), metadata=metadata)
    images = pa.array([{"bytes": png(3), "path": "a"}], IMAGE)
    write_parquet(tmp_path / "in.parquet", [pa.table([images, pa.array([b"x"])], pa.schema([("image", IMAGE), field]))])
    assert purified(tmp_path / "in.parquet", tmp_path / "out").ok == 1
    assert not (tmp_path / "ran").exists()


def test_the_output_has_the_names_columns_schema_and_metadata_of_the_source(tmp_path):
    summary = purified(clone(tmp_path / "in"), tmp_path / "out", part_size=4)
    assert summary.ok == 11 and [failure.name for failure in summary.failed] == ["data/test-00000-of-00001.parquet[1]"]
    out = {name: pq.read_table(tmp_path / "out" / name) for name in tree(tmp_path / "out") if name.endswith(".parquet")}
    assert {name: len(rows) for name, rows in out.items()} == {
        "data/test-00000-of-00001.parquet": 2,
        "data/train-00000-of-00002-00000.parquet": 4,
        "data/train-00000-of-00002-00001.parquet": 3,
        "data/train-00001-of-00002.parquet": 2,
    }
    rows = pa.concat_tables(out.values())
    assert all(part.schema.equals(SCHEMA, check_metadata=True) for part in out.values())
    numbers = [9, 11, *range(9)]
    assert rows["text"].to_pylist() == [f"row {row}" for row in numbers]
    assert rows["label"].to_pylist() == [row % 2 for row in numbers]
    assert [cell["path"] for cell in rows["image"].to_pylist()] == [f"{row}.jpg.png" for row in numbers]
    assert all(abs(level(cell["bytes"]) - row / 2) <= 0.5 for row, cell in zip(numbers, rows["image"].to_pylist(), strict=True))


def test_an_interrupted_run_ends_with_the_same_tree(tmp_path):
    source = clone(tmp_path / "in")
    purified(source, tmp_path / "once")
    for _ in range(2):
        with pytest.raises(Killed):
            purified(source, tmp_path / "out", parts=1)
    purified(source, tmp_path / "out")
    timed = ("run.json",)
    assert tree(tmp_path / "out", *timed) == tree(tmp_path / "once", *timed)


def test_a_part_that_failed_is_no_file_until_it_is_retried(tmp_path):
    write_parquet(tmp_path / "in.parquet", [table(5)])
    assert purified(tmp_path / "in.parquet", tmp_path / "out", compute=Darkened(refused={3, 4})).ok == 3
    assert [name for name in tree(tmp_path / "out") if name.endswith(".parquet")] == ["in-00000.parquet"]
    assert purified(tmp_path / "in.parquet", tmp_path / "out", retry=True).ok == 5
    assert len(pq.read_table(tmp_path / "out" / "in-00001.parquet")) == 2


def test_all_images_are_read_for_training_and_evaluation(tmp_path):
    write_parquet(tmp_path / "in.parquet", [table(3)])
    assert (read_all(open_source(tmp_path / "in.parquet", GREY))[:, 0, 0, 0] * 255).tolist() == pytest.approx([0, 1, 2])


@pytest.mark.parametrize(
    ("output", "says"),
    [("in", "a folder outside the source"), ("in/x", "a folder outside the source"), ("x.parquet", "a folder, in which each")],
)
def test_an_output_in_the_way_is_refused(output, says, tmp_path):
    write_parquet(tmp_path / "in" / "a.parquet", [table(3)])
    with pytest.raises(ValueError, match=f"^output must be {says}"):
        open_sink(open_source(tmp_path / "in", GREY), tmp_path / output)


def test_files_whose_parts_would_meet_are_refused(tmp_path):
    for name in ("a", "a-00000"):
        write_parquet(tmp_path / "in" / f"{name}.parquet", [table(3)])
    with pytest.raises(ValueError, match="named as a part of another, got 'a-00000.parquet beside a.parquet'$"):
        open_sink(open_source(tmp_path / "in", GREY), tmp_path / "out")


def test_files_without_the_column_are_skipped(tmp_path):
    write_parquet(tmp_path / "a.parquet", [pa.table({"words": ["x"]})])
    write_parquet(tmp_path / "b.parquet", [table(1)])
    source = open_source(tmp_path, GREY)
    assert names(source) == ("b.parquet[0]",) and source.skipped == (("a.parquet", "has no column image"),)


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["a.parquet"], "parquet"),
        (["data/train.parquet", "banner.png"], "parquet"),
        (["default/train/0.parquet", "README.md"], "parquet"),
        (["cat/a.png", "metadata.parquet"], "folder"),
        (["cat/a.png", "dog/a.parquet"], "folder"),
    ],
    ids=str,
)
def test_a_folder_is_one_of_tables_or_of_images(files, kind, tmp_path):
    for name in files:
        write_parquet(tmp_path / name, [table(1)])
        if name.endswith(".png"):
            (tmp_path / name).write_bytes(png(1))
    assert open_source(tmp_path, GREY).kind == kind


def test_columns_of_one_name_are_no_table(tmp_path):
    images = pa.array([{"bytes": png(1), "path": "a"}], IMAGE)
    write_parquet(tmp_path / "in.parquet", [pa.table([images, images], ["image", "image"])])
    with pytest.raises(ValueError, match="its columns have no names of their own"):
        open_source(tmp_path / "in.parquet", GREY)


def test_links_to_files_are_followed_as_in_the_hubs_cache(tmp_path):
    write_parquet(tmp_path / "blobs" / "0f", [table(1)])
    (tmp_path / "in" / "data").mkdir(parents=True)
    (tmp_path / "in" / "data" / "train.parquet").symlink_to(tmp_path / "blobs" / "0f")
    (tmp_path / "in" / "circle").symlink_to(tmp_path / "in")
    source = open_source(tmp_path / "in", GREY)
    assert names(source) == ("data/train.parquet[0]",) and [entry.name for entry in source.skipped] == ["circle/"]


def test_a_table_of_any_size_is_a_part_of_one_file(tmp_path):
    write_parquet(tmp_path / "in.parquet", [table(7)])
    assert open_source(tmp_path / "in.parquet", GREY).parts(3) == [
        Part(0, 0, 3, "in.parquet", 0, 3), Part(1, 3, 3, "in.parquet", 1, 3), Part(2, 6, 1, "in.parquet", 2, 3)
    ]  # fmt: skip


def test_other_content_has_another_fingerprint(tmp_path):
    prints = []
    for bad in ((), {1}):
        write_parquet(tmp_path / "in.parquet", [table(2, bad=bad)])
        prints.append(open_source(tmp_path / "in.parquet", GREY).fingerprint())
    assert prints[0] != prints[1]


def test_without_pyarrow_one_line_says_how_to_install_it(tmp_path, monkeypatch):
    write_parquet(tmp_path / "in.parquet", [table(1)])
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"^pyarrow is not installed: pip install 'purify-engine\[parquet\]'$"):
        open_source(tmp_path / "in.parquet", GREY)


def test_the_example_of_the_page_runs_as_it_stands(tmp_path, monkeypatch):
    section = PAGE.read_text(encoding="utf-8").split("## Parquet, ", 1)[1].split("\n## ", 1)[0]
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(GuidedPurifier, "from_pretrained", lambda name: Halved())  # the real one takes seconds to load
    images = [{"bytes": png(level, (8, 8)), "path": f"{level}.jpg"} for level in (10, 90)]
    rows = pa.table([pa.array(images, IMAGE), pa.array([0, 1]), pa.array(["a", "b"])], SCHEMA)
    write_parquet(tmp_path / "digits" / "data" / "train-00000-of-00001.parquet", [rows])
    said = {}
    exec(compile(example, str(PAGE), "exec"), said)
    assert said["summary"].ok == 2
    assert pq.read_table(tmp_path / "clean" / "data" / "train-00000-of-00001.parquet").num_rows == 2
