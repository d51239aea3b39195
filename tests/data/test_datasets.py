"""Folders as Hugging Face's `save_to_disk` writes them, in and out."""

import json

import pytest

from purify_engine.data import ImageShape, ItemError, open_source
from tests.data.access import names
from tests.data.darkened import Darkened
from tests.data.tables import FEATURES, SCHEMA, STATE, Killed, level, pa, purified, table, tree, write_dataset, write_stream

GREY = ImageShape(1)
SHARDS = {"data-00000-of-00002.arrow": [table(4), table(3, 4)], "data-00001-of-00002.arrow": [table(2, 7)]}


def found(source, size=3):
    """The grey of every row, or why there is none."""
    values = []
    for item in [item for part in source.parts(size) for item in source.items(part)]:
        try:
            values.append(int(source.decode(item)[0, 0, 0]))
        except ItemError as reason:
            values.append(str(reason))
    return values


def rows(folder):
    """All rows of the streams that state.json names, as `load_from_disk` reads them."""
    files = json.loads((folder / "state.json").read_text())["_data_files"]
    return pa.concat_tables(pa.ipc.open_stream((folder / file["filename"]).read_bytes()).read_all() for file in files)


def test_rows_come_by_sorted_stream_with_their_labels_and_names_of_classes(tmp_path):
    write_dataset(tmp_path / "in", SHARDS)
    source = open_source(tmp_path / "in", GREY)
    assert source.kind == "arrow" and source.classes == ("cat", "dog") and source.labels.tolist() == [n % 2 for n in range(9)]
    assert names(source)[5:8] == ("data-00000-of-00002.arrow[5]", "data-00000-of-00002.arrow[6]", "data-00001-of-00002.arrow[0]")
    assert found(source) == list(range(9)) and source.skipped == ()


@pytest.mark.parametrize("parts", [None, 1, 2])
def test_the_output_is_a_dataset_of_the_rows_that_did_not_fail(parts, tmp_path):
    write_dataset(tmp_path / "in", SHARDS)
    if parts is not None:
        with pytest.raises(Killed):
            purified(tmp_path / "in", tmp_path / "out", parts=parts)
        assert not (tmp_path / "out" / "state.json").exists(), "a dataset that is not whole cannot be loaded"
    purified(tmp_path / "in", tmp_path / "out", compute=Darkened(refused={2} if parts is None else ()))
    numbers = [n for n in range(9) if n != 2 or parts is not None]
    out = rows(tmp_path / "out")
    assert out.schema.equals(SCHEMA, check_metadata=True) and out["text"].to_pylist() == [f"row {n}" for n in numbers]
    assert all(abs(level(cell["bytes"]) - n / 2) <= 0.5 for n, cell in zip(numbers, out["image"].to_pylist(), strict=True))
    state = json.loads((tmp_path / "out" / "state.json").read_text())
    assert state["_fingerprint"] != STATE["_fingerprint"], "what was computed of the old images is not that of these"
    assert json.loads((tmp_path / "out" / "dataset_info.json").read_text()) == {"features": FEATURES, "license": "MIT"}


def test_an_interrupted_run_ends_with_the_same_tree(tmp_path):
    write_dataset(tmp_path / "in", SHARDS)
    purified(tmp_path / "in", tmp_path / "once")
    for parts in (1, 1):
        with pytest.raises(Killed):
            purified(tmp_path / "in", tmp_path / "out", parts=parts)
    purified(tmp_path / "in", tmp_path / "out")
    assert tree(tmp_path / "out", "run.json") == tree(tmp_path / "once", "run.json")


def test_every_split_is_purified_and_one_that_failed_whole_is_left_out(tmp_path):
    for split, first in (("train", 0), ("test", 5)):
        write_dataset(tmp_path / "in" / split, {"data-00000-of-00001.arrow": [table(3, first)]})
    (tmp_path / "in" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    source = open_source(tmp_path / "in", GREY)
    assert names(source)[0] == "test/data-00000-of-00001.arrow[0]" and found(source) == [5, 6, 7, 0, 1, 2]
    purified(tmp_path / "in", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "dataset_dict.json").read_text()) == {"splits": ["train", "test"]}
    assert [len(rows(tmp_path / "out" / split)) for split in ("train", "test")] == [3, 3]
    purified(tmp_path / "in", tmp_path / "some", compute=Darkened(refused={0, 1, 2}))
    assert json.loads((tmp_path / "some" / "dataset_dict.json").read_text()) == {"splits": ["train"]}
    assert not (tmp_path / "some" / "test").exists()


