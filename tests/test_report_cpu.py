"""Tables and the drawing of the benchmark of CPUs, from made-up lines."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from bench.report import cpu, figures, growth_chart
from bench.report.lines import machines
from purify_engine.benchmark.chart import Line

UNET, STEP = cpu.UNET, cpu.STEP
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def results(tmp_path):
    """How to add a run to an empty folder of results."""
    folder = tmp_path / "results"
    folder.mkdir()

    def add(day, *records, machine="a CPU, 2 threads"):
        about = {"machine": machine, "run": f"2030-01-{day:02}T00:00:00+00:00"}
        card = {**about, "kind": "machine", "device": "cpu", "toy": False}
        with (folder / "cpu-a.jsonl").open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in (card, *({**about, **line} for line in records)))

    return add


@pytest.fixture
def block(tmp_path):
    """A generated block of what was added."""
    return lambda name: figures.FIGURES[name](tmp_path / "results")


@pytest.fixture
def verdicts(block):
    """The measured figure and the verdict of every target."""

    def read():
        rows = [row.strip("| ").split(" | ") for row in block("cpu-targets").splitlines() if row.startswith("|")]
        return {row[0]: row[3:] for row in rows[2:]}

    return read


def timing(milliseconds):
    """A median with quartiles at a twentieth of it."""
    seconds = 1e-3 * milliseconds
    return {"median": seconds, "q25": 0.95 * seconds, "q75": 1.05 * seconds, "spread": 0.1 * seconds}


def line(variant, milliseconds, batch=1, part="unet", name=UNET, pixels=32, threads=2, steps=1):
    about = {"part": part, "name": name, "batch": batch, "pixels": pixels, "threads": threads, "variant": variant, "steps": steps}
    measured = {**timing(milliseconds), "gflops": 90.0, "share": 1.5, "error": 1e-6}
    return {**about, "kind": "cpu", "case": f"{part} {name} {batch} {pixels} {threads}", **measured}


def test_nothing_measured_is_one_line(results, block):
    for name in ("cpu-targets", "cpu-unet", "cpu-guides", "cpu-guided-step", "cpu-layers", "cpu-memory", "cpu-beside"):
        assert block(name) == cpu.NOT_YET
    assert block("speed-cpu") == "On CPUs the speed is not measured yet."


def test_targets_of_networks_take_the_best_of_the_opponents_in_one_run(results, verdicts):
    results(1, line("engine", 10), line("eager fp32", 23), line("OpenVINO", 13), line("ONNX Runtime", 16))
    results(2, line("engine", 10, 8), line("eager fp32", 30, 8), line("OpenVINO", 30, 8))
    found = verdicts()
    assert found["U-Net against eager NCHW, batch 1, 2 threads"] == ["2.3× (2.08 to 2.54×)", "met, stretch not decided"]
    runtimes = "U-Net against the better of OpenVINO and ONNX Runtime, batch {}, 2 threads"
    assert found[runtimes.format(1)] == ["1.3× (1.18 to 1.44×)", "**missed**"]
    assert found["U-Net against eager NCHW, batch 8, 2 threads"] == ["3× (2.71 to 3.32×)", "stretch reached"]
    assert found[runtimes.format(8)] == ["–", "not measured"]
    assert len(found) == len(cpu.TARGETS)


def test_targets_of_steps_and_layers_take_the_worst_of_their_cases(results, verdicts, block):
    steps = [
        line(variant, milliseconds, batch, "step", STEP, steps=2)
        for batch, theirs in ((1, 40), (8, 29))
        for variant, milliseconds in (("engine", 10), ("naive loop", theirs), ("eager fp32", 33), ("eager channels_last", 32))
    ]
    layers = [
        line(variant, milliseconds, batch, "layers", name, 8, threads=1)
        for batch, name, theirs in ((1, "256->256", 2.5), (1, "640->640", 2.3), (8, "256->256", 4.0))
        for variant, milliseconds in (("engine", 1.0), ("oneDNN prepacked", theirs))
    ]
    results(1, *steps, *layers)
    found = verdicts()
    assert found["DDPM + WRN step against the naive loop, worse of batch 1, 8"] == ["2.9× (2.62 to 3.21×)", "**missed**"]
    eager = "DDPM + WRN step against the better eager layout, frozen, worse of batch 1, 8"
    assert found[eager] == ["3.2× (2.9 to 3.54×)", "stretch reached"]
    assert found["cold layers of 8 px, batch 1, the worse"] == ["2.3× (2.08 to 2.54×)", "met, stretch not decided"]
    assert found["cold layers of 8 px, batch 8, the worse"] == ["–", "not measured"]
    assert "| 1 | 8 | 1 | engine | 1 ± 0.1 | 90 | 150 % | 2.50× | 1.0e-06 |" in block("cpu-layers")
    assert "| engine | 5 ± 0.5 |" in block("cpu-guided-step")


def test_growth_with_batch_and_resolution_is_a_row_a_variant(results, block):
    results(1, line("engine", 10), line("engine", 64, 8), line("engine", 40, pixels=64), line("OpenVINO", 20))
    text = block("cpu-unet")
    assert "| threads | ms an image | batch 1, 32 px | batch 8, 32 px | batch 1, 64 px |" in text
    assert "| 2 | engine | 10 | 8 | 40 |" in text and "| 2 | OpenVINO | 20 | – | – |" in text
    results(2, line("engine", 1, 8))  # a part of another run
    assert "| 2 | engine | 10 | 8 | 40 |" in block("cpu-unet")


def test_variants_of_a_case_stand_together_whenever_they_were_measured(results, block):
    results(1, line("eager fp32", 10), line("eager fp32", 20, 8))
    results(2, line("engine", 5))
    rows = [row.strip("| ").split(" | ") for row in block("cpu-unet").splitlines() if row.startswith(f"| {UNET}")]
    assert [(row[1], row[4]) for row in rows] == [("1", "eager fp32"), ("1", "engine"), ("8", "eager fp32")]


def test_memory_is_given_in_mebibytes(results, block):
    about = {"name": UNET, "batch": 1, "threads": 2, "variant": "engine"}
    results(1, {"kind": "memory", **about, "peak": 300 * 2**20, "resident": 200 * 2**20})
    assert "| engine | 300 | 200 |" in block("cpu-memory")


def beside(after, milliseconds, host="matmul", batch=1, threads=2):
    about = {"kind": "beside", "part": "beside", "name": UNET, "batch": batch, "pixels": 32, "threads": threads}
    return {**about, "host": host, "after": after, **timing(milliseconds)}


def test_a_hosts_own_work_is_a_row_a_work_of_one_run(results, block):
    results(1, beside("nothing", 10), beside("eager fp32", 11), beside("engine", 10.5), beside("engine", 3, "conv2d"))
    assert "| matmul | 1 | 2 | 10 ± 1 | 11 ± 1.1 | 10.5 ± 1.05 | 1.05× |" in block("cpu-beside")
    results(2, beside("engine", 99), beside("nothing", 99))  # eager PyTorch is lacking
    text = block("cpu-beside")
    assert "99" not in text and "conv2d" not in text


def test_the_sentence_on_cpus_is_of_the_latest_run_on_two_threads_with_all_instructions(results, block):
    def step(ours, theirs, **how):
        return [line("engine", ours, part="step", name=STEP, steps=2, **how)] + [
            line(name, theirs * factor, part="step", name=STEP, steps=2, **how)
            for name, factor in (("eager fp32", 1.2), ("eager channels_last", 1.0))
        ]

    results(1, *step(400, 900))
    results(2, *step(1, 900, threads=1))
    results(3, *step(1, 900), machine="a CPU, 2 threads, AVX2 at most")
    results(4, *step(1, 900)[:2])  # an opponent is lacking
    assert block("speed-cpu") == (
        "On two threads of a CPU (a CPU, 2 threads, 2030-01-01) one guided step of the CIFAR-10 DDPM with a WRN-28-10 guide "
        "takes 200 ms for 1 image, 2.2 times as fast as eager PyTorch in its better layout (2.0 to 2.5)."
    )
    results(5, *step(400, 410))
    assert "not told apart from eager PyTorch" in block("speed-cpu")


# The drawing


def grown():
    """Cost an image: the engine's 10 ms fall to 5 at batch 4, and rise to 40 at 64 px; others are slower."""
    costs = {"OpenVINO": 3.0, "engine": 1.0, "<b> & co": 2.0}
    places = ((1, 32, 10.0), (4, 32, 20.0), (16, 32, 80.0), (1, 64, 40.0))
    return [line(name, factor * ms, batch, pixels=px) for name, factor in costs.items() for batch, px, ms in places]


