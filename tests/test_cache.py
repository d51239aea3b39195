"""Checkpoints converted on the fly: once, found again by what they hold, made again where damaged, by one process at a time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from purify_engine import GuidedPurifier, cache, load_classifier, presets
from purify_engine.conversion import Stated
from tests.test_conversion import checkpoints, networks, same_weights, saved, tiny

__all__ = ["checkpoints", "networks", "tiny"]  # fixtures


@pytest.fixture
def conversions(monkeypatch):
    """The sources that are converted from here on."""
    seen, convert = [], cache.convert

    def noted(source, *words, **options):
        seen.append(source)
        return convert(source, *words, **options)

    monkeypatch.setattr(cache, "convert", noted)
    return seen


def test_a_file_is_converted_once_and_found_again_where_it_is_moved(tmp_path, checkpoints, networks, conversions):
    unet, guide = checkpoints
    for _ in range(2):
        assert same_weights(GuidedPurifier.from_pretrained(unet).denoiser.unet, networks[0])
        assert same_weights(load_classifier(guide), networks[1])
    (tmp_path / "other").mkdir()
    entry = presets.resolve(unet.rename(tmp_path / "other" / unet.name))
    assert conversions == [unet, guide] and entry.parent == tmp_path / "cache" / "purify-engine" / "converted"
    assert not [path for path in entry.parent.iterdir() if path.suffix == ".part"]


def test_other_bytes_another_statement_and_another_release_are_other_entries(tmp_path, checkpoints, networks, monkeypatch):
    unet = checkpoints[0]
    entries = {
        presets.resolve(unet),
        presets.resolve(unet, Stated(unet={"image_size": 16})),
        presets.resolve(unet, Stated(layout="tiny")),
    }
    monkeypatch.setattr(cache, "__version__", "0.0.0")
    entries.add(presets.resolve(unet))
    entries.add(presets.resolve(saved(tmp_path / "more.pth", networks[0], torch.float64)))
    assert len(entries) == 5


def change(path):
    path.write_bytes(path.read_bytes()[:-1] + b"?")


WEIGHTS = "unet.safetensors"
DAMAGES = {"weights gone": (WEIGHTS, Path.unlink), "weights changed": (WEIGHTS, change), "record changed": (cache.RECORD, change)}


@pytest.mark.parametrize(("file", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_entry_is_made_again(checkpoints, networks, conversions, file, damage):
    entry = presets.resolve(checkpoints[0])
    damage(entry / file)
    assert presets.resolve(checkpoints[0]) == entry and cache.is_whole(entry) and len(conversions) == 2
    assert same_weights(GuidedPurifier.from_pretrained(checkpoints[0]).denoiser.unet, networks[0])


def test_those_who_want_one_at_the_same_time_wait_for_the_first(checkpoints, conversions, monkeypatch):
    at_once, start = 3, threading.Barrier(3, timeout=30)
    located = cache.located

    def together(source):
        start.wait()
        return located(source)

    monkeypatch.setattr(cache, "located", together)
    with ThreadPoolExecutor(at_once) as pool:
        entries = set(pool.map(presets.resolve, [checkpoints[0]] * at_once))
    assert len(entries) == 1 and len(conversions) == 1


def test_what_a_killed_process_left_does_not_count(checkpoints, conversions):
    entry = presets.resolve(checkpoints[0])
    entry.rename(entry.with_name(f".{entry.name}.0a1b2c3d.part"))
    assert presets.resolve(checkpoints[0]) == entry and cache.is_whole(entry) and len(conversions) == 2
    assert {path.name for path in entry.parent.iterdir()} == {entry.name, f"{entry.name}.lock"}


def test_a_refused_file_leaves_no_entry(tmp_path):
    (tmp_path / "page.pth").write_text("<html>")
    with pytest.raises(ValueError, match="is an HTML page"):
        presets.resolve(tmp_path / "page.pth")
    assert [path.suffix for path in cache.folder().iterdir()] == [".lock"]


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for named, base in ((str(tmp_path / "x"), tmp_path / "x"), ("relative", tmp_path / ".cache"), ("", tmp_path / ".cache")):
        monkeypatch.setenv("XDG_CACHE_HOME", named)
        assert cache.folder() == base / "purify-engine" / "converted"


def test_without_a_home_the_variable_must_say_where(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", raises_no_home)
    with pytest.raises(ValueError, match="XDG_CACHE_HOME must be an absolute path where there is no home folder"):
        cache.folder()


def raises_no_home():
    raise RuntimeError("Could not determine home directory.")
