"""Tar shards in and out: which samples they hold, in which order, and what the shards of the output are."""

from __future__ import annotations

import io
import json
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from purify_engine.data.items import ImageShape, ItemError, Outcome
from purify_engine.data.sinks import WebDatasetSink, open_sink
from purify_engine.data.sources import WebDatasetSource, open_source, shards, webdataset
from tests.data.tars import END, SHAPE, Watch, contents, file, head, pax, png, sample


def shard(path, *pieces):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(pieces) + END)
    return path


@pytest.fixture
def two(tmp_path):
    """b.tar with five samples of labels 0 to 4, and a.tar with two."""
    shard(tmp_path / "two" / "b.tar", *(sample(b"b%d" % number, number, 10 * number) for number in range(5)))
    shard(tmp_path / "two" / "a.tar", sample(b"a0", 5), sample(b"a1", 6))
    return tmp_path / "two"


def everything(source):
    return [item for part in source.parts(10**6) for item in source.items(part)]


def written(source, output, size=10**6, spoiled=()):
    """Every image as it was read, but for the ids `spoiled`; the files and the failures."""
    sink = open_sink(source, output)
    sink.prepare()
    files, failures = [], []
    for part in source.parts(size):
        done, failed = sink.write(part, (Outcome(item, outcome(source, sink, item, spoiled)) for item in source.items(part)))
        files += done
        failures += [(item.id, item.name, str(reason)) for item, reason in failed]
    return files, failures


def outcome(source, sink, item, spoiled):
    try:
        if item.id in spoiled:
            raise ItemError("spoiled")
        return sink.encode(item, source.decode(item).astype(np.float32) / 255)
    except ItemError as reason:
        return reason


def test_samples_are_numbered_by_shard_and_place(two):
    source = open_source(two, SHAPE)
    assert isinstance(source, WebDatasetSource) and source.kind == "webdataset"
    names = ["a.tar/a0.png", "a.tar/a1.png", *(f"b.tar/b{number}.png" for number in range(5))]
    assert [item.name for item in everything(source)] == names
    assert [item.id for item in everything(source)] == list(range(7))
    assert [source.name(id) for id in range(7)] == names
    assert source.labels.tolist() == [5, 6, 0, 1, 2, 3, 4]
    assert source.decode(everything(source)[4])[0, 0, 0] == 20


def test_no_part_reaches_over_two_shards(two):
    parts = open_source(two, SHAPE).parts(2)
    assert [(part.index, part.first, part.count, part.container) for part in parts] == [
        (0, 0, 2, "a.tar"), (1, 2, 2, "b.tar"), (2, 4, 2, "b.tar"), (3, 6, 1, "b.tar"),
    ]  # fmt: skip


def test_a_shard_keeps_its_name_and_one_of_several_parts_becomes_as_many(two, tmp_path):
    source = open_source(two, SHAPE)
    files, failures = written(source, tmp_path / "out", size=2)
    assert [file.file for file in files] == ["a.tar", "b-00000.tar", "b-00001.tar", "b-00002.tar"]
    assert failures == []
    made = {path.name: [name for name, _ in contents(path.read_bytes())] for path in (tmp_path / "out").iterdir()}
    assert made["b-00001.tar"] == ["b2.png", "b2.cls", "b3.png", "b3.cls"]
    for done in files:
        content = (tmp_path / "out" / done.file).read_bytes()
        assert len(content) == done.size and webdataset.hashlib.sha256(content).hexdigest() == done.sha256


def test_a_pattern_names_its_shards(two):
    for pattern in ("{a..b}.tar", "{a,b}x.tar"):
        with pytest.raises(ValueError, match="source must be"):
            open_source(two / pattern, SHAPE)
    assert len(open_source(two / "{b,a}.tar", SHAPE)) == 7
    assert shards.expanded("x-{08..11}/{a,b}.tar")[1:4] == ["x-08/b.tar", "x-09/a.tar", "x-09/b.tar"]
    with pytest.raises(ValueError, match=re.escape("without shard-1.tar")):
        shard(two / "shard-0.tar", sample(b"a"))
        open_source(two / "shard-{0..1}.tar", SHAPE)
    for broken in ("{3..1}.tar", "{}.tar", "{x}.tar", "{0..9999999}.tar", "{0..999}{0..999}{0..999}.tar"):
        with pytest.raises(ValueError, match="source must be a pattern"):
            shards.expanded(broken)


def test_what_is_no_shard_is_skipped_by_name(two):
    (two / "README.md").touch()
    (two / ".x.tar").touch()
    (two / "c.tar.gz").touch()
    (two / "link").symlink_to(two)
    shards_below = shard(two / "sub" / "c.tar", sample(b"c"))
    webdataset.Path(two / "d.tar").symlink_to("nowhere")
    source = open_source(two, SHAPE)
    assert source.shards == ["a.tar", "b.tar", shards_below.relative_to(two).as_posix()]
    names = {".x.tar": "hidden", "README.md": "no .tar file", "c.tar.gz": "no .tar file"}
    assert dict(source.skipped) == {**names, "d.tar": "no regular file", "link": "a link to a folder"}


