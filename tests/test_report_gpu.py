"""Tables of what only GPUs have, from JSON lines."""

from __future__ import annotations

import json

import pytest

from bench.report import figures, gpu_tables, tables


@pytest.fixture
def table(tmp_path):
    """The rows of a generated block, lists of cells, after runs were added: `table(name, (day, line, line), (day, line))`."""

    def rows(name, *runs, commit=None):
        with (tmp_path / "loop-a-gpu.jsonl").open("a") as file:
            for day, *lines in runs:
                about = {"machine": "A GPU", "run": f"2030-01-{day:02}T00:00:00+00:00"}
                card = {**about, "kind": "machine", "device": "cuda", "toy": False, "commit": commit or f"commit{day}"}
                file.writelines(json.dumps(line) + "\n" for line in (card, *({**about, **line} for line in lines)))
        text = figures.FIGURES[name](tmp_path)
        rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
        return rows[2:] if rows else text

    return rows


def timed(kind, variant, seconds, spread=0.0, **more):
    quartiles = {"median": seconds, "q25": seconds - spread / 2, "q75": seconds + spread / 2, "spread": spread}
    about = {"network": "ddpm-cifar10", "guide": "resnet18", "batch": 64, "steps": 10, "case": "a case"}
    return {"kind": kind, "variant": variant, **about, **quartiles, **more}


def test_what_is_not_measured_is_one_line_in_every_table(table):
    for name in gpu_tables.FIGURES:
        assert table(name) == tables.NO_GPU


def test_a_compiler_stands_beside_the_engine_of_its_own_run_with_its_options(table):
    ours, theirs = (timed("loop", name, s) for name, s in (("engine graph", 0.02), ("torch.compile max-autotune", 0.03)))
    theirs["options"] = {"max_autotune": True, "x": 1}
    rows = table("gpu-compilers", (1, ours, theirs), (2, timed("loop", "engine graph", 0.001)))
    assert rows == [["a case", theirs["variant"], "3 ± 0", "2 ± 0", "1.50× (1.5 to 1.5)", "max_autotune=True, x=1"]]


def test_whole_purifications_are_told_against_diffpures(table):
    theirs, few = timed("whole", "DiffPure's loop, unguided, 100 steps", 2.0), timed("whole", "engine, guided, 10 steps", 0.04)
    rows = table("gpu-whole", (1, theirs, few))
    assert [row[-1] for row in rows] == ["1.00× (1.0 to 1.0)", "50.00× (50.0 to 50.0)"]


def test_a_cold_start_is_told_stage_by_stage(table):
    stages = {"import": 4.0, "load": 1.0, "first batch": 5.0, "second batch": 0.05, "wait": 10.0}
    assert table("gpu-cold", (1, {"kind": "cold start", "batch": 64, "compiled": 0, **stages})) == [
        ["64", "0", "4.00", "1.00", "5.00", "0.05", "10.00"]
    ]


@pytest.mark.parametrize(("seconds", "says"), [(0.9, "1.11× to 1.11×: not built"), (0.5, "2.00× to 2.00×: worth building")])
def test_fp8_is_judged_by_cudnns_convolutions_alone(table, tmp_path, seconds, says):
    taken = {"bf16 cuDNN": 1.0, "fp8 cuDNN, sums in FLOAT": seconds, "fp8 matrix product": 0.1}
    rows = table("gpu-fp8", (1, *(timed("fp8", name, each, flops=10**12) for name, each in taken.items())))
    assert [row[-1][:5] for row in rows][2] == "10.00" and says in figures.FIGURES["gpu-fp8"](tmp_path)


def test_without_a_convolution_in_fp8_nothing_is_decided(table, tmp_path):
    table("gpu-fp8", (1, timed("fp8", "bf16 cuDNN", 1.0, flops=1), timed("fp8", "fp8 matrix product", 0.1, flops=1)))
    assert "are not measured, so fp8 is not built" in figures.FIGURES["gpu-fp8"](tmp_path)


def test_a_way_saves_what_a_step_takes_more_without_it_of_its_own_turns(table):
    def single(variant, seconds):
        return timed("switch", variant, seconds, spread=0.002, measure="single")

    lines = single("all on", 0.020), single("lean_norm off", 0.025), single("all on", 0.030), single("split_k on", 0.029)
    assert table("gpu-switches", (1, *lines)) == [
        ["lean_norm", "+0.500 (+0.300 to +0.700)"],
        ["split_k", "+0.100 (-0.100 to +0.300)"],  # on it is faster: it saves, though it is off where nothing is said
    ]


def test_all_ways_stand_beside_none(table):
    whole = [timed("switch", name, seconds, measure="whole") for name, seconds in (("all on", 0.02), ("all off", 0.05))]
    loop = [timed("switch", f"loop, {name}", 0.2, measure="loop") for name in ("all on", "all off", "PyTorch's operations")]
    rows = table("gpu-ways", (1, *whole, *loop))
    assert [row[1:] for row in rows][:3] == [
        ["all on", "2 ± 0", "2.50× (2.5 to 2.5)"], ["all off", "5 ± 0", "1.00× (1.0 to 1.0)"],
        ["loop, all on", "20 ± 0", "1.00× (1.0 to 1.0)"],
    ]  # fmt: skip
    assert rows[-1][-1] == "1.00× (1.0 to 1.0)"


def test_images_and_groups_of_kernels_are_listed(table):
    line = {"kind": "images", "case": "a case", "variant": "all on", "psnr": 51.23, "agreeing": 63, "batch": 64}
    assert table("gpu-images", (1, line)) == [["a case", "all on", "51.2", "63 of 64"]]
    group = {"kind": "profile", "network": "n", "guide": "g", "group": "norm", "launches": 51.0, "seconds": 2e-3}
    assert table("gpu-kernels", (2, {**group, "batch": 1}, {**group, "batch": 64, "group": "all"})) == [
        ["norm", "51: 2", "–"],
        ["all", "–", "51: 2"],
    ]


def test_earlier_days_stay_with_their_commits(table):
    first, again, later = (timed("loop", "engine graph", seconds) for seconds in (0.05, 0.04, 0.02))
    beside = timed("switch", "all on", 0.01, measure="whole", batch=1)
    assert table("gpu-history", (1, first, again), (2, later, beside)) == [
        ["2030-01-01", "commit1", "–", "4 ± 0", "–"],
        ["2030-01-02", "commit2", "1 ± 0", "2 ± 0", "–"],
    ]


def test_a_profile_is_of_one_run_a_case(table):
    group = {"kind": "profile", "network": "n", "guide": "g", "batch": 1, "launches": 51.0, "seconds": 2e-3}
    before = {**group, "group": "concatenation"}, {**group, "group": "norm"}
    after = {**group, "group": "norm", "seconds": 1e-3}
    rows = table("gpu-kernels", (1, *before, {**before[1], "batch": 2}), (2, after), commit="one")
    assert rows == [["norm", "51: 1", "51: 2"]]