def drawn(folder):
    """The panels of what is drawn from the lines of a folder."""
    return growth_chart.panels(growth_chart.chosen(machines(folder)))


def test_points_stand_where_the_lines_say(results, tmp_path):
    results(1, *grown())
    batches, sizes = drawn(tmp_path / "results")
    for panel, places, costs in ((batches, ["1", "4", "16"], [10, 5, 5]), (sizes, ["32", "64"], [10, 40])):
        assert [tick.label for tick in panel.x_ticks] == places
        engine = panel.lines[0]
        assert (engine.name, engine.index) == ("engine", 0)
        assert [x for x, _, _ in engine.points] == [tick.at for tick in panel.x_ticks]
        zero, most = panel.y_ticks[0], panel.y_ticks[-1]
        assert zero.label == "0" and float(most.label) >= 3 * max(costs)
        scale = (zero.at - most.at) / float(most.label)
        assert [zero.at - y for _, y, _ in engine.points] == pytest.approx([scale * cost for cost in costs])
    first, second, third = (tick.at for tick in batches.x_ticks)
    assert second - first == pytest.approx(third - second)  # 1, 4, 16: the batch's logarithm
    assert batches.lines[0].points[1][2] == "engine, batch 4: 5 ms an image"


def test_every_variant_is_named_and_escaped_and_nothing_is_fetched(results, tmp_path):
    results(1, *grown(), line("torch.compile", 15))
    text = growth_chart.growth(tmp_path / "results")
    root = ET.fromstring(text)
    names = [node.text for node in root.iter(f"{SVG}text") if node.get("class") == "name"]
    assert sorted(names) == sorted(2 * ["<b> & co", "OpenVINO", "engine"])  # one at one place only has no line
    assert names[2] == names[5] == "engine"  # drawn last, over the others
    assert "<b>" not in text and "<script" not in text and "http" not in text.replace(SVG.strip("{}"), "")
    said = {node.text for node in root.iter(f"{SVG}text")}
    assert {"ms an image", "images in a batch, at 32 px", "pixels a side, at batch 1", "U-Net ddpm-cifar10 on 2 threads"} <= said
    assert root.find(f"{SVG}rect").get("fill").startswith("#")  # opaque: it is read on white and on dark
    assert text == growth_chart.growth(tmp_path / "results")