def test_a_folder_with_an_image_anywhere_is_a_folder_of_images(two):
    (two / ".hidden").mkdir()
    (two / ".hidden" / "x.png").write_bytes(png())
    assert open_source(two, SHAPE).kind == "webdataset"
    (two / "class").mkdir()
    (two / "class" / "x.png").write_bytes(png())
    source = open_source(two, SHAPE)
    assert source.kind == "folder" and {"a.tar", "b.tar"} <= {entry.name for entry in source.skipped}


def test_labels_are_integers_or_missing(tmp_path):
    labels = [b"-1", b"x", b" 7\n", b"9" * 30]
    odd = [file(b"%d.png" % number, png()) + file(b"%d.cls" % number, label) for number, label in enumerate(labels)]
    source = open_source(shard(tmp_path / "x.tar", *odd, file(b"n.png", png()), sample(b"y", 2)), SHAPE)
    assert source.labels.tolist() == [-1, -1, 7, -1, -1, 2]
    assert open_source(shard(tmp_path / "n.tar", file(b"n.png", png())), SHAPE).labels is None


def test_other_members_are_copied_byte_for_byte_and_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return exec, ("raise SystemExit",)

    bomb, array = pickle.dumps(Bomb()), io.BytesIO()
    np.save(array, np.array([Bomb()], dtype=object), allow_pickle=True)
    others = {"pkl": bomb, "pyd": bomb, "pth": bomb, "npy": array.getvalue(), "json": b'{"a": 1}', "txt": b""}
    members = [file(b"k.%s" % suffix.encode(), content) for suffix, content in others.items()]
    path = shard(tmp_path / "x.tar", *members[:3], file(b"k.PnG", png()), *members[3:])
    watch = Watch()
    watch.folder = tmp_path.resolve()
    files, failures = written(open_source(path, SHAPE), tmp_path / "out")
    watch.folder = None
    assert (len(files), failures, watch.seen) == (1, [], [])
    copied = contents((tmp_path / "out" / "x.tar").read_bytes())
    assert [name for name, _ in copied] == ["k.pkl", "k.pyd", "k.pth", "k.PnG", "k.npy", "k.json", "k.txt"]
    assert {name[2:]: content for name, content in copied if name != "k.PnG"} == others


def test_the_image_becomes_a_png(tmp_path):
    jpeg = io.BytesIO()
    Image.new("L", (2, 2), 200).save(jpeg, "JPEG")
    path = shard(tmp_path / "x.tar", file(b"k.input.JPG", jpeg.getvalue()), file(b"k.cls", b"1"))
    written(open_source(path, SHAPE), tmp_path / "out")
    (name, content), label = contents((tmp_path / "out" / "x.tar").read_bytes())
    assert name == "k.input.png" and label == ("k.cls", b"1")
    assert np.asarray(Image.open(io.BytesIO(content))).tolist() == [[200, 200], [200, 200]]


def test_the_output_follows_from_the_samples_alone(tmp_path):
    pieces = [sample(b"a"), pax(path=b"b.png", mtime=b"123.5") + file(b"x", png()), sample(b"c")]
    written(open_source(shard(tmp_path / "1" / "x.tar", *pieces), SHAPE), tmp_path / "out1")
    written(open_source(shard(tmp_path / "2" / "x.tar", *pieces[:1], file(b"b.png", png()), pieces[2]), SHAPE), tmp_path / "out2")
    assert (tmp_path / "out1" / "x.tar").read_bytes() == (tmp_path / "out2" / "x.tar").read_bytes()


def test_a_failed_sample_is_absent_and_a_part_of_such_has_no_shard(two, tmp_path):
    source = open_source(two, SHAPE)
    assert len(written(source, tmp_path / "out")[0]) == 2
    files, failures = written(source, tmp_path / "out", spoiled={0, 1, 3})
    assert [file.file for file in files] == ["b.tar"]
    assert failures == [(0, "a.tar/a0.png", "spoiled"), (1, "a.tar/a1.png", "spoiled"), (3, "b.tar/b1.png", "spoiled")]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.tar"]
    assert "b1.cls" not in dict(contents((tmp_path / "out" / "b.tar").read_bytes()))


