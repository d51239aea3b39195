"""What a run of 200,000 images holds does not grow with them."""

import gc

import numpy as np

from bench.runs.offline import resident_bytes
from bench.subjects.offline import Memory, Nowhere, Unchanged
from purify_engine.config import OfflineConfig
from purify_engine.data.run import run

ASKED = 200_000
ALLOWED = 16 * 2**20  # bytes, a hundred for each image of the last 160,000: of allocators, and of parts that are counted


def test_two_hundred_thousand_images_are_held_no_longer_than_they_are_worked_on(tmp_path, reached):
    held = []

    def seen(id):
        if id % (ASKED // 20) == ASKED // 20 - 1:
            gc.collect()
            held.append(resident_bytes())

    image = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    summary = run(Unchanged(), Memory(image, ASKED, seen), Nowhere(tmp_path / "out"), config=OfflineConfig(batch_size=64))
    assert summary.ok == ASKED and len(held) == 20
    grown = max(held[4:]) - held[3]
    assert grown < ALLOWED, [round(bytes / 2**20, 1) for bytes in held]
    reached("memory", summary.ok, asked=ASKED, of="images", grown=grown, held=held[-1])
