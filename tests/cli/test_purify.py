import json
import signal

import numpy as np
import pytest
from PIL import Image

from purify_engine.data.manifest import Manifest


@pytest.fixture
def folder(tmp_path):
    """Six images in two class folders."""
    for index in range(6):
        path = tmp_path / "in" / ("even", "odd")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 40 * index, np.uint8)).save(path)
    return tmp_path / "in"


def test_a_folder_becomes_a_folder(folder, tmp_path, command, small_purifier):
    code, out, err = command("purify", folder, tmp_path / "out", "--purifier", small_purifier, "--json")
    result = json.loads(out)
    assert code == 0 and result["ok"] == 6 and result["failed"] == 0 and result["images_per_second"] > 0
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert written == ["even/0.png", "even/2.png", "even/4.png", "odd/1.png", "odd/3.png", "odd/5.png"]
    assert json.loads(err.splitlines()[-1])["done"] == 6  # stderr is no terminal here: JSON lines
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["config"]["t_star"] == 30 and record["pinned"]["batch_size"] == 64 and "exif" in record["policies"]


def test_the_record_and_the_closing_line_say_where_and_in_which_precision(folder, tmp_path, command, small_purifier):
    words = ["--purifier", small_purifier, "--device", "cpu"]
    code, out, _ = command("purify", folder, tmp_path / "out", *words, "--precision", "bf16")
    assert code == 0 and out.rstrip().endswith("images/s, on cpu in bf16, channels_last")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    told = {"device": "cpu", "precision": "bf16", "memory_format": "channels_last", "gpu": None, "tf32": []}
    assert told.items() <= record.items()
    code, out, _ = command("purify", folder, tmp_path / "plain", *words, "--json")
    assert {**told, "precision": "float32", "memory_format": "contiguous"}.items() <= json.loads(out).items()


def test_a_revision_of_the_hub_is_fetched_and_recorded(folder, tmp_path, command, small_purifier, hub):
    hub.folders["v1"] = small_purifier
    code, _, err = command("purify", folder, tmp_path / "out", "--purifier", "owner/name", "--revision", "v1")
    assert code == 0, err
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["purifier"], record["revision"]) == ("owner/name", "v1")
    code, _, err = command("purify", folder, tmp_path / "no", "--purifier", small_purifier, "--revision", "v1")
    assert code == 2 and "revision must be None for an embedded name, a folder or a file" in err
    code, _, err = command("purify", folder, tmp_path / "no", "--purifier", "owner/name", "--revision", "v9")
    assert code == 2 and "'owner/name' at revision 'v9' cannot be had" in err and not (tmp_path / "no").exists()


def test_the_same_command_gives_the_same_bytes(folder, tmp_path, command, small_purifier):
    for name, size in (("one", 1), ("again", 1), ("four", 4)):
        command("purify", folder, tmp_path / name, "--purifier", small_purifier, "--batch-size", size)

    def levels(name):
        return [np.asarray(Image.open(path)).astype(int) for path in sorted((tmp_path / name).rglob("*.png"))]

    assert np.array_equal(levels("one"), levels("again"))
    assert np.abs(np.subtract(levels("one"), levels("four"))).max() <= 1  # a rounding on the brink of two levels


def test_options_reach_the_purifier(folder, tmp_path, command, small_purifier):
    command("purify", folder, tmp_path / "a", "--purifier", small_purifier, "--seed", 7, "--guidance.scale", 0)
    config = json.loads((tmp_path / "a" / "run.json").read_text())["config"]
    assert config["seed"] == 7 and config["guidance"]["scale"] == 0 and config["num_steps"] == 3


def test_a_toml_file_gives_options_and_the_command_line_wins(folder, tmp_path, command, small_purifier):
    (tmp_path / "my.toml").write_text(f'[purify]\npurifier = "{small_purifier}"\nseed = 3\nt_star = 20\nguidance.scale = 0.5\n')
    command("purify", folder, tmp_path / "a", "--config", tmp_path / "my.toml", "--seed", 9)
    config = json.loads((tmp_path / "a" / "run.json").read_text())["config"]
    assert (config["seed"], config["t_star"], config["guidance"]["scale"]) == (9, 20, 0.5)


