"""Ray on this machine with two CPU actors: the tree of a plain run, byte for byte, and no death costs more than its image."""

from __future__ import annotations

import logging

import pytest

from purify_engine.config import OfflineConfig
from purify_engine.data import Stop, open_sink, open_source
from purify_engine.data.items import ImageShape
from purify_engine.data.on_ray import run_on_ray
from purify_engine.data.run import run
from purify_engine.data.work import Work
from tests.cli.conftest import command  # noqa: F401  (a fixture)
from tests.cli.test_purify_by_many import SETTINGS, photos, tree
from tests.data.deadly import DEADLY, ONCE, Full, Loaded, Washed, image_folder
from tests.data.test_processes import images_in

pytestmark = pytest.mark.integration
CONFIG = OfflineConfig(part_size=4, batch_size=3, decoders=1)


@pytest.fixture(scope="module", autouse=True)
def ray():
    """Started once for this file, small and quiet."""
    module = pytest.importorskip("ray")
    module.init(
        address="local", num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR,
    )  # fmt: skip
    yield module
    module.shutdown()


def purified(source, output, compute, actors=0, stop=None):
    """(summary, events) of a run in this process, or by `actors` on Ray."""
    images, events, stop = open_source(source, ImageShape(channels=3)), [], stop or Stop()
    sink = open_sink(images, output)

    def told(event, **facts):
        events.append((event, facts))
        stop.requested = stop.requested or (event == "part" and isinstance(stop, AfterOnePart))

    work = Work(images, sink, Loaded(compute), CONFIG.batch_size, CONFIG.part_size, CONFIG.decoders, threads=1)
    engine = (lambda parts: run_on_ray(work, parts, actors, told=told, stopped=lambda: stop.requested)) if actors else None
    return run(compute, images, sink, config=CONFIG, engine=engine, told=told, stop=stop), events


class AfterOnePart(Stop):
    """A run that is asked to stop once its first part is there."""


def test_two_actors_write_the_tree_of_a_plain_run_though_one_dies(tmp_path):
    source = image_folder(tmp_path / "in", 30, {13: ONCE})
    expected, _ = purified(source, tmp_path / "one", Washed())
    got, events = purified(source, tmp_path / "ray", Washed(tmp_path / "died"), 2)
    assert (got.ok, got.failed, got.left) == (expected.ok, expected.failed, expected.left) == (30, (), 0)
    assert (tmp_path / "died").exists(), "no actor died"
    assert images_in(tmp_path / "ray") == images_in(tmp_path / "one")
    assert (tmp_path / "ray" / "manifest.jsonl").read_bytes() == (tmp_path / "one" / "manifest.jsonl").read_bytes()
    assert not [event for event, _ in events if event == "redo"]  # Ray itself gave its parts to another actor, once
    assert sum(event == "item" for event, _ in events) == 30


def test_the_command_writes_the_bytes_of_one_process(tmp_path, command, small_purifier):  # noqa: F811
    words = ("purify", photos(tmp_path / "in"))
    for name, how in {"one": (), "ray": ("--engine", "ray", "--workers", 2)}.items():
        code, out, said = command(*words, tmp_path / name, "--purifier", small_purifier, *SETTINGS, *how)
        assert code == 3 and "a/6.png" in out, said
    assert tree(tmp_path / "ray") == tree(tmp_path / "one")


def test_an_image_that_ends_every_actor_fails_alone(tmp_path, capfd):
    source = image_folder(tmp_path / "in", 12, {5: DEADLY})
    expected, _ = purified(source, tmp_path / "one", Washed())
    got, events = purified(source, tmp_path / "ray", Washed(tmp_path / "died"), 2)
    assert [(failure.id, failure.reason) for failure in got.failed] == [(5, "ended its process (WorkerCrashedError)")]
    one = images_in(tmp_path / "one")
    assert images_in(tmp_path / "ray") == {name: content for name, content in one.items() if name != "a/005.png"}
    assert 1 in [facts["part"] for event, facts in events if event == "redo"]
    said = capfd.readouterr()
    assert said.out == "" and len(said.err.splitlines()) <= 2, said  # Ray prints pages about processes that died


def test_a_full_disk_ends_the_run(tmp_path):
    with pytest.raises(OSError, match="No space left on device") as raised:
        purified(image_folder(tmp_path / "in", 8), tmp_path / "out", Full(), 2)
    assert raised.value.filename == "/somewhere/a.png"


def test_a_run_that_is_asked_to_stop_ends_its_parts_and_is_resumed(tmp_path):
    source = image_folder(tmp_path / "in", 240)
    stopped, _ = purified(source, tmp_path / "ray", Washed(pause=0.2), 2, AfterOnePart())
    assert 0 < stopped.ok < 240 and stopped.left == 240 - stopped.ok
    assert len(images_in(tmp_path / "ray")) == stopped.ok  # no part was begun and left
    resumed, _ = purified(source, tmp_path / "ray", Washed())
    assert (resumed.ok, resumed.left) == (240, 0)
