"""The table of time embeddings: right in every row, and the same bits in a longer one, so that a graph's equals the loop's."""

import pytest
import torch

from purify_engine.models.embedding_table import CHUNK, EmbeddingTable
from tests.models.networks import small_unet

TIMES = torch.linspace(999.0, 0.0, 3 * CHUNK - 5, dtype=torch.float64)


def embedding(dtype=torch.float64):
    return small_unet("ddpm").to(dtype).requires_grad_(False).time_embedding


def rows(network, times):
    return EmbeddingTable().table(network, times).rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_table_equals_the_beginning_of_a_longer_one_to_the_bit(dtype):
    network = embedding(dtype)
    whole = rows(network, TIMES)
    for count in (*range(1, CHUNK + 2), 2 * CHUNK, len(TIMES)):
        own = rows(network, TIMES[:count].clone())
        assert own.equal(whole[:count]), f"{count} times: {int((own != whole[:count]).any(1).sum())} rows differ"


@pytest.mark.parametrize("count", [1, CHUNK - 1, CHUNK, CHUNK + 1, len(TIMES)])
def test_every_row_is_the_embedding_of_its_time(count):
    network, table = embedding(), EmbeddingTable()
    times = TIMES[:count].clone()
    for step, time in enumerate(times):
        row, alone = table.row(network, times, torch.tensor(step)), network(time[None])
        assert [part.shape for part in row] == [part.shape for part in alone]
        assert max(float((part - own).abs().max()) for part, own in zip(row, alone, strict=True)) < 1e-12
    assert len(table.table(network, times).rows) == count


def test_another_number_of_threads_makes_it_anew():
    """As it makes a recording anew: the two would differ if only one of them did."""
    network, table, before = embedding(), EmbeddingTable(), torch.get_num_threads()
    first = table.table(network, TIMES)
    assert table.table(network, TIMES) is first
    try:
        torch.set_num_threads(before + 1)
        assert table.table(network, TIMES) is not first
    finally:
        torch.set_num_threads(before)
