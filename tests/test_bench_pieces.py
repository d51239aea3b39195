"""Data sets and trainings in pieces: small enough, the same bytes again, and what is missing or damaged is said."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from bench.core import pieces
from bench.runs.pieces import main
from bench.subjects.light_training import lightened, restored
from purify_engine.training.loop import MovingAverage

MOST = 60e6  # bytes that travel in one trip
LARGEST = 16 * 2**20  # of one file


@pytest.fixture
def folder(tmp_path):
    """Files of odd sizes, an empty one and a folder in it."""
    made = tmp_path / "data"
    (made / "deeper").mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for name, size in (("a.npz", 1000), ("b", 0), ("deeper/c", 333), ("z", 64)):
        (made / name).write_bytes(torch.randint(256, (size,), generator=generator, dtype=torch.uint8).numpy().tobytes())
    return made


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("piece", "trip"), [(97, 200), (333, 333), (1397, 5000), (10_000, 10_000)])
def test_pieces_are_as_small_as_asked_for_and_join_to_the_same_bytes(folder, tmp_path, piece, trip):
    plan = pieces.cut(folder, tmp_path / "cut", piece=piece, trip=trip)
    for number in range(1, plan.trips + 1):
        sizes = [path.stat().st_size for path in (tmp_path / "cut" / f"trip-{number}").glob("piece-*")]
        assert sizes and max(sizes) <= piece and sum(sizes) <= trip
    pieces.joined(tmp_path / "cut", tmp_path / "again")
    assert content(tmp_path / "again") == content(folder)


def test_a_trip_of_a_large_training_fits_through_the_door(tmp_path):
    (tmp_path / "unet.safetensors").write_bytes(b"")
    with (tmp_path / "unet.safetensors").open("wb") as file:
        file.truncate(45_000_000)  # a hole: no bytes on the disk
    plan = pieces.planned(tmp_path)
    by_trip = [[piece.size for piece in plan.pieces if piece.trip == trip] for trip in range(1, plan.trips + 1)]
    assert plan.trips == 2 and max(map(sum, by_trip)) < MOST and max(map(max, by_trip)) < LARGEST and max(map(len, by_trip)) < 8


def test_one_trip_alone_is_written_where_it_is_asked_for(folder, tmp_path):
    plan = pieces.cut(folder, tmp_path / "out", only=2, piece=100, trip=300)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"manifest.json", "piece-004", "piece-005", "piece-006"}
    with pytest.raises(ValueError, match=rf"^trip must be in \[1, {plan.trips}\], got 9"):
        pieces.cut(folder, tmp_path / "out", only=9, piece=100, trip=300)


def test_what_is_missing_or_damaged_is_said_in_a_line(folder, tmp_path, capsys):
    pieces.cut(folder, tmp_path / "cut", piece=100, trip=300)
    lost = tmp_path / "cut" / "trip-2"
    lost.rename(tmp_path / "lost")
    with pytest.raises(SystemExit) as done:
        main(["join", str(tmp_path / "cut"), str(tmp_path / "again")])
    assert done.value.code == 2 and capsys.readouterr().err == "pieces must be of all trips, got 'without those of trip-2'\n"
    (tmp_path / "lost").rename(lost)
    (lost / "piece-005").write_bytes(b"other")
    with pytest.raises(ValueError, match="pieces must be as they were cut, got 'another .*piece-005'"):
        pieces.joined(tmp_path / "cut", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def trained(steps):
    """A small network with Adam's state and an average, as a training's checkpoint holds them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1))
    optimizer, average = torch.optim.AdamW(model.parameters(), lr=1e-3), MovingAverage(model, 0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 2, 5, 5)).square().sum().backward()
        optimizer.step()
        average.update_parameters(model)
    state = {"experiment": {"seed": 3}, "step": steps, "seconds": 1.5, "model": model.state_dict()}
    return model, optimizer, average, {**state, "optimizer": optimizer.state_dict(), "averages": {"0.9": average.state_dict()}}


def test_a_light_checkpoint_is_half_a_network_and_goes_on_near_its_average(tmp_path):
    model, optimizer, average, state = trained(20)
    (tmp_path / "run").mkdir()
    torch.save(state, tmp_path / "run" / "unet.checkpoint")
    (tmp_path / "run" / "config.json").write_text(json.dumps({"unet": {}}))
    lightened(tmp_path / "run", tmp_path / "light")
    (light,) = (path for path in (tmp_path / "light").iterdir() if path.suffix == ".light")
    kept = torch.load(light, weights_only=True)
    assert kept["model"]["0.weight"].dtype == torch.bfloat16 and kept["model"]["0.bias"].dtype == torch.float32
    assert kept["optimizer"]["state"][0]["rows"].numel() + kept["optimizer"]["state"][0]["columns"].numel() == 6 + 2 * 9
    assert restored(tmp_path / "light") == [tmp_path / "light" / "unet.checkpoint"] and not light.exists()
    again = torch.load(tmp_path / "light" / "unet.checkpoint", weights_only=True)
    assert (again["step"], again["seconds"], again["experiment"]) == (20, 1.5, {"seed": 3})
    model.load_state_dict(again["model"]), optimizer.load_state_dict(again["optimizer"])
    average.load_state_dict(again["averages"]["0.9"])
    for name, value in average.module.state_dict().items():
        true = state["averages"]["0.9"][f"module.{name}"]
        assert torch.equal(value, model.state_dict()[name])
        assert (value.double() - true.double()).abs().max() <= 2**-8 * true.double().abs().max()
    for place, of in state["optimizer"]["state"].items():
        squares, true = optimizer.state_dict()["state"][place]["exp_avg_sq"], of["exp_avg_sq"]
        assert squares.shape == true.shape and torch.allclose(squares.sum(), true.sum(), rtol=1e-5)
        if true.dim() >= 2:
            assert torch.allclose(squares.flatten(1).sum(1), true.flatten(1).sum(1), rtol=1e-5)
    assert average.n_averaged == 21 and optimizer.state_dict()["state"][0]["step"] == 20
