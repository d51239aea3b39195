import torch

from purify_engine.benchmark import machine
from purify_engine.benchmark.machine import ceilings, file_name, machine_card


def test_the_card_says_what_a_figure_depends_on():
    card = machine_card("cpu")
    assert card["torch"] == torch.__version__ and card["threads"] == torch.get_num_threads() and card["device"] == "cpu"
    assert card["machine"] == f"{card['cpu']}, {card['threads']} threads"


def test_names_make_file_names():
    assert file_name("Intel(R) Xeon(R) @ 2.50GHz, 2 threads") == "intel-r-xeon-r-2-50ghz-2-threads"


def test_ceilings_count_bytes_both_ways_and_two_flops_a_multiply_add(monkeypatch):
    monkeypatch.setattr(machine, "clocks", lambda device: {"warm": lambda call: 0.5})
    assert ceilings("cpu", toy=True) == {"copy": 2 * 2**20 / 0.5, "matmul float32": 2 * 64**3 / 0.5}
