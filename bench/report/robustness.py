"""What docs/robustness.md says of the committed evaluations: what was measured, the main table, comparisons and costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bench.core.ablations import ABLATIONS
from bench.core.run import ROOT
from bench.report import ablation_chart
from bench.report.ablations import every_ablation, points
from bench.report.guide_question import ABLATED, EVALUATIONS
from bench.report.presets import presets_table
from purify_engine.config import AttackConfig
from purify_engine.evaluation.cells import Cell, read_cells
from purify_engine.evaluation.metrics import facts, fresh_comparisons, fresh_rows, table_of
from purify_engine.evaluation.report import column_names, figure, render_by_attack
from purify_engine.evaluation.sanity import sanity_checks
from purify_engine.evaluation.self_test_said import kept_self_tests
from purify_engine.evaluation.suite import CLEAN, EXACT, TRANSFERRED
from purify_engine.evaluation.summary import HEADLINE, UNION, Row, against_ours, by_defence, summarise
from purify_engine.evaluation.validation import Validation, read_validations
from purify_engine.evaluation.verdict import budget
from purify_engine.markdown import table

MAIN = (CLEAN.name, TRANSFERRED, "BPDA", "surrogate", EXACT, HEADLINE, UNION)
BRIEF = (CLEAN.name, TRANSFERRED, EXACT, HEADLINE)  # the README's
WRITES = "`purify-engine evaluate ... --output bench/results/{name}` writes it"


def of_data(part: Callable[[list[Cell]], str], results: Path) -> str:
    """A part for each data set, under its name; where a data set has no evaluation yet, which command writes it."""
    return of_files(lambda path: part(cells) if (cells := read_cells(path)) else None, results)


def of_files(part: Callable[[Path], str | None], results: Path, writes: str = WRITES) -> str:
    """The same of a part that reads the file; None: there is nothing yet."""
    parts = []
    for data, name in EVALUATIONS.items():
        said = part(results / name) or _not_yet(name, writes)
        parts.append(f"**{data[0].upper()}{data[1:]}.** {said}".replace(".** \n", ".**\n"))
    return "\n\n".join(parts)


def _not_yet(name: str, writes: str = WRITES) -> str:
    return f"Not measured yet: {writes.format(name=name)}."


def measured(cells: list[Cell]) -> str:
    """How many images, draws and attacks, with which budgets, computed by what."""
    attacks = [cell for cell in cells if cell.norm != "none"]
    numbers = sorted({len(cell.scores) for cell in cells})
    draws = sorted({2 * cell.config["num_draws"] for cell in cells})
    radii = dict.fromkeys(budget(cell.norm, cell.config["attack"]["epsilon"]) for cell in attacks)
    computed = dict.fromkeys(str(cell.computed.get("device", "")) for cell in cells if cell.computed)
    by = f" Computed on {' and '.join(name for name in computed if name)}." if any(computed) else ""
    tried = dict.fromkeys(_effort(cell) for cell in attacks if cell.defence == "DiffPure")
    return (
        f"{_either(numbers)} images, verdicts of {_either(draws)} fresh noise draws an image. Radii: {'; '.join(radii)}. "
        f"Attacks on DiffPure, as on every purifier: {'; '.join(tried)}.{by}"
    )


def _effort(cell: Cell) -> str:
    how = {**vars(AttackConfig(name=cell.attack)), **cell.config["attack"]}  # a line leaves out what is at its default
    again = f", then {how['refine_steps']} × EOT {how['refine_eot']} on what stands" if how["refine_steps"] else ""
    return f"{cell.attack} {how['num_steps']} × EOT {how['num_eot']}{again}"


def _either(numbers: Sequence[int]) -> str:
    return " to ".join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))


def brief(results: Path) -> str:
    """The README's table of CIFAR-10."""
    path = results / EVALUATIONS["CIFAR-10"]
    cells = read_cells(path)
    return main_table(cells, BRIEF).strip() if cells else _not_yet(path.name)


def main_table(cells: list[Cell], names: Sequence[str] = MAIN) -> str:
    """A row a defence: few columns, over how many attacks its minima are, and how often it says what its guide says."""
    rows, cells_of = summarise(cells), by_defence(cells)
    agreement = {fact["defence"]: fact["agreement_attacked"] for fact in facts(cells)}
    known = [name for name in names if name in column_names(rows)]
    lines = []
    for row in rows:
        attacks = [cell for cell in cells_of[row.defence].values() if cell.norm != "none"]
        linf = sum(cell.norm == "linf" for cell in attacks)
        same = agreement[row.defence]
        beside = (f"{linf} and {len(attacks)}", "–" if same is None else f"{100 * same:.1f}")
        figures = (f"{figure(row.columns.get(name))}{_own_images(row, name, rows)}" for name in known)
        lines.append((row.defence, *figures, *beside))
    columns = (f"{name} (n = {images})" if (images := _images(name, rows)) else name for name in known)
    header = ("defence", *columns, "attacks: ℓ∞, all", "agrees with the guide")
    return "\n\n" + table(header, lines)


def _images(name: str, rows: Sequence[Row]) -> int | None:
    """How many images a column stands on, where it is as many in every row."""
    numbers = {found.n for row in rows if (found := row.columns.get(name)) is not None}
    return numbers.pop() if len(numbers) == 1 else None


def _own_images(row: Row, name: str, rows: Sequence[Row]) -> str:
    """The same of one figure, where rows differ."""
    found = row.columns.get(name)
    return "" if found is None or _images(name, rows) else f", n = {found.n}"


