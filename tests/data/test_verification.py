"""`verify` proves an output that is whole, and names everything that is not as it was written."""

import json
import os
import shutil

import pytest

from purify_engine.cli.run import main
from purify_engine.cli.verify import MEND
from purify_engine.data.verification import verify
from tests.soak.torchless_run import SOURCES, make_folder, purify


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Every kind of output, with its source."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        for kind, (make, name) in SOURCES.items():
            root = tmp_path_factory.mktemp(kind)
            source = make(root / "in")
            assert purify(str(source), str(root / "out" / name)) == 0
            made[kind] = source, root / "out" / name
    return made


@pytest.fixture
def output(whole, tmp_path):
    """A folder of images that may be damaged."""
    return shutil.copytree(whole["folder"][1], tmp_path / "clean")


def problems(output, source=None):
    return list(verify(output, source).problems)


def edited(path, change):
    """Let `change` edit the records of a file of JSON lines."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    changed = change(records) or records
    path.write_text("".join(f"{json.dumps(record)}\n" for record in changed))


@pytest.mark.parametrize("kind", SOURCES)
def test_an_output_that_nobody_touched_is_proved_without_its_source_and_with_it(kind, whole):
    source, output = whole[kind]
    for given in (None, source):
        found = verify(output, given)
        assert found.problems == () and (found.items, found.ok, found.failed) == (12, 12, 0) and found.files >= 1
    assert found.bytes == sum(path.stat().st_size for path in _data(output))


def _data(output):
    every = output.rglob("*.*") if output.is_dir() else [output]
    return [path for path in every if path.is_file() and path.suffix not in (".json", ".jsonl")]


@pytest.mark.parametrize("kind", SOURCES)
def test_one_byte_of_any_file_is_noticed(kind, whole, tmp_path):
    output = whole[kind][1]
    copied = shutil.copytree(output if output.is_dir() else output.parent, tmp_path / "copy")
    copy = copied if output.is_dir() else copied / output.name
    for path in _data(copy):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        assert [line for line in problems(copy) if path.name in line], path
        content[-1] ^= 1
        path.write_bytes(content)
    assert problems(copy) == []


def test_files_that_are_short_missing_or_something_else_are_named(output, tmp_path):
    (output / "class0" / "000000.png").unlink()
    (output / "class0" / "000001.png").write_bytes(b"short")
    kept = (output / "class0" / "000002.png").rename(tmp_path / "elsewhere.png")
    (output / "class0" / "000002.png").symlink_to(kept)
    (output / "class0" / "000003.png").unlink()
    (output / "class0" / "000003.png").mkdir()
    missing, short, link, folder = problems(output)
    assert missing == "class0/000000.png: is missing" and "000001.png: has 5 bytes, " in short
    assert link == "class0/000002.png: is no file" and folder == "class0/000003.png: is no file"


def test_what_lies_there_besides_is_named(output):
    (output / "notes.txt").touch()
    (output / "class1" / ".000009.png.01234567.part").touch()
    (output / "elsewhere").symlink_to("/")
    assert set(problems(output)) == {
        "notes.txt: no record names it",
        "elsewhere: no record names it",
        "class1/.000009.png.01234567.part: a temporary file, left by a run that was killed",
    }


def test_an_interrupted_run_lacks_records(output):
    manifest = output / "manifest.jsonl"
    manifest.write_bytes(b"".join(manifest.read_bytes().splitlines(keepends=True)[:2]))
    (output / "failed.jsonl").unlink()
    (output / ".manifest.jsonl.lock").touch()
    strays = {f"class1/{id:06}.png: no record names it" for id in range(8, 12)}
    lock = ".manifest.jsonl.lock: a run goes on, or was killed: the same command goes on with it"
    assert set(problems(output)) == {"failed.jsonl: is missing", "items 8 to 11: no record", lock} | strays


def both(records):
    return [*records, records[1]]


def beyond(records):
    records[2]["first"] = 9


def other_run(records):
    records[0]["identity"] = "0"


def uneven(records):
    records[0]["ok"] = 3


@pytest.mark.parametrize(
    "change, says",
    [
        (both, ["items 4 to 7: more than one record", "recorded twice"]),
        (beyond, ["item 8: no record", "item 12: not of the source"]),
        (other_run, ["manifest.jsonl: line 1 is of another run"]),
        (uneven, ["part 0: 3 purified and 0 failed of 4"]),
    ],
)
def test_records_that_do_not_add_up_are_named(change, says, output):
    edited(output / "manifest.jsonl", change)
    found = problems(output)
    assert all(any(said in problem for problem in found) for said in says), found


@pytest.mark.parametrize("name", ["../notes.txt", "/etc/passwd", "a/../../b", 3])
def test_a_record_that_leads_out_of_the_output_is_not_followed(name, output):
    def lead_out(records):
        records[0]["files"][0][0] = name

    edited(output / "manifest.jsonl", lead_out)
    assert f"{name}: no file of the output may be called so" in problems(output)


@pytest.mark.parametrize("damage", [b"[]\n", b'{"part": 1}\n', b"3\n", b"\xff\xfe\n", b"null\n", b'{"part": -1}\n'])
@pytest.mark.parametrize("name", ["manifest.jsonl", "failed.jsonl"])
def test_lines_that_are_no_records_are_named(name, damage, output):
    with (output / name).open("ab") as file:
        file.write(damage)
    found = problems(output)
    assert any(problem.startswith(name) for problem in found) and len(found) <= 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"identity": {}, "identity_sha256": "0"}'])
def test_a_damaged_run_json_is_a_problem(content, output):
    (output / "run.json").write_text(content)
    assert any("run.json" in problem for problem in problems(output))


def test_failures_are_counted_and_must_be_the_same_in_both_lists(tmp_path):
    source = make_folder(tmp_path / "in")
    (source / "class0" / "000002.png").write_bytes(b"no image")
    assert purify(str(source), str(tmp_path / "clean")) == 3
    found = verify(tmp_path / "clean", source)
    assert found.problems == () and (found.items, found.ok, found.failed) == (12, 11, 1)
    (tmp_path / "clean" / "failed.jsonl").write_text("")
    assert problems(tmp_path / "clean") == ["failed.jsonl: lists other failures than manifest.jsonl"]


def test_another_source_is_noticed(output, whole, tmp_path):
    source = shutil.copytree(whole["folder"][0], tmp_path / "in")
    assert problems(output, source) == []
    (source / "class0" / "000000.png").rename(source / "class0" / "00000.png")
    assert [problem.split(" was ")[0] for problem in problems(output, source)] == ["source: names"]


def test_what_purify_did_not_write_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.npy"):
        with pytest.raises(ValueError, match="output must be what `purify` wrote"):
            verify(path)


def test_the_command_says_what_it_found(output, capsys):
    def exit_code(*words):
        with pytest.raises(SystemExit) as end:
            main(["verify", str(output), *words])
        return end.value.code

    assert exit_code() == 0 and f"{output} is whole: 12 purified images and 0 that failed, 12 files, " in capsys.readouterr().out
    (output / "a\x1b[31m.txt").touch()
    assert exit_code() == 4
    said = capsys.readouterr().out
    assert "1 problem (" in said and "\x1b" not in said and "no record names it" in said
    assert "--retry-failed" in said.splitlines()[-1], "how to mend it"
    assert exit_code("--json") == 4 and json.loads(capsys.readouterr().out)["problems"] == ["a\x1b[31m.txt: no record names it"]


def test_a_name_of_several_lines_forges_none_of_the_commands(output, capsys):
    (output / "a\nout is whole: 12 purified images").touch()
    with pytest.raises(SystemExit):
        main(["verify", str(output)])
    _, *problems, mend = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in problems] == ["  a\\"] and mend == MEND
