"""`--help` says what every field of every configuration means, whole."""

import ast
import dataclasses
import inspect
import re
from typing import get_type_hints

import pytest

from purify_engine import config
from purify_engine.config import (
    Assembly,
    AttackConfig,
    ClassifierConfig,
    ClassifierTraining,
    DemoConfig,
    DiffusionTraining,
    EvaluationConfig,
    OfflineConfig,
    OwnDenoiserConfig,
    OwnGuideConfig,
    PurifierConfig,
    TradesTraining,
    Training,
    UNetConfig,
)

WIDE = "400"  # columns: every option on one line
OFFERED = {  # verb -> the configurations that are its options, by prefix
    "demo": {"": DemoConfig},
    "purify": {"": (PurifierConfig, OfflineConfig)},
    "evaluate": {"": EvaluationConfig, "attack.": AttackConfig},
    "convert": {
        "": PurifierConfig,
        "unet.": UNetConfig,
        "guide-network.": ClassifierConfig,
        "classifier-network.": ClassifierConfig,
    },
    "train diffusion": {"": DiffusionTraining, "network.": UNetConfig},
    "train purifier": {
        "": Assembly,
        "unet.": UNetConfig,
        "guide-network.": ClassifierConfig,
        "classifier-network.": ClassifierConfig,
        "diffusion.": DiffusionTraining,
        "trades.": TradesTraining,
        "classifier.": ClassifierTraining,
    },
    "train assemble": {"": Assembly},
    "train trades": {"": TradesTraining, "network.": ClassifierConfig},
    "train classifier": {"": ClassifierTraining, "network.": ClassifierConfig},
}
NOT_OFFERED = {  # of the saved model, or of an attacker; files hold images in [0, 1]
    "purify": {"schedule", "noise", "gradient", "surrogate_steps", "image_range"},
    "convert": {"noise", "gradient", "surrogate_steps"},
}
CONFIGS = [thing for name in config.__all__ if dataclasses.is_dataclass(thing := getattr(config, name))]


def every(verb: dict) -> list[tuple[str, type]]:
    """(prefix, configuration) of all that a verb offers."""
    return [(prefix, cls) for prefix, kinds in verb.items() for cls in (kinds if isinstance(kinds, tuple) else (kinds,))]


def documented(cls: type) -> dict[str, str]:
    """Field -> the string below it in the source, in one line; base classes first."""
    texts: dict[str, str] = {}
    for owner in reversed(cls.__mro__[:-1]):
        (tree,) = ast.parse(inspect.getsource(owner)).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                texts[field.target.id] = " ".join(below.value.value.split())
    return texts


def leaves(cls: type, prefix: str = "", without: frozenset[str] = frozenset()) -> dict[str, str]:
    """Option -> its text, through nested configurations."""
    texts, options = documented(cls), {}
    for name, kind in get_type_hints(cls).items():
        if name in without:
            continue
        if dataclasses.is_dataclass(kind):
            options.update(leaves(kind, f"{prefix}{name}."))
        else:
            options[f"--{prefix}{name}".replace("_", "-")] = texts[name]
    return options


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda cls: cls.__name__)
def test_every_field_has_a_docstring(cls):
    texts = documented(cls)
    assert texts.keys() == {field.name for field in dataclasses.fields(cls)}
    assert all(text.endswith(".") and len(text) > 6 for text in texts.values())


@pytest.mark.parametrize("verb", OFFERED)
def test_help_says_what_every_option_means(verb, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", WIDE)
    code, out, _ = command(*verb.split(), "--help")
    lines = {line.strip("│ *").split()[0]: " ".join(line.split()) for line in out.splitlines() if "--" in line}
    assert code == 0
    for prefix, cls in every(OFFERED[verb]):
        options = leaves(cls, prefix, frozenset(NOT_OFFERED.get(verb, ())))
        assert not {option: text for option, text in options.items() if text not in lines.get(option, "")}
    assert not unexplained(out)


@pytest.mark.parametrize("verb", ["train recipe", "train pack", "train digits", "report", "verify", "bench", "doctor"])
def test_help_explains_the_options_that_no_configuration_has(verb, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", WIDE)
    assert not unexplained(command(*verb.split(), "--help")[1])


def unexplained(help_text: str) -> list[str]:
    """The options without a word beside their name, their kind and their default."""
    lines = [line.strip("│ *") for line in help_text.splitlines() if line.startswith("│") and "--" in line]
    told = {line: re.sub(r"\[[^\]]*\]", "", line).split() for line in lines}
    assert lines
    return [line for line, words in told.items() if all(word.startswith("-") or word.isupper() for word in words)]


def test_every_configuration_is_offered_by_some_verb():
    def within(cls):
        nested = [kind for kind in get_type_hints(cls).values() if dataclasses.is_dataclass(kind)]
        return {cls}.union(*map(within, nested))

    offered = set().union(*(within(cls) for verb in OFFERED.values() for _, cls in every(verb)))
    of_python = {OwnDenoiserConfig, OwnGuideConfig}  # of modules, which no command line can hand in
    assert offered == set(CONFIGS) - of_python - {Training}  # the base of the three trainings


def test_help_names_the_default_where_no_saved_model_decides_it(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", WIDE)
    training = " ".join(command("train", "diffusion", "--help")[1].split())
    assert "The last beta; not for a cosine. A sigmoid only comes close to both. [default: 0.02]" in training
    assert "None trains on all. │" in training
    assert all(
        f"[default: {activation}]" in " ".join(command("train", verb, "--help")[1].split())
        for verb, activation in (("trades", "silu"), ("classifier", "relu"))
    )
    assert "[default: 70]" not in command("purify", "--help")[1]