def all_attacks(cells: list[Cell]) -> str:
    """Every attack on every defence."""
    return "\n\n" + render_by_attack(summarise(cells))


def afresh(path: Path) -> str | None:
    """Every row by three metrics on draws that no attack has seen, and ours against the others by them."""
    found = read_validations(path)
    if not found:
        return None
    compared = [(item.b, points(item.difference), f"{item.mcnemar.only_a} to {item.mcnemar.only_b}",
                 f"{item.mcnemar.p_value:.1g}") for item in fresh_comparisons(found)]  # fmt: skip
    header = ("ours against", "a single draw, points", "majorities only ours to theirs", "p (McNemar)")
    return f"{_of_draws(found)}\n\n{render_by_attack(fresh_rows(found))}" + ("\n\n" + table(header, compared) if compared else "")


def _of_draws(found: Sequence[Validation]) -> str:
    draws, seeds = max(one.draws for one in found), max(len(one.right) for one in found)
    return f"{draws} fresh draws an image of each of {seeds} seeds; one of a defence without noise."


def rests_on(path: Path) -> str | None:
    """Of each row: images, attacks, agreement with the guide, network calls, time and memory, the spread of seeds."""
    cells = read_cells(path)
    if not cells:
        return None
    header, *lines = table_of(facts(cells, read_validations(path)))
    return "\n\n" + table(header, lines)


def self_tests(path: Path) -> str | None:
    """Whether each row's gradient is right, as the test before the attacks found it. Errors are relative."""
    header = ("defence", "gradient", "float64 against differences", "attacked against float64", "its rounding",
              "the guide's share", "a detached guide is noticed", "images without gradient")  # fmt: skip
    rows = []
    for name, found in kept_self_tests(path).items():
        errors = (_small(found[each]) for each in ("difference_error", "attacked_error", "rounding", "guide_share"))
        noticed = {True: "yes", False: "**no**", None: "–"}[found["detached_caught"]]
        rows.append((name, found["gradient"], *errors, noticed, f"{100 * found['zero_images']:.0f} %"))
    return "\n\n" + table(header, rows, left=(0, 1)) if rows else None


def _small(value: float | None) -> str:
    return "–" if value is None else f"{value:.1g}"


def sanity(path: Path) -> str | None:
    """Whether the attack on ours is sound: each check with the accuracies that it compares."""
    cells = read_cells(path.with_name(f"{path.stem}.sanity{path.suffix}"))
    rows = [(check.name, "holds" if check.passed else "**fails**",
             "; ".join(f"{name} {100 * value:.1f}" for name, value in check.accuracies.items()), str(check.images))
            for check in (sanity_checks(cells) if cells else ())]  # fmt: skip
    return "\n\n" + table(("check", "", "accuracies, percent", "images"), rows, left=(0, 1, 2)) if rows else None


def comparisons(cells: list[Cell]) -> str:
    """Ours against each other row, paired, by each image's worst ℓ∞ attack."""
    rows = [(item.b, points(item.difference), points(item.fresh), f"{item.mcnemar.only_a} to {item.mcnemar.only_b}",
             f"{item.mcnemar.p_value:.1g}") for item in against_ours(cells)]  # fmt: skip
    header = ("ours against", "difference, points", "picked and scored on separate draws", "images only ours to theirs",
              "p (McNemar)")  # fmt: skip
    return "\n\n" + table(header, rows) if rows else "Ours has no ℓ∞ attack in common with another row yet."


def costs(cells: list[Cell]) -> str:
    """What a defence costs: seconds an image of each attack with its scoring."""
    cells_of = by_defence(cells)
    attacks = list(dict.fromkeys(cell.attack for cell in cells))
    lines = [(attack, *(_seconds(own.get(attack)) for own in cells_of.values())) for attack in attacks]
    return "seconds an image, attack and scoring together.\n\n" + table(("attack", *cells_of), lines)


def _seconds(cell: Cell | None) -> str:
    return "–" if cell is None else f"{cell.seconds / len(cell.scores):.2g}"


def drawing(data: str, name: str) -> Path:
    """Where an ablation's drawing stands."""
    return ROOT / "docs" / "figures" / f"ablation-{data}-{name}.svg"


def ablations(results: Path) -> str:
    """Every ablation that was measured, by data set."""
    parts = []
    for data, called in ABLATED.items():
        drawn = {name: f"figures/{drawing(data, name).name}" for name in CHARTED if ablation_chart.chart(results, data, name)}
        parts.append(f"### {called[0].upper()}{called[1:]}\n\n{every_ablation(results, data, drawn)}")
    return "\n\n".join(parts)


CHARTED = tuple(name for name, ablation in ABLATIONS.items() if ablation.axis is not None)
DRAWINGS: dict[Path, Callable[[Path], str]] = {
    drawing(data, name): partial(ablation_chart.chart, data=data, name=name) for data in ABLATED for name in CHARTED
}
FIGURES: dict[str, Callable[[Path], str]] = {
    "cifar10-headline": brief,
    "robustness-measured": partial(of_data, measured),
    "robustness-main": partial(of_data, main_table),
    "robustness-attacks": partial(of_data, all_attacks),
    "robustness-comparisons": partial(of_data, comparisons),
    "robustness-afresh": partial(of_files, afresh),
    "robustness-facts": partial(of_files, rests_on),
    "robustness-self-test": partial(of_files, self_tests),
    "robustness-sanity": partial(of_files, sanity, writes=WRITES.replace("...", "... --sanity")),
    "robustness-costs": partial(of_data, costs),
    "robustness-ablations": ablations,
    "robustness-presets": presets_table,
}
