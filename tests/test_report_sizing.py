"""The sizing guide: images an hour and costs from measured steps; and the table of what a run costs beside its purifier."""

import json

import pytest

from bench.report import offline, sizing
from bench.report.figures import FIGURES


@pytest.fixture
def rows(tmp_path):
    """The cells of a generated table, from lines of machines."""

    def read(name, **machines):
        for machine, lines in machines.items():
            about = {"machine": machine, "run": "2030-01-01T00:00:00+00:00"}
            card = {**about, "kind": "machine", "device": "cuda" if machine == "GPU" else "cpu", "toy": False}
            text = "".join(json.dumps(line) + "\n" for line in (card, *({**about, **line} for line in lines)))
            (tmp_path / f"a-{machine}.jsonl").write_text(text)
        table = [line for line in FIGURES[name](tmp_path).splitlines() if line.startswith("|")]
        return [[cell.strip() for cell in row.strip("|").split("|")] for row in table[2:]]

    return read


def loop(variant, batch, seconds, steps=10):
    networks = {"kind": "loop", "network": "ddpm", "guide": "resnet"}
    return {**networks, "variant": variant, "batch": batch, "steps": steps, "median": seconds}


def test_images_an_hour_and_costs_follow_from_the_fastest_way_of_the_largest_batch(rows):
    of_gpu = [loop("engine graph", 1, 0.1), loop("engine graph", 64, 0.64), loop("engine loop", 64, 1.0), loop("eager", 256, 0.1)]
    on_cpu = {"kind": "cpu", "part": "step", "name": "ddpm + wrn", "variant": "engine loop", "batch": 8, "steps": 2, "threads": 2}
    found = rows("sizing", GPU=of_gpu, CPU=[{**on_cpu, "median": 1.6}])
    assert found == [
        ["ddpm + wrn", "CPU", "8", "3,600", "278", f"{1e6 / 3600 * 2 * sizing.THREAD_HOUR:,.2f}"],
        ["ddpm + resnet", "GPU", "64", "360,000", "2.78", f"{1e6 / 360_000 * sizing.GPU_HOUR:,.2f}"],
    ]


def test_every_part_of_a_run_has_its_row(rows):
    line = {"kind": "offline"}
    found = rows(
        "offline",
        CPU=[
            {**line, "part": "files", "pixels": 32, "rate": 2000.4, "processor_ms": 0.75},
            {**line, "part": "files", "pixels": 256, "rate": 150.0, "processor_ms": 9.0},
            {**line, "part": "digits", "threads": 2, "rate": 500.0, "over": 0.051},
            {**line, "part": "memory", "images": 200_000, "held": [2**20, 2**21, 2**21 + 2**19], "grown": 2**19},
            {**line, "part": "threads", "threads": 1, "waiting": "passive", "beside": "nothing", "rate": 360.0},
            {**line, "part": "threads", "threads": 2, "waiting": "default", "beside": "a busy process", "rate": 6.0},
        ],
    )
    assert [measured for _, measured in found] == [
        "2,000 images/s, 0.75 ms of processors an image",
        "150 images/s, 9.00 ms of processors an image",
        "500 images/s, +5.1 % to a bare loop over the same batches",
        "2 MiB, +0.5 MiB from a fifth of them to the end",
        "360 images/s",
        "6 images/s",
    ]
    assert found[5][0] == "the embedded digits beside a busy process, 2 threads, waiting as OpenMP does by itself"


def test_where_nothing_was_measured_a_line_says_what_measures_it(tmp_path):
    assert FIGURES["sizing"](tmp_path) == sizing.NOT_YET and FIGURES["offline"](tmp_path) == offline.NOT_YET


def test_a_table_is_headed_by_the_run_that_it_is_of_and_a_gradient_stands_beside_plain_autograd(tmp_path):
    runs = {"2030-01-01": [{"kind": "offline", "part": "files", "pixels": 32, "rate": 2000.4, "processor_ms": 0.75}],
            "2030-01-02": [{"kind": "exact-gradient", "way": way, "an_image": seconds, "peak": peak, "batch": 8, "steps": 7}
                           for way, seconds, peak in (("engine", 0.15, 2**20), ("autograd that stores everything", 0.3, 2**22))]
            + [{"kind": "exact-attack", "images": 512, "pgd": 20, "eot": 8, "hours": 3.41}]}  # fmt: skip
    for run, lines in runs.items():
        about = {"machine": "CPU", "run": run}
        card = {**about, "kind": "machine", "device": "cpu", "toy": False, "commit": f"of {run}"}
        text = "".join(json.dumps(line) + "\n" for line in (card, *({**about, **line} for line in lines)))
        (tmp_path / f"a-{run}.jsonl").write_text(text)
    assert FIGURES["offline"](tmp_path).startswith("CPU, 2030-01-01, commit of 2030-01-01:\n")
    said = FIGURES["exact-gradient"](tmp_path)
    assert said.startswith("CPU, 2030-01-02, commit of 2030-01-02:\n") and "150 ms an image" in said
    assert "0.50 of the time and 0.25 of the memory" in said and "(1 MiB beside 4)" in said
    assert said.endswith("512 images × PGD-20 × EOT-8 take 3.4 hours so, scaled.")
    assert "`python -m bench exact-gradient` writes it" in FIGURES["exact-gradient"](tmp_path / "none")
