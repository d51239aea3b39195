import json

import numpy as np
import pytest
import torch
from PIL import Image

from purify_engine.data import ImageShape, ItemError, open_sink, open_source, purify_dataset
from purify_engine.data.manifest import write_record
from purify_engine.data.pixels import decode
from tests.data.access import item_of, write

GREY = ImageShape(1, 8)


def folder_of(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 50).save(root / name)
    return open_source(root, GREY)


def test_class_folders_are_kept_and_everything_is_png(tmp_path):
    source = folder_of(tmp_path / "in", "cat/a.png", "dog/b.jpg")
    written, _ = write(source, open_sink(source, tmp_path / "out"), dict.fromkeys(range(2), torch.full((1, 8, 8), 0.2)))
    assert [file.file for file in written] == ["cat/a.png", "dog/b.jpg.png"]
    assert all((decode(tmp_path / "out" / file.file, 1) == 51).all() for file in written)


def test_images_that_share_a_stem_do_not_meet(tmp_path):
    source = folder_of(tmp_path / "in", "a.png", "a.jpg", "a.bmp")
    write(source, open_sink(source, tmp_path / "out"), dict.fromkeys(range(3), torch.zeros(1, 8, 8)))
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_a_second_image_for_one_file_fails_alone(tmp_path):
    source = folder_of(tmp_path / "in", "a.jpg", "a.jpg.png")
    sink = open_sink(source, tmp_path / "out")
    with pytest.raises(ItemError, match="would be written to a.jpg.png, where another image or folder goes: rename one of them"):
        sink.encode(item_of(source, 0), np.zeros((1, 8, 8), np.float32))
    assert sink.encode(item_of(source, 1), np.zeros((1, 8, 8), np.float32))


@pytest.mark.parametrize("where", ["in", "in/out"])
def test_the_output_may_not_lie_in_the_source(where, tmp_path):
    source = folder_of(tmp_path / "in", "a.png")
    with pytest.raises(ValueError, match="output must be a folder outside the source"):
        open_sink(source, tmp_path / where)


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    source = folder_of(tmp_path / "in", "a.png")
    folder_of(tmp_path / "out", "b.png")
    with pytest.raises(ValueError, match="output must be a new or an empty folder"):
        purify_dataset(torch.nn.Identity(), source, open_sink(source, tmp_path / "out"))


@pytest.mark.parametrize("layout", [(2, 1, 8, 8), (2, 8, 8, 1), (2, 8, 8)], ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float64"])
def test_an_array_keeps_its_layout_dtype_and_companions(layout, dtype, tmp_path):
    np.savez(tmp_path / "in.npz", images=np.zeros(layout, dtype), labels=np.array([3, 4]))
    source = open_source(tmp_path / "in.npz", GREY)
    sink = open_sink(source, tmp_path / "deep" / "out.npz")
    write(source, sink, {1: torch.full((1, 8, 8), 0.6)})
    written = np.load(tmp_path / "deep" / "out.npz")
    assert written["images"].shape == layout and written["images"].dtype == dtype and written["labels"].tolist() == [3, 4]
    assert np.allclose(written["images"][1], 153 if dtype == "uint8" else 0.6, atol=1e-3) and not written["images"][0].any()


@pytest.mark.parametrize(
    ("name", "says"), [("out.npz", "a .npy file, as the source is one"), ("in.npy", "a file that does not exist yet")]
)
def test_an_impossible_output_file_is_refused(name, says, tmp_path):
    np.save(tmp_path / "in.npy", np.zeros((2, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=f"output must be {says}"):
        source = open_source(tmp_path / "in.npy", GREY)
        purify_dataset(torch.nn.Identity(), source, open_sink(source, tmp_path / name))


def test_records_lie_beside_the_images(tmp_path):
    np.save(tmp_path / "in.npy", np.zeros((2, 8, 8), np.uint8))
    of_array = open_sink(open_source(tmp_path / "in.npy", GREY), tmp_path / "out.npy")
    of_folder = open_sink(folder_of(tmp_path / "in", "a.png"), tmp_path / "out")
    assert of_array.record("run.json") == tmp_path / "out.run.json"
    assert of_folder.record("run.json") == tmp_path / "out" / "run.json"
    write_record(tmp_path / "failed.jsonl", [{"id": 1}, {"id": 2}])
    assert [json.loads(line) for line in (tmp_path / "failed.jsonl").read_text().splitlines()] == [{"id": 1}, {"id": 2}]


def test_the_folders_of_an_array_are_made_before_the_work_begins(tmp_path):
    np.save(tmp_path / "in.npy", np.zeros((2, 8, 8), np.uint8))
    open_sink(open_source(tmp_path / "in.npy", GREY), tmp_path / "deep" / "er" / "out.npy").prepare()
    assert (tmp_path / "deep" / "er").is_dir(), "where they cannot be made is told now, and not after hours"


def test_a_record_is_indented_and_a_list_of_them_has_a_line_each(tmp_path):
    write_record(tmp_path / "run.json", {"a": 1, "b": {"c": 2}})
    assert (tmp_path / "run.json").read_text() == '{\n  "a": 1,\n  "b": {\n    "c": 2\n  }\n}\n'
    write_record(tmp_path / "deep" / "er" / "failed.jsonl", [{"a": 1}, {"b": 2}])
    assert (tmp_path / "deep" / "er" / "failed.jsonl").read_text() == '{"a": 1}\n{"b": 2}\n'
