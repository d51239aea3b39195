"""`purify-engine demo`: attack, purify and compare on held-out digits, in two minutes."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from purify_engine.cli.console import Meter, say, show
from purify_engine.cli.evaluate import CHECK_FAILED, show_full_evaluation
from purify_engine.cli.loading import Device, load_purifier
from purify_engine.cli.options import options_of, with_options
from purify_engine.config import DemoConfig, to_dict

if TYPE_CHECKING:
    from purify_engine.evaluation.demo import Demo

DemoOptions: Any = options_of(DemoConfig)

STAGES = 7  # self-test, five defences, contact sheet


def demo(
    *,
    report: Path = Path("report.html"),
    device: Device = "auto",
    json: Annotated[bool, Parameter(negative="")] = False,
    options: Annotated[DemoOptions | None, Parameter(name="*")] = None,
) -> int:
    """Attack a classifier of handwritten digits, purify, and compare five defences with each other.

    Parameters
    ----------
    report:
        Where to write the report with the contact sheet: one HTML file, no scripts, nothing fetched; its figures lie beside it.
    json:
        Print the result as one JSON line.
    """
    from purify_engine.data import digits
    from purify_engine.devices import described
    from purify_engine.evaluation.demo import NOTES, run_demo
    from purify_engine.evaluation.report import write_report
    from purify_engine.evaluation.suite import TRANSFERRED
    from purify_engine.evaluation.verdict import ADAPTIVE
    from purify_engine.evaluation.verdict import budget as limits
    from purify_engine.presets import load_classifier

    purifier, budget = load_purifier("digits", device=device, precision="float32"), with_options(DemoConfig(), options)
    where = purifier.device
    images, labels = (tensor.to(where) for tensor in digits("test"))
    with Meter("demo") as meter:
        stages = iter(range(STAGES))
        shown = run_demo(
            purifier,
            load_classifier("digits").to(where),
            images,
            labels,
            budget,
            training_images=digits("train")[0].to(where),
            on_stage=lambda stage: meter.update(next(stages, STAGES), STAGES, stage=stage),
        )
        meter.update(STAGES, STAGES, stage="done")
    settings = {"demo": to_dict(budget), "purifier": to_dict(purifier.config)}
    how = limits("linf", budget.epsilon)
    write_report(
        report, title="Demonstration on held-out digits", rows=shown.rows, sheet=shown.sheet, self_test=shown.self_test,
        configuration=settings, notes=NOTES, comparisons=shown.comparisons, budgets={ADAPTIVE: how, TRANSFERRED: how},
        about={
            "data": f"{len(images)} held-out digits of 8×8 pixels, {budget.num_adaptive} of them for the adaptive attack",
            "attacks may change": how,
            "computed": described(purifier),
            "date": f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        },
    )  # fmt: skip
    _say(shown, report, as_json=json)
    return 0 if shown.self_test["passed"] else CHECK_FAILED


def _say(shown: Demo, report: Path, *, as_json: bool) -> None:
    from purify_engine.evaluation.demo import NOTES
    from purify_engine.evaluation.report import terminal_table
    from purify_engine.evaluation.summary import to_json

    if as_json:
        say(to_json(shown.rows, self_test=shown.self_test, seconds=round(shown.seconds, 1), report=str(report)), "", as_json=True)
        return
    show(terminal_table(shown.rows, "Accuracy on held-out digits, percent"))
    verdict = "passed" if shown.self_test["passed"] else "FAILED: the adaptive column means nothing"
    print(*NOTES, "", f"gradient self-test {verdict} · {shown.seconds:.0f} s · contact sheet in {report}", sep="\n")
    show_full_evaluation()
