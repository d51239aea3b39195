"""When does purification add to its own guide? The ablation of that name, by the options of `python -m bench ablation`.

    python -m bench guide-question --purifier FOLDER --data TRAINING --network weak=FOLDER --network second=FILE
"""

from __future__ import annotations

from bench.runs import ablation


def main(words: list[str]) -> int:
    return ablation.main(["guide-question", *words])
