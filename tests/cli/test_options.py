from typing import Annotated

import pytest
from cyclopts import App, Parameter
from cyclopts.config import Toml

from purify_engine.cli.options import field_docstrings, given, options_of, with_options
from purify_engine.config import ClassifierTraining, GuidanceConfig, PurifierConfig, UNetConfig


def test_nothing_given_changes_nothing():
    saved = PurifierConfig(t_star=42, guidance=GuidanceConfig(scale=3.0))
    assert with_options(saved, None) == saved
    assert with_options(saved, options_of(PurifierConfig)()) == saved


def test_what_is_given_replaces_just_that_however_deep():
    saved = PurifierConfig(t_star=42, seed=5, guidance=GuidanceConfig(scale=3.0, label_weight=0.5))
    guidance = options_of(GuidanceConfig)(scale=0.0)
    changed = with_options(saved, options_of(PurifierConfig)(seed=0, guidance=guidance))
    assert changed == PurifierConfig(t_star=42, seed=0, guidance=GuidanceConfig(scale=0.0, label_weight=0.5))


def test_false_zero_and_empty_are_given():
    options = options_of(ClassifierTraining)(flip=False, shift=0)
    assert given(options) == {"flip": False, "shift": 0}


def test_values_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match=r"num_steps must be in \[1, t_star=5\], got 9"):
        with_options(PurifierConfig(t_star=5), options_of(PurifierConfig)(num_steps=9))


def test_help_is_the_docstring_below_the_field():
    assert field_docstrings(UNetConfig)["image_size"] == "Pixels a side."
    assert field_docstrings(ClassifierTraining).keys() >= {"shift", "attack"}  # of the base class, and its own
    assert "200 epochs" in field_docstrings(ClassifierTraining)["steps"]  # its own goes before that of the base class


def test_fields_can_be_left_out():
    assert "seed" not in options_of(PurifierConfig, without=("seed",)).__dataclass_fields__


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ("--t-star 9 --timesteps 8 4 0 --landings 4 0 -1 --seed 3", {"t_star": 9, "seed": 3, "timesteps": (8, 4, 0)}),
        ("--t-star 9 --timesteps 8 --timesteps 4", {"t_star": 9, "timesteps": (8, 4)}),
        ("--t-star 9 --cycles 2 --cycle-t-stars 4 9", {"t_star": 9, "cycles": 2, "cycle_t_stars": (4, 9)}),
    ],
)
def test_several_numbers_follow_one_option_or_each_its_own(words, changed, tmp_path):
    kind = Annotated[options_of(PurifierConfig), Parameter(name="*")]

    def verb(source: str, *, options: kind = None) -> tuple[str, PurifierConfig]:  # type: ignore[valid-type]
        return source, with_options(PurifierConfig(), options)

    def run(words: list[str], **how: object) -> object:
        app = App(result_action="return_value", **how)
        app.default(verb)
        return app(words, exit_on_error=False, print_error=False)

    landings = {"landings": (4, 0, -1)} if "landings" in words else {}
    expected = PurifierConfig(**changed, **landings)
    assert run(["photo.png", *words.split()]) == ("photo.png", expected)
    lines = (f"{name} = {list(value) if isinstance(value, tuple) else value}" for name, value in {**changed, **landings}.items())
    (tmp_path / "options.toml").write_text("\n".join(lines))
    assert run(["photo.png"], config=Toml(tmp_path / "options.toml")) == ("photo.png", expected)
