"""Images that fight back, in full numbers: damaged ones, bombs, and a folder of good ones among them."""

import json
import time

import pytest

from purify_engine.data import ItemError
from purify_engine.data.pixels import decode
from tests.data.hostile_folder import FORBIDDEN, forbid, good, hostile
from tests.data.mutated_images import FORMATS, became
from tests.data.test_hostile_pixels import bomb

COUNT, OF_A_PROCESS = 100_000, 4_000
GOOD, HOSTILE = 1_000, 50
BOMBS = 20


def test_no_damaged_image_crashes_hangs_or_takes_the_memory(reached):
    counts, slowest, most = {"ok": 0, "refused": 0}, 0.0, 0
    for first in range(0, COUNT, OF_A_PROCESS):
        results, memory = became(first, OF_A_PROCESS, timeout=1800)
        assert [one.index for one in results] == list(range(first, first + OF_A_PROCESS))
        wrong = [one for one in results if one.outcome not in counts]
        assert not wrong
        for one in results:
            counts[one.outcome] += 1
        slowest, most = max(slowest, *(one.seconds for one in results)), max(most, memory)
    assert slowest < 5 and most < 2**30
    facts = {"formats": len(FORMATS), **counts, "slowest_seconds": slowest, "most_memory_mib": round(most / 2**20)}
    reached("images", sum(counts.values()), asked=COUNT, of="damaged files of 10 formats", case="damaged", **facts)


def test_a_folder_of_good_images_among_things_that_fight_back(tmp_path, monkeypatch, capsys, small_purifier, reached):
    from purify_engine.cli.run import main

    good(tmp_path / "in", GOOD)
    count = hostile(tmp_path / "in")
    forbid(monkeypatch, *FORBIDDEN)
    with pytest.raises(SystemExit) as ended:
        main(["purify", str(tmp_path / "in"), str(tmp_path / "out"), "--purifier", str(small_purifier), "--json"])
    said = capsys.readouterr()
    assert ended.value.code == 3
    assert "\x1b[31mred" not in said.out + said.err and "\u202e" not in said.out + said.err
    explained = [
        json.loads(line)
        for name in ("failed.jsonl", "skipped.jsonl")
        for line in (tmp_path / "out" / name).read_text(encoding="ascii").splitlines()
    ]
    written = sum(1 for path in (tmp_path / "out").rglob("*.png"))
    assert written == GOOD + 1 and len(explained) == count == HOSTILE  # and the one whose name another would have had
    assert all(entry["reason"] for entry in explained)
    reached("images", len(explained), asked=HOSTILE, of="hostile things among 1,000 good images", case="folder", purified=GOOD)


def test_bombs_are_refused_by_their_headers(tmp_path, reached):
    took = []
    for index in range(BOMBS):
        path = tmp_path / f"{index}.png"
        path.write_bytes(bomb(12_000 + index))
        started = time.thread_time()
        with pytest.raises(ItemError, match="pixels exceed the cap of 50000000"):
            decode(path, 3)
        took.append(time.thread_time() - started)
    assert max(took) < 0.05
    slowest = round(1000 * max(took), 2)
    reached("bombs", len(took), asked=BOMBS, of="PNGs of 144 megapixels, each in under 50 ms", slowest_ms=slowest)
