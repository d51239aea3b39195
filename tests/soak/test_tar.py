"""20,000 mutated tar archives, and what reading a long one takes."""

from __future__ import annotations

import os
import resource
import time

from purify_engine.data.sources.webdataset import WebDatasetSource
from purify_engine.data.tar import CLOSING
from tests.data.crafted_tars import CRAFTED
from tests.data.mutated_tars import purify_mutated
from tests.data.tars import SHAPE, Watch, assert_nothing_else, head, padded, png, purified

MUTATED = 20_000


def test_no_mutated_archive_leaves_its_folder_or_loses_a_byte_unsaid(tmp_path, monkeypatch, reached):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    watch, slowest, cut = Watch(), 0.0, 0
    watch.folder = tmp_path.resolve()
    try:
        for seed in range(MUTATED):
            started = time.perf_counter()
            cut += purify_mutated([seed], watch.folder, watch)
            slowest = max(slowest, time.perf_counter() - started)
    finally:
        watch.folder = None
    assert slowest < 5
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    assert memory < 1024
    facts = {"cut_and_reported": cut, "slowest_s": round(slowest, 2), "peak_mib": memory}
    reached("tar", MUTATED, asked=MUTATED, of="mutated archives", **facts)


def test_every_crafted_archive_cut_at_each_block_is_reported(tmp_path, monkeypatch, reached):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    watch, cuts = Watch(), 0
    watch.folder = tmp_path.resolve()
    try:
        for name, crafted in CRAFTED.items():
            for end in range(0, min(len(crafted.content), 2**16), 512):
                left = crafted.content[:end]
                made = purified(watch.folder, left)
                assert made.records or not any(left[-1024:]), f"{name} at {end}"
                assert_nothing_else(watch.folder, watch)
                cuts += 1
    finally:
        watch.folder = None
    reached("tar", len(CRAFTED), asked=50, of="crafted archives", case="crafted, cut at each block", cuts=cuts)


def test_a_million_samples_are_held_by_where_they_begin(tmp_path):
    shard, samples = tmp_path / "long.tar", 1_000_000
    with shard.open("wb") as file:
        for number in range(samples):
            file.write(head(b"%07d.png" % number, len(png())) + padded(png()))
        file.write(CLOSING)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = WebDatasetSource(shard, SHAPE)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    assert len(source) == samples
    assert grown < 64  # MiB; 16 are the offsets and the hashes of keys, the rest to find those that come twice
    assert source.name(samples - 1) == "long.tar/0999999.png"