def test_some_failures_are_listed_and_the_rest_goes_on(folder, tmp_path, command, small_purifier):
    (folder / "even" / "broken.png").write_bytes(b"\x89PNG")
    Image.new("L", (9, 9)).save(folder / "odd" / "large.png")
    (folder / "readme.md").write_text("no image")
    code, out, _ = command("purify", folder, tmp_path / "out", "--purifier", small_purifier)
    assert code == 3
    assert "6 images purified" in out and "1 other things there were skipped, with a reason in skipped.jsonl: readme.md" in out
    assert "even/broken.png: cannot read the image" in out and "odd/large.png: is 9x9 pixels" in out
    listed = [json.loads(line)["name"] for line in (tmp_path / "out" / "failed.jsonl").read_text().splitlines()]
    assert listed == ["even/broken.png", "odd/large.png"]


def test_nothing_but_failures_is_code_4(tmp_path, command, small_purifier):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    assert command("purify", tmp_path / "in", tmp_path / "out", "--purifier", small_purifier)[0] == 4


def test_an_array_file_becomes_an_array_file(tmp_path, command, small_purifier):
    images = np.random.RandomState(0).rand(5, 1, 8, 8).astype(np.float32)
    np.savez(tmp_path / "in.npz", images=images, labels=np.arange(5))
    code, out, _ = command("purify", tmp_path / "in.npz", tmp_path / "out.npz", "--purifier", small_purifier)
    written = np.load(tmp_path / "out.npz")
    assert code == 0 and "5 images purified" in out
    assert written["images"].shape == images.shape and written["images"].dtype == np.float32
    assert written["labels"].tolist() == [0, 1, 2, 3, 4]
    assert 0.01 < np.abs(written["images"] - images).mean() < 0.6
    assert json.loads((tmp_path / "out.run.json").read_text())["ok"] == 5


@pytest.mark.parametrize(
    ("arrange", "says"),
    [
        (lambda at: (at / "in").mkdir(), "source must be a folder with images in it"),
        (lambda at: None, "source must be an existing image folder"),
        (lambda at: np.save(at / "in.npy", np.zeros((2, 8, 8), np.uint8)), "source must be an existing image folder"),
    ],
    ids=["empty folder", "no folder", "a file of another name"],
)
def test_a_bad_source_is_one_line(arrange, says, tmp_path, command, small_purifier):
    arrange(tmp_path)
    code, _, err = command("purify", tmp_path / "in", tmp_path / "out", "--purifier", small_purifier)
    assert code == 2 and says in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("spoil", ["missing", "truncated", "pickle"])
def test_bad_weights_are_one_line(spoil, tmp_path, folder, command, small_purifier):
    import pickle
    import shutil

    shutil.copytree(small_purifier, tmp_path / "bad")
    weights = tmp_path / "bad" / "unet.safetensors"
    {
        "missing": weights.unlink,
        "truncated": lambda: weights.write_bytes(weights.read_bytes()[:500]),
        "pickle": lambda: weights.write_bytes(pickle.dumps(print)),
    }[spoil]()
    code, _, err = command("purify", folder, tmp_path / "out", "--purifier", tmp_path / "bad")
    assert code == 2 and "unet.safetensors" in err and err.count("\n") == 1


def test_one_photo_of_another_size_becomes_one_file_and_the_record_says_how(tmp_path, command, small_purifier):
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (13, 9, 3)).astype(np.uint8)).save(tmp_path / "photo.png")
    words = ["purify", tmp_path / "photo.png", tmp_path / "clean.png", "--purifier", small_purifier]
    code, out, _ = command(*words, "--json")
    assert code == 4 and json.loads(out)["failed"] == 1
    failure = json.loads((tmp_path / "clean.failed.jsonl").read_text())["reason"]
    assert failure == "is 9x13 pixels, the network takes 8x8: resize it first, or set sizes (--sizes) to resize, tile or native"
    for sizes, policy in (("resize", "resize: to 8x8 and back"), ("tile", "tile: 8x8 every 5 pixels")):
        words[2] = tmp_path / f"{sizes}.png"
        assert command(*words, "--sizes", sizes, "--tile-stride", 5, "--no-clamp")[0] == 0
        record = json.loads((tmp_path / f"{sizes}.run.json").read_text())
        assert record["config"]["sizes"] == sizes and record["config"]["clamp"] is False
        assert record["policies"]["sizes"].startswith(policy) and record["image_sizes"] == {"9x13": 1}
        assert Image.open(tmp_path / f"{sizes}.png").size == (9, 13)


