"""The command as people type it, in process: exit code, result on stdout, one line on stderr."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import purify_engine
from purify_engine.cli import run
from purify_engine.cli.run import main
from purify_engine.foreign import NotInstalledError


def test_version_is_that_of_the_package(command):
    assert command("--version") == (0, f"{purify_engine.__version__}\n", "")


@pytest.mark.parametrize("verb", ["demo", "purify", "evaluate", "train", "bench", "doctor"])
def test_every_verb_explains_itself(verb, command):
    code, out, _ = command(verb, "--help")
    assert code == 0 and f"purify-engine {verb}" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["purifi"], 'Unknown command "purifi"'),
        (["purify"], "requires an argument"),
        (["purify", "in", "out", "--sampler", "heun"], 'Choose from: "ddpm"'),
        (["purify", "in", "out", "--nonsense", "1"], "Unknown option"),
        (["evaluate", "in", "--defences", "DiffPure", "ours"], "too many words: 'ours'. An option that takes several"),
        (["purify", ".", "out", "--purifier", "absent"], "got 'absent'"),
        (["purify", "in", "out", "--config", "nowhere.toml"], "config must be an existing TOML file, got 'nowhere.toml'"),
        (["train", "diffusion", "nowhere", "out"], "source must be an existing image folder"),
        (["train", "diffusion", "digits", "out", "--steps", "0"], "steps must be at least 1, got 0"),
        (["train", "classifier", "digits", "out", "--device", "nonsense"], "device must be one that PyTorch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_users_mistake_is_one_line_and_code_2(words, says, command):
    code, out, err = command(*words)
    assert code == 2 and says in err and out == ""
    assert err.startswith("purify-engine: ") and err.count("\n") == 1


def test_what_is_wrong_in_a_configuration_file_is_told_with_its_name(tmp_path, command):
    (tmp_path / "broken.toml").write_text("[purify\n")
    code, _, err = command("purify", "in", "out", "--config", tmp_path / "broken.toml")
    assert code == 2 and f"config must be a TOML file, got '{tmp_path}/broken.toml': " in err and err.count("\n") == 1


def test_a_users_mistake_is_told_before_pytorch_is_imported(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").touch()
    mistakes = {
        "purify images": "requires an argument",
        "purify images out --nonsense 1": "Unknown option",
        "purify nowhere out": "source must be an existing",
        "purify images images/out": "output must be a folder outside the source",
        "purify images taken": "output must be a new or an empty folder",
        "purify images out --t-star 99999": "t_star must be in",
        "purify images out --batch-size 0": "batch_size must be a whole number, at least 1",
    }
    code = f"""
import contextlib, sys
from purify_engine.cli.run import main
for words in {list(mistakes)}:
    with contextlib.suppress(SystemExit):
        main(words.split())
print([name for name in sys.modules if name.split(".")[0] == "torch"])
"""
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert ended.stdout == "[]\n", ended.stderr
    for said, expected in zip(ended.stderr.splitlines(), mistakes.values(), strict=True):
        assert expected in said


def test_a_run_imports_no_compiler(tmp_path):
    """It would take as long as all else that is imported, and 80 MiB; nothing of a purifier is compiled."""
    np.save(tmp_path / "images.npy", np.zeros((2, 8, 8), np.uint8))
    code = """
import sys
from purify_engine.cli.run import main
try:
    main(["purify", "images.npy", "out.npy"])
finally:
    print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert "2 images purified" in ended.stdout and ended.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (KeyboardInterrupt(), 130),
        (OSError(28, "No space left on device", "/full"), 5),
        (ImportError("a broken extension"), 2),
        (NotInstalledError("Ray is not installed", name="ray"), 2),
    ],
    ids=repr,
)
def test_every_kind_of_failure_has_its_code(raised, code, command, monkeypatch):
    def fail(*args, **kwargs):
        raise raised

    monkeypatch.setattr(run, "call", fail)
    ended, _, err = command("doctor")
    assert ended == code and err.count("\n") == 1


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(run, "call", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["doctor"])


def test_sigterm_ends_with_143():
    code = """
import os, signal
from purify_engine.cli import run
run.call = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
run.main([])
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert (ended.returncode, ended.stderr) == (143, b"purify-engine: terminated\n")