def test_the_run_that_measured_most_is_drawn_on_two_threads_where_there_are_two(results, tmp_path):
    results(1, *grown(), line("engine", 77, threads=4), line("engine", 99, threads=1))
    results(2, line("engine", 1), line("guide", 1, part="guide"))
    found = growth_chart.chosen(machines(tmp_path / "results"))
    assert len(found) == len(grown()) and {record["threads"] for record in found} == {2}
    results(3, *(line("engine", 1, batch, threads=threads) for batch in range(1, 20) for threads in (1, 4)))
    assert {record["threads"] for record in growth_chart.chosen(machines(tmp_path / "results"))} == {4}


def test_one_place_is_a_point(results, tmp_path):
    results(1, line("engine", 10), line("OpenVINO", 20))
    for panel in drawn(tmp_path / "results"):
        assert [(found.name, len(found.points)) for found in panel.lines] == [("engine", 1), ("OpenVINO", 1)]
        assert isinstance(panel.lines[0], Line) and panel.lines[0].points[0][0] == panel.x_ticks[0].at


def test_names_keep_apart_near_their_lines_and_within_the_axis():
    gap = growth_chart.GAP
    assert growth_chart.apart({"a": 200, "b": 100, "c": 100}, 84, 318) == {"b": 100 - gap / 2, "c": 100 + gap / 2, "a": 200}
    assert growth_chart.apart({"a": 317, "b": 318}, 84, 318) == {"a": 318 - gap, "b": 318}
    assert growth_chart.apart({"a": 84, "b": 84}, 84, 318) == {"a": 84, "b": 84 + gap}


@pytest.mark.parametrize(
    ("most", "numbers"),
    [
        (179, [0, 50, 100, 150, 200]),
        (100, [0, 20, 40, 60, 80, 100]),
        (9.99, [0, 2, 4, 6, 8, 10]),
        (0.25, [0, 0.05, 0.1, 0.15, 0.2, 0.25]),
    ],
)
def test_the_axis_has_round_numbers(most, numbers):
    assert growth_chart.round_numbers(most) == pytest.approx(numbers)


def test_nothing_is_drawn_or_written_where_nothing_was_measured(results, tmp_path, monkeypatch):
    results(1, line("engine", 10, part="guide"))
    assert growth_chart.growth(tmp_path / "results") == ""
    path = tmp_path / "growth.svg"
    monkeypatch.setattr(figures, "documents", list)
    monkeypatch.setattr(figures, "DRAWINGS", {path: lambda _: growth_chart.growth(tmp_path / "results")})
    assert figures.outdated() == {}
    results(2, *grown())
    assert list(figures.outdated()) == [path]
    path.write_text(figures.outdated()[path])
    assert figures.outdated() == {}