def test_a_toml_file_chooses_the_sizes_and_arrays_of_any_size_pass(tmp_path, command, small_purifier):
    (tmp_path / "my.toml").write_text(f'[purify]\npurifier = "{small_purifier}"\nsizes = "native"\nclamp = false\n')
    np.save(tmp_path / "in.npy", np.zeros((2, 1, 6, 10), np.float32))
    assert command("purify", tmp_path / "in.npy", tmp_path / "out.npy", "--config", tmp_path / "my.toml")[0] == 0
    written = np.load(tmp_path / "out.npy")
    assert written.shape == (2, 1, 6, 10) and 0 <= written.min() < written.max() <= 1
    config = json.loads((tmp_path / "out.run.json").read_text())["config"]
    assert config["sizes"] == "native" and config["clamp"] is False
    code, _, err = command("purify", tmp_path / "in.npy", tmp_path / "other.npy", "--purifier", small_purifier)
    assert code == 2 and "--sizes" in err and err.count("\n") == 1


def test_files_hold_unit_images_whatever_range_was_saved_and_values_beyond_are_cut_where_asked(tmp_path, command, small_purifier):
    import shutil

    saved = shutil.copytree(small_purifier, tmp_path / "saved")
    config = json.loads((saved / "config.json").read_text())
    config["purifier"]["image_range"] = [-1.0, 1.0]
    (saved / "config.json").write_text(json.dumps(config))
    pixels = np.random.RandomState(0).rand(2, 1, 8, 8).astype(np.float32)
    pixels[1, 0, 0, 0] = 1.01
    np.save(tmp_path / "in.npy", pixels)
    code, out, _ = command("purify", tmp_path / "in.npy", tmp_path / "refused.npy", "--purifier", saved)
    assert code == 3 and "1: lies in" in out and "1.01], must lie in [0, 1]" in out and "--clip-input" in out
    for name in (saved, small_purifier):
        words = ["purify", tmp_path / "in.npy", tmp_path / f"{name.parent.name}.npy", "--purifier", name, "--clip-input"]
        assert command(*words)[0] == 0
    of_saved, of_unit = (np.load(tmp_path / f"{name.parent.name}.npy") for name in (saved, small_purifier))
    assert np.array_equal(of_saved, of_unit) and of_unit.max() <= 1
    assert json.loads((tmp_path / f"{tmp_path.name}.run.json").read_text())["config"]["image_range"] == [0.0, 1.0]


def test_a_signal_ends_after_the_parts_in_work_and_the_same_command_goes_on(
    tmp_path, command, small_purifier, monkeypatch
):
    np.save(tmp_path / "in.npy", np.zeros((24, 8, 8), np.uint8))
    one_by_one = ["--part-size", "1", "--batch-size", "1"]
    words = ["purify", tmp_path / "in.npy", tmp_path / "out.npy", "--purifier", small_purifier, *one_by_one, "--json"]
    commit = Manifest.commit

    def interrupting(self, record):
        commit(self, record)
        if record["part"] == 0:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Manifest, "commit", interrupting)
    code, out, err = command(*words)
    stopped = json.loads(out)
    assert code == 143 and 1 <= stopped["ok"] < 24 and stopped["left"] == 24 - stopped["ok"]
    assert f"stopped with {stopped['left']} images left; go on with: purify-engine" in err.splitlines()[-1]
    code, out, _ = command(*words)
    assert code == 0 and json.loads(out)["ok"] == 24 and len(np.load(tmp_path / "out.npy")) == 24