def test_where_every_row_failed_there_is_no_dataset(tmp_path):
    write_dataset(tmp_path / "in", {"data-00000-of-00001.arrow": [table(3)]})
    purified(tmp_path / "in", tmp_path / "out", compute=Darkened(refused={0, 1, 2}))
    assert set(tree(tmp_path / "out")) == {"run.json", "manifest.jsonl", "failed.jsonl", "skipped.jsonl"}


def test_a_stream_that_is_cut_short_is_told_wherever_it_is_cut(tmp_path):
    write_dataset(tmp_path / "in", {"a.arrow": [table(4), table(4, 4)], "b.arrow": [table(2, 8)]})
    whole = (tmp_path / "in" / "a.arrow").read_bytes()
    lengths = set()
    for end in [*range(0, len(whole) - 1, 61), len(whole) - 8, len(whole) - 1]:
        (tmp_path / "in" / "a.arrow").write_bytes(whole[:end])
        values = found(open_source(tmp_path / "in", GREY))
        assert values[-2:] == [8, 9] and values[: len(values) - 3] == list(range(len(values) - 3))
        assert isinstance(values[-3], str) and "\n" not in values[-3]
        lengths.add(len(values) - 3)
    assert lengths == {0, 4, 8}, "batches that are whole are read"


def test_offsets_that_lead_out_of_a_stream_cost_their_rows_alone(tmp_path):
    write_dataset(tmp_path / "in", {"a.arrow": [table(4)]})
    path = tmp_path / "in" / "a.arrow"
    content = path.read_bytes()
    lengths = [len(cell["bytes"]) for cell in table(4)["image"].to_pylist()]
    offsets = b"".join(sum(lengths[:n]).to_bytes(4, "little") for n in range(5))
    assert content.count(offsets) == 1
    path.write_bytes(content.replace(offsets, offsets[:8] + b"\xff\xff\xff\x7f" + offsets[12:]))
    values = found(open_source(tmp_path / "in", GREY))
    assert [values[0], values[3]] == [0, 3]
    assert all(str(reason).startswith("cannot be read: ArrowInvalid") for reason in values[1:3])


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("{", "a readable state.json"),
        ("[]", "a state.json that is one object"),
        ("{}", "a state.json that names files beside it, got None"),
        ('{"_data_files": [{"filename": "../in/a.arrow"}]}', "a state.json that names files beside it"),
        ('{"_data_files": [{"filename": "/etc/passwd"}]}', "a state.json that names files beside it"),
        ('{"_data_files": [{"filename": ".."}]}', "a state.json that names files beside it"),
        ('{"_data_files": [1]}', "a state.json that names files beside it"),
        ('{"_data_files": [], "_indices_data_files": [{"filename": "i.arrow"}]}', "a dataset without indices"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(state, says, tmp_path):
    write_dataset(tmp_path / "in", {"a.arrow": [table(1)]})
    (tmp_path / "in" / "state.json").write_text(state)
    with pytest.raises(ValueError, match=f"^source must (have|be) {says}"):
        open_source(tmp_path / "in", GREY)


@pytest.mark.parametrize("splits", ['["../in"]', '["a/b"]', '"train"', "[1]"])
def test_splits_that_are_no_folders_of_the_dataset_are_refused(splits, tmp_path):
    write_dataset(tmp_path / "in", {"a.arrow": [table(1)]})
    (tmp_path / "in" / "dataset_dict.json").write_text(f'{{"splits": {splits}}}')
    with pytest.raises(ValueError, match="^source must have a dataset_dict.json that names folders in it, got"):
        open_source(tmp_path / "in", GREY)


def test_streams_that_are_missing_or_not_named_are_told(tmp_path):
    write_dataset(tmp_path / "in", {"a.arrow": [table(1)], "b.arrow": [table(1, 1)]})
    (tmp_path / "in" / "a.arrow").unlink()
    write_stream(tmp_path / "in" / "cache-1.arrow", [table(1)])
    source = open_source(tmp_path / "in", GREY)
    assert found(source) == ["is missing, though state.json names it", 1]
    assert source.skipped == (("cache-1.arrow", "state.json does not name it"),)