def test_large_samples_are_read_when_needed_and_make_the_same_bytes(two, tmp_path, monkeypatch):
    written(open_source(two, SHAPE), tmp_path / "held")
    monkeypatch.setattr(webdataset, "MOST_HELD", 0)
    source = open_source(two, SHAPE)
    assert all(item.content == two / item.name.split("/")[0] for item in everything(source))
    written(source, tmp_path / "needed")
    for name in ("a.tar", "b.tar"):
        assert (tmp_path / "held" / name).read_bytes() == (tmp_path / "needed" / name).read_bytes()


def test_a_sample_that_is_cut_while_it_is_written_is_taken_back(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "MOST_HELD", 0)
    source = open_source(shard(tmp_path / "x.tar", sample(b"a"), sample(b"b"), file(b"b.txt", b"text"), sample(b"c")), SHAPE)
    part = source.parts(9)[0]
    sink = open_sink(source, tmp_path / "out")

    def outcomes():
        for item in source.items(part):
            encoded = outcome(source, sink, item, ())
            if item.id == 1:
                with source.root.open("r+b") as cut:
                    cut.truncate(item.extras.sample.members[-1].start)
            yield Outcome(item, encoded)

    (done,), failed = sink.write(part, outcomes())
    assert [item.id for item, _ in failed] == [1, 2] and "became shorter" in str(failed[0][1])
    content = (tmp_path / "out" / "x.tar").read_bytes()
    assert dict(contents(content)).keys() == {"a.png", "a.cls"}
    assert (done.size, done.sha256) == (len(content), webdataset.hashlib.sha256(content).hexdigest())


def test_a_shard_that_is_replaced_while_the_run_goes_on_ends_in_failed_items(two):
    source = open_source(two, SHAPE)
    shard(two / "b.tar", sample(b"b0"))
    items = everything(source)
    assert len(items) == 7 and [isinstance(item.content, ItemError) for item in items] == [False] * 3 + [True] * 4
    (two / "a.tar").unlink()
    assert "No such file" in str(everything(source)[0].content)


def test_a_shard_that_cannot_be_read_is_one_failed_item(two, monkeypatch):
    def refuse(path):
        if path.name == "a.tar":
            raise PermissionError(13, "Permission denied")
        return webdataset_open(path)

    webdataset_open = webdataset.open_tar
    monkeypatch.setattr(webdataset, "open_tar", refuse)
    source = open_source(two, SHAPE)
    assert len(source) == 6 and source.name(0) == "a.tar"
    items = everything(source)
    assert (items[0].name, str(items[0].content)) == ("a.tar", "cannot be read: Permission denied")
    assert not any(isinstance(item.content, ItemError) for item in items[1:])
    assert source.labels.tolist() == [-1, 0, 1, 2, 3, 4]


def test_the_fingerprint_tells_other_samples(two):
    before = open_source(two, SHAPE).fingerprint()
    assert open_source(two, SHAPE).fingerprint() == before == json.loads(json.dumps(before))
    shard(two / "a.tar", sample(b"a0"), file(b"a1.png", png()) + file(b"a1.cls", b"77"))
    other = open_source(two, SHAPE).fingerprint()
    assert other != before
    (two / "a.tar").rename(two / "c.tar")
    assert open_source(two, SHAPE).fingerprint() not in (before, other)


def test_a_shard_appears_by_rename_once_it_is_on_the_disk(two, tmp_path, disk_calls):
    written(open_source(two / "a.tar", SHAPE), tmp_path / "out")
    (first, temporary), (second, source, target), (third, folder) = disk_calls
    assert (first, second, third) == ("fsync", "rename", "fsync")
    assert temporary == source and target == tmp_path / "out" / "a.tar" and folder == tmp_path / "out"


def test_outputs_that_would_touch_the_source_are_refused(two, tmp_path):
    source = open_source(two, SHAPE)
    for output in (two, two / "sub", two.parent / "two"):
        with pytest.raises(ValueError, match="output must be a folder outside the source"):
            WebDatasetSink(source, output)
    with pytest.raises(ValueError, match="a folder outside the source"):
        WebDatasetSink(open_source(two / "{a,b}.tar", SHAPE), two)
    with pytest.raises(ValueError, match="not the name of one"):
        WebDatasetSink(source, tmp_path / "out.tar")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="output must be a folder"):
        WebDatasetSink(source, tmp_path / "file")
    shard(two / "b-00003.tar", sample(b"x"))
    with pytest.raises(ValueError, match=re.escape("got 'b-00003.tar'")):
        WebDatasetSink(open_source(two, SHAPE), tmp_path / "out")


def test_shards_without_images_and_other_channels_are_refused(tmp_path):
    path = shard(tmp_path / "x.tar", file(b"a.json", b"{}"), head(b"a/", 0, b"5"))
    with pytest.raises(ValueError, match="source must be tar shards with images in them"):
        open_source(path, SHAPE)
    with pytest.raises(ValueError, match="channels must be 1 or 3"):
        open_source(path, ImageShape(channels=2))
