"""docs/robustness.md from small results: tables, drawings, presets, and the answer worded for every outcome."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.report import ablation_chart, guide_question, presets, published, robustness
from bench.report.ablations import ablation_table, every_ablation, outcomes, results_of
from bench.tuning import presets as command
from purify_engine.config import PurifierConfig, from_dict
from purify_engine.evaluation.sanity import STEPS, WIDE
from purify_engine.evaluation.validation import Validation

N = 40


def scores(share):
    return [1.0] * round(share * N) + [0.0] * (N - round(share * N))


def cell(defence, attack, share, norm="linf"):
    how = {"epsilon": 8 / 255, "norm": norm, "num_steps": 10, "num_eot": 1, "gradient": "exact"}
    return {
        "defence": defence, "attack": attack, "norm": norm, "scores": scores(share), "selection": scores(share), "seconds": 8.0,
        "fingerprint": f"{defence} {attack}", "config": {"attack": how, "num_draws": 4, "defence": {}},
    }  # fmt: skip


def line(ablation, variant, attack, share, *, place=None, base="b", unet=5, kind="ours", guide=None, right=1):
    """One line of an ablation."""
    made = cell(variant, attack, share, "none" if attack == "standard" else "linf")
    purifier = {"t_star": 70, "num_steps": unet, "sampler": "ddim", "eta": 1.0}
    guidance = {"kind": "adversarial", "latent_weight": 1.0, "label_weight": 0.0, "pseudo_label": "none"}
    made["config"]["defence"] = {"kind": kind, "guide": guide, "purifier": purifier, "guidance": guidance, "ratio": 0.1}
    return {
        "ablation": ablation, "variant": variant, "place": place, "base": base, "key": f"{variant} {attack}", "n": N,
        "agreement": 0.25, "guide_right": [right] * N, "scale": 0.5, "ms_an_image": 2.0 * unet,
        "calls": {"unet": unet, "guide": 6},
        "machine": "a machine", "commit": "abc", "when": "2026-11-28T00:00:00", "cell": made,
    }  # fmt: skip


def written(folder: Path, name: str, records):
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def rows_of(table: str) -> dict[str, list[str]]:
    split = [[part.strip() for part in text.strip("|").split("|")] for text in table.splitlines() if text.startswith("|")]
    return {name: values for name, *values in split}


@pytest.fixture
def steps(tmp_path):
    """70 steps are 80 % right under attack, 7 as many, 1 far fewer; 5 lose on clean images alone."""
    given = {"70 steps": (70, 0.9, 0.8), "7 steps": (7, 0.9, 0.8), "5 steps": (5, 0.6, 0.8), "1 steps": (1, 0.9, 0.2)}
    lines = [line("steps", "ours", attack, 0.8, unet=7) for attack in ("standard", "transferred", "adaptive")]
    for name, (unet, clean, robust) in given.items():
        lines += [line("steps", name, "standard", clean, place=unet, unet=unet)]
        lines += [line("steps", name, attack, robust, place=unet, unet=unet) for attack in ("transferred", "adaptive")]
    return written(tmp_path, "ablations-cifar10.jsonl", [line("steps", "stale", "standard", 0.1, base="old"), *lines])


def test_a_row_has_its_figures_its_difference_to_ours_and_its_cost(steps):
    table = rows_of(ablation_table(outcomes(results_of(steps, "cifar10"), "steps")))
    assert "stale" not in table and list(table)[2:] == ["ours", "70 steps", "7 steps", "5 steps", "1 steps"]
    figures = dict(zip(table["row"], table["1 steps"], strict=True))
    assert figures["standard"].startswith("90.0 (") and figures["adaptive"].startswith("20.0 (")
    assert figures["worst, ℓ∞"].startswith("20.0 (") and figures["worst, ℓ∞, to ours"].startswith("-60.0 (")
    assert (figures["agrees with the guide"], figures["U-Net calls"], figures["ms an image"]) == ("0.25", "1", "2")


def test_the_drawing_has_a_line_an_attack_and_a_whisker_a_point(steps):
    drawing = ElementTree.fromstring(ablation_chart.chart(steps, "cifar10", "steps"))
    svg = "{http://www.w3.org/2000/svg}"
    names = [text.text for text in drawing.iter(f"{svg}text") if text.get("class") == "name"]
    assert sorted(names) == ["adaptive", "standard", "transferred", "worst of them"]
    assert len([each for each in drawing.iter(f"{svg}line") if "whisker" in (each.get("class") or "")]) == 16
    titles = [title.text for title in drawing.iter(f"{svg}title")]
    assert any(title.startswith("1 steps, adaptive: 20.0 (") for title in titles)
    assert ablation_chart.chart(steps, "cifar10", "ratio") == ablation_chart.chart(steps, "digits", "steps") == ""
    assert "![" in every_ablation(steps, "cifar10", {"steps": "x.svg"}) and "`ratio`" in every_ablation(steps, "cifar10", {})


def test_presets_are_the_fewest_steps_without_a_significant_loss_and_can_be_loaded(steps, capsys):
    picked = {choice.name: choice for choice in presets.of_results(steps, "cifar10")}
    assert {name: choice.row.name for name, choice in picked.items()} == {
        "faithful": "70 steps", "balanced": "7 steps", "fast": "5 steps",
    }  # fmt: skip
    changes = picked["fast"].changes()
    assert "40 validation images" in changes.pop("about")
    config = from_dict(PurifierConfig, changes)
    assert (config.num_steps, config.t_star, config.guidance.scale) == (5, 70, 0.5)
    assert rows_of(presets.presets_table(steps))["CIFAR-10"][1] == "5 steps"
    assert command.main(["cifar10", "--results", str(steps)]) == 0
    assert json.loads(capsys.readouterr().out.split("\nfaithful:")[0])["presets"]["balanced"]["num_steps"] == 7


@pytest.mark.parametrize(
    ("ours", "alone", "says"),
    [(0.9, 0.5, "Where it was measured to: “ours” on CIFAR-10 (n = 40: ℓ∞ +40.0"),
     (0.5, 0.9, "The guide alone is better than “ours” on CIFAR-10 (n = 40: ℓ∞ -40.0"),
     (0.5, 0.5, "In nothing that was measured so far. Not told apart from the guide alone: “ours” on CIFAR-10")],
)  # fmt: skip
def test_the_answer_says_what_the_intervals_allow(tmp_path, ours, alone, says):
    cells = [cell(row, attack, share) for row, share in (("ours", ours), ("the guide alone", alone))
             for attack in ("transferred", "exact")]  # fmt: skip
    answer = guide_question.answer(written(tmp_path, "cifar10-small.jsonl", cells))
    assert says in answer and "the handwritten digits: not measured yet" in answer


def test_nothing_measured_is_said_plainly(tmp_path):
    for figures in (guide_question.FIGURES, robustness.FIGURES):
        for name, block in figures.items():
            assert "ot measured yet" in block(tmp_path), name


def test_a_purifier_is_compared_with_the_guide_that_it_has(tmp_path):
    lines = [line("guide-question", name, attack, share, guide=guide, kind=kind, right=0)
             for name, guide, kind, share in (("ours", None, "ours", 0.5), ("the guide alone", None, "the guide alone", 0.5),
                                              ("ours, weak guide", "weak", "ours", 0.5),
                                              ("the weak guide alone", "weak", "the guide alone", 0.1))
             for attack in ("transferred", "adaptive")]  # fmt: skip
    written(tmp_path, "ablations-cifar10.jsonl", lines)
    gaps = {finding.row: finding.gap.value for finding, _ in guide_question.varied(tmp_path, "cifar10")}
    assert gaps == {"ours": 0.0, "ours, weak guide": pytest.approx(0.4)}
    assert "50.0 % of 80" in guide_question.varied_table(tmp_path)


def test_a_main_table_counts_the_attacks_behind_each_minimum(tmp_path):
    cells = [cell("ours", "standard", 0.9, "none"), *(cell("ours", name, 0.5) for name in ("transferred", "exact", "BPDA")),
             cell("ours", "StAdv", 0.4, "spatial")]  # fmt: skip
    block = robustness.FIGURES["robustness-main"](written(tmp_path, "cifar10-small.jsonl", cells))
    (ours,) = (row for name, row in rows_of(block).items() if name == "ours")
    assert ours[-2:] == ["3 and 4", "–"]
    assert "0.2" in robustness.FIGURES["robustness-costs"](tmp_path)


def test_a_figure_says_its_number_of_images_where_its_column_has_several(tmp_path):
    some = {"scores": [0.5] * 8, "selection": [0.5] * 8}
    cells = [*(cell(row, "standard", 0.9, "none") for row in ("ours", "DiffPure")), cell("ours", "exact", 0.5),
             {**cell("DiffPure", "exact", 0.5), **some}]  # fmt: skip
    cells[-1]["config"]["attack"] |= {"refine_steps": 4}  # and 16 draws, its default, which a line leaves out
    path = written(tmp_path, "cifar10-small.jsonl", cells)
    block = robustness.FIGURES["robustness-main"](path)
    assert f"standard (n = {N}) | exact | " in block
    assert rows_of(block)["ours"][1].endswith(f", n = {N}") and rows_of(block)["DiffPure"][1].endswith(", n = 8")
    assert rows_of(robustness.FIGURES["cifar10-headline"](path))["ours"] == rows_of(block)["ours"]
    measured = robustness.FIGURES["robustness-measured"](path)
    assert "then 4 × EOT 16 on what stands" in measured and measured.count("EOT") == 2


def test_what_stands_beside_the_figures_is_read_off_the_same_lines(tmp_path):
    cells = [{**cell(row, attack, share), "agreement": [0.75] * N} for row, share in (("ours", 0.5), ("DiffPure", 0.25))
             for attack in ("transferred", "exact")]  # fmt: skip
    afresh = [Validation(row, "minimum, linf", 2, ("exact",) * N, ((round(12 * share),) * N,) * 2, 12, (int(share > 0.3),) * N,
                         24, tuple(range(N)), (0,) * N, (), 0.0, row).as_record()
              for row, share in (("ours", 0.5), ("DiffPure", 0.25))]  # fmt: skip
    written(tmp_path, "cifar10-small.jsonl", [*cells, *afresh])
    sane = [cell("ours", name, share) for name, share in (("exact", 0.5), (WIDE, 0.3), (STEPS, 0.4))]
    written(tmp_path, "cifar10-small.sanity.jsonl", sane)
    found = {"gradient": "right", "difference_error": 2e-9, "attacked_error": 3e-6, "rounding": None, "guide_share": 0.25,
             "detached_caught": False, "zero_images": 0.5}  # fmt: skip
    written(tmp_path, "cifar10-small.jsonl", [*cells, *afresh, {"self_test": "ours", "found": found}])
    names = ("main", "afresh", "facts", "sanity", "self-test")
    blocks = {name: robustness.FIGURES[f"robustness-{name}"](tmp_path) for name in names}
    assert rows_of(blocks["self-test"])["ours"] == ["right", "2e-09", "3e-06", "–", "0.2", "**no**", "50 %"]
    assert rows_of(blocks["main"])["ours"][-1] == "75.0" and rows_of(blocks["facts"])["ours"][3] == "75.0 %"
    assert "12 fresh draws an image of each of 2 seeds" in blocks["afresh"]
    assert rows_of(blocks["afresh"])["DiffPure"] == ["+25.0 (+25.0 to +25.0)", f"{N} to 0", "2e-12"]
    checks = rows_of(blocks["sanity"])
    assert checks["nothing withstands a radius that hides every class"][0] == "**fails**"
    assert checks["more steps do not raise accuracy"] == ["holds", f"exact 50.0; {STEPS} 40.0", str(N)]
    assert checks["twice the steps lower accuracy by no more than 2 points"][0] == "**fails**"


def test_what_papers_claim_names_its_paper():
    table = rows_of(published.claims(Path()))
    assert all(source.startswith("arXiv ") for *_, source in list(table.values())[2:])
