"""What a user installs: a whole source archive, a wheel built from it in isolation, and a command that works in every verb."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from purify_engine import __version__
from purify_engine.testing.published import pesser

ROOT = Path(__file__).parent.parent
PYTHON = "Programming Language :: Python :: "
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.so", "*.egg-info", "__pycache__", ".*_cache", "runs")


def run(*words: str | Path, cwd: Path, **environment: str) -> str:
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run([str(word) for word in words], cwd=cwd, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """The source archive of a clean copy of this tree."""
    folder = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, folder / "tree", ignore=NOT_COPIED)
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, ".", cwd=folder / "tree")
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def installed(archive) -> Path:
    """The Python of an environment with the wheel, built in isolation, and with what the wheel requires: no developer's tools."""
    folder = archive.parent
    constraints = str(ROOT / "constraints.txt")
    build = ("-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, archive)
    settings = {"PIP_CONSTRAINT": constraints, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    settings["PURIFY_ENGINE_CUDA"] = "0"  # compiling for GPUs takes a minute, and adds nothing to what is asked here
    run(sys.executable, *build, cwd=folder, **settings)
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    install = ("--python", python, "install", "--no-deps", "--no-index", next(folder.glob("*.whl")))
    run(sys.executable, "-m", "pip", *install, cwd=folder)
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    for name in needed(["purify-engine[digits]"]) - {"purify-engine"}:
        for top in {file.parts[0] for file in distribution(name).files or ()} - {"..", "__pycache__"}:
            if not (own / top).exists():
                (own / top).symlink_to(str(distribution(name).locate_file(top)))
    return python


@pytest.fixture(scope="module")
def metadata(archive, installed) -> list[Metadata]:
    """What an index is told by the source archive and by the wheel, read as strictly as an index reads it."""
    wheel = next(installed.parents[2].glob("*.whl"))
    with tarfile.open(archive) as opened, zipfile.ZipFile(wheel) as zipped:
        name = next(name for name in opened.getnames() if name.count("/") == 1 and name.endswith("/PKG-INFO"))
        of_archive = opened.extractfile(name).read()
        of_wheel = zipped.read(next(name for name in zipped.namelist() if name.endswith(".dist-info/METADATA")))
    return [Metadata.from_email(written, validate=True) for written in (of_archive, of_wheel)]


@pytest.fixture
def command(installed, tmp_path):
    """Runs `purify-engine WORDS` as installed, in an empty folder; gives what it prints. Any exit code but 0 is a failure."""

    def typed(*words: object) -> str:
        return run(installed.parent / "purify-engine", *map(str, words), cwd=tmp_path)

    return typed


@pytest.fixture
def labelled(tmp_path) -> Path:
    """Eight bright and dark images, in a file with their labels."""
    labels = np.arange(8) % 2
    images = np.random.RandomState(0).rand(8, 1, 8, 8) * 0.4 + 0.5 * labels[:, None, None, None]
    np.savez(tmp_path / "in.npz", images=images.astype(np.float32), labels=labels)
    return tmp_path / "in.npz"


def test_the_source_archive_has_everything_a_build_needs(archive):
    with tarfile.open(archive) as opened:
        names = {name.split("/", 1)[1] for name in opened.getnames() if "/" in name}
    patterns = ("csrc/**/*", "kernels/*.py", "purify_engine/weights/**/*", "purify_engine/**/*.j2")
    ours = [path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()]
    assert {path.relative_to(ROOT).as_posix() for path in ours} <= names
    assert {"setup.py", "pyproject.toml", "LICENSE", "constraints.txt", "purify_engine/py.typed"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
    assert not {path.relative_to(ROOT).as_posix() for path in modules()} - names


def test_every_link_of_the_documents_leads_somewhere_within_the_source_archive(archive):
    with tarfile.open(archive) as opened:
        names = {name.split("/", 1)[1] for name in opened.getnames() if "/" in name}
    documents = [ROOT / name for name in names if name.endswith(".md") and "/" not in name or name.startswith("docs/")]
    links = {(path, link) for path in documents if path.suffix == ".md" for link in relative_links(path.read_text())}
    reached = {os.path.relpath((path.parent / link).resolve(), ROOT) for path, link in links}
    assert {"docs/math.md", "docs/figures/digits.png", "CHANGELOG.md", "docs/decisions/README.md"} <= reached
    assert not reached - names
    assert {"CITATION.cff", "SECURITY.md", "bench/__main__.py", "mutation/__main__.py"} <= names


def relative_links(text: str) -> list[str]:
    """What Markdown links to, but for whole addresses and places within the page."""
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    return [target for target in targets if target and "://" not in target]


def test_an_index_accepts_what_it_is_told(metadata):
    from trove_classifiers import classifiers

    for told in metadata:
        assert told.name == "purify-engine" and str(told.version) == __version__
        assert told.license_expression == "Apache-2.0" and told.license_files == ["LICENSE"]
        assert told.author == told.maintainer == "Purify Engine developers"
        assert told.description_content_type == "text/markdown" and len(told.summary) < 512 and told.keywords
        assert not set(told.classifiers) - classifiers and "Typing :: Typed" in told.classifiers
        pythons = {name.removeprefix(PYTHON) for name in told.classifiers if name.startswith(f"{PYTHON}3.")}
        assert pythons == {"3.10", "3.11", "3.12", "3.13"} and told.requires_python == SpecifierSet(">=3.10")


def test_every_address_begins_with_the_projects_home(metadata):
    home = metadata[0].project_urls["Homepage"]
    assert home.startswith("https://") and metadata[1].project_urls == metadata[0].project_urls
    assert {"Documentation", "Changelog", "Issues", "Source"} <= set(metadata[0].project_urls)
    written = [(ROOT / name).read_text() for name in ("pyproject.toml", "CITATION.cff", "SECURITY.md", "README.md")]
    addresses = [address for text in written for address in re.findall(r"https://github\.com/[^\s\"'>)]+", text)]
    assert len(addresses) > 6 and not [address for address in addresses if not f"{address}/".startswith(f"{home}/")]


def test_an_index_shows_the_readme_with_links_that_lead_to_this_version(metadata):
    home, readme = metadata[0].project_urls["Homepage"], (ROOT / "README.md").read_text()
    for told in metadata:
        assert not relative_links(told.description)
        assert f"purified]({home}/raw/v{__version__}/docs/figures/digits.png)" in told.description
        assert f"]({home}/blob/v{__version__}/docs/math.md)" in told.description
        back = re.sub(re.escape(home) + r"/(raw|blob)/[^/]+/", "", told.description)
        assert back.strip() == readme.strip()


def test_the_wheel_has_every_module_and_no_other(installed):
    names = set(zipfile.ZipFile(next(installed.parents[2].glob("*.whl"))).namelist())
    ours = {path.relative_to(ROOT).as_posix() for path in modules()}
    ours = {f"purify_engine/{name}" if name.startswith("kernels/") else name for name in ours}
    assert {name for name in names if name.endswith(".py")} == ours
    assert {"purify_engine/py.typed", "purify_engine/weights/digits/unet.safetensors"} <= names


def modules() -> list[Path]:
    """Every Python file of the package; `kernels` is a package of its own beside it."""
    found = [*ROOT.glob("purify_engine/**/*.py"), *ROOT.glob("kernels/**/*.py")]
    return [path for path in found if not path.is_relative_to(ROOT / "purify_engine" / "kernels")]


def test_the_wheel_is_used_and_not_the_checkout(installed, tmp_path):
    where = run(installed, "-c", "import purify_engine; print(purify_engine.__file__)", cwd=tmp_path)
    assert str(installed.parent.parent) in where


@pytest.mark.parametrize("order", ["purify_engine._C, torch", "torch, purify_engine._C"])
def test_the_extension_works_in_either_import_order(order, installed, tmp_path):
    code = f"""
import {order}
from purify_engine import ops
key, ids, step = torch.tensor(1), torch.arange(3), torch.tensor(0)
with ops.backend("cpp"):
    fast = ops.philox(key, ids, step, 64)
with ops.backend("reference"):
    print(torch.equal(fast, ops.philox(key, ids, step, 64)))
"""
    assert run(installed, "-c", code, cwd=tmp_path).strip() == "True"


def test_the_embedded_purifier_works_from_the_wheel(installed, tmp_path):
    code = """
import torch
from purify_engine import GuidedPurifier, list_purifiers, load_classifier
images = torch.rand(2, 1, 8, 8)
out = GuidedPurifier.from_pretrained("digits")(images)
print(list_purifiers(), load_classifier("digits")(out).shape, out.shape == images.shape)
"""
    embedded = sorted(path.parent.name for path in ROOT.glob("purify_engine/weights/*/config.json"))
    assert "digits" in embedded
    assert run(installed, "-c", code, cwd=tmp_path).strip() == f"{embedded} torch.Size([2, 10]) True"


def test_nothing_but_what_the_wheel_requires_is_there(installed, tmp_path):
    for name in ("pytest", "pybind11", "mypy", "build"):
        code = f"import importlib.util; print(importlib.util.find_spec({name!r}))"
        assert run(installed, "-c", code, cwd=tmp_path).strip() == "None", name


def test_every_verb_is_run_below(installed, tmp_path):
    code = """
import json
from purify_engine.cli.run import application
def verbs(app):
    return {name: verbs(app[name]) for name in app if not name.startswith("-")}
print(json.dumps(verbs(application())))
"""
    verbs = ("demo", "purify", "verify", "report", "evaluate", "bench", "convert", "doctor")
    training = ("recipe", "diffusion", "trades", "classifier", "purifier", "assemble", "pack", "digits")
    expected = {**dict.fromkeys(verbs, {}), "train": dict.fromkeys(training, {})}
    assert json.loads(run(installed, "-c", code, cwd=tmp_path)) == expected


def test_doctor_finds_the_installation_healthy(command):
    found = json.loads(command("doctor", "--json"))
    assert found["healthy"]
    judged = {finding["name"] for finding in found["findings"] if finding["ok"]}
    assert {"extension", "op guided_step", "op attention", "op conv3x3", "purifier", "noise", "gradient"} <= judged


def test_images_are_purified_proved_and_reported(command, labelled, tmp_path):
    command("purify", labelled, tmp_path / "out.npz")
    assert json.loads(command("verify", tmp_path / "out.npz", "--json"))["problems"] == []
    (tmp_path / "out.report.html").unlink()
    command("report", tmp_path / "out.npz")
    assert "<html" in (tmp_path / "out.report.html").read_text()
    before, after = (np.load(path)["images"] for path in (labelled, tmp_path / "out.npz"))
    assert after.shape == before.shape and after.min() >= 0 and after.max() <= 1 and np.abs(after - before).max() > 0.01


def test_a_published_checkpoint_is_converted_and_used_where_it_lies(command, tmp_path):
    torch.save(pesser.state_dict(**pesser.SMALL), tmp_path / "weights.ckpt")
    np.savez(tmp_path / "in.npz", images=np.random.RandomState(0).rand(2, 3, 8, 8).astype(np.float32))
    made = json.loads(command("convert", "weights.ckpt", "converted", "--unet.image-size", 8, "--t-star", 2, "--json"))
    command("purify", "in.npz", "out.npz", "--purifier", "converted")
    assert made["origin"]["unet"]["layout"] == "pesser" and np.load(tmp_path / "out.npz")["images"].shape == (2, 3, 8, 8)


def test_a_purifier_is_timed(command):
    result = json.loads(command("bench", "--batch", 1, "--seconds", 0.2, "--json"))
    assert result["purifier"] == "digits" and all(point["median"] > 0 for point in result["points"])


def test_defences_are_evaluated(command, tmp_path):
    chosen = ("--defences", "undefended", "--defences", "DiffPure", "--attacks", "standard", "--attacks", "exact")
    light = ("--limit", 2, "--num-steps", 1, "--num-eot", 1, "--num-draws", 1, "--refine-steps", 0, "--fresh-draws", 1)
    shown = json.loads(command("evaluate", *chosen, *light, "--output", "cells.jsonl", "--report", "report.html", "--json"))
    assert {row["defence"] for row in shown["rows"]} == {"undefended", "DiffPure"}
    lines = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    cells = [(line["defence"], line["attack"]) for line in lines if "fingerprint" in line]
    assert sorted(cells) == [(row, attack) for row in ("DiffPure", "undefended") for attack in ("exact", "standard")]
    assert len(lines) > len(cells) and "<html" in (tmp_path / "report.html").read_text()


def test_the_demonstration_runs(command, tmp_path):
    names = ("transfer-steps", "num-adaptive", "adaptive-steps", "num-eot", "num-draws", "num-exhibits")
    assert len(json.loads(command("demo", *(f"--{name}=1" for name in names), "--json"))["rows"]) == 5
    assert "<html" in (tmp_path / "report.html").read_text()


TRAINED = """
import json, sys
from purify_engine.cli.run import main
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as ended:
        assert not ended.code, (words, ended.code)
"""


def options(prefix: str, settings: str) -> list[str]:
    return [f"--{prefix}{setting}" for setting in settings.split()]


def test_networks_are_trained_one_by_one_and_together_and_become_purifiers(installed, labelled, tmp_path):
    """In one process, as each would load PyTorch again."""
    source, light = str(labelled), "steps=1 batch-size=4"
    unet = "image-size=8 in-channels=1 base-channels=8 channel-mult=1 num-res-blocks=1 norm-groups=4"
    net = "architecture=cifar_resnet depth=8 width=4 in-channels=1"
    networks = {"diffusion": unet, "trades": net, "classifier": net}
    jobs = [
        ["train", job, source, "single", *options("", light), *options("network.", settings)]
        for job, settings in networks.items()
    ]
    jobs.append(["train", "assemble", "single", source])
    jobs.append(["train", "pack", "single", "packed"])
    names = {"unet": unet, "guide-network": net, "classifier-network": net}
    settings = [*(options(f"{job}.", light) for job in networks), *(options(f"{name}.", net) for name, net in names.items())]
    jobs.append(["train", "purifier", source, "all", *(word for words in settings for word in words)])
    run(installed, "-c", TRAINED, json.dumps(jobs), cwd=tmp_path)
    for folder in ("single", "all", "packed"):
        assert {path.stem for path in (tmp_path / folder).glob("*.safetensors")} == {"unet", "guide", "classifier"}
        assert "purifier" in json.loads((tmp_path / folder / "config.json").read_text())


def test_the_embedded_networks_are_trained_until_it_is_stopped(installed, tmp_path):
    words = [installed.parent / "purify-engine", "train", "digits"]
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as training:
        assert training.stderr is not None
        first = json.loads(training.stderr.readline())
        training.send_signal(signal.SIGTERM)
        training.stderr.read()
    assert training.returncode == 143 and first["job"] == "train digits" and first["done"] > 0


def test_without_the_extension_everything_runs_on_the_reference(installed, tmp_path):
    code = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "purify_engine._C" else found(name, *rest)
import torch
from purify_engine import ops
print(ops.philox(torch.tensor(1), torch.arange(2), torch.tensor(0), 4).shape)
"""
    assert run(installed, "-c", code, cwd=tmp_path).strip() == "torch.Size([2, 4])"


def test_every_dependency_is_pinned_exactly():
    pins = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    assert all("==" in pin for pin in pins if pin)
    pinned = {normal(pin.split("==")[0]) for pin in pins if pin}
    assert needed(["purify-engine[digits,dev,kernels,mutants]"]) - {"purify-engine"} <= pinned


def needed(roots: list[str]) -> set[str]:
    """Names of all distributions that `roots` require here, however deep."""
    found: set[str] = set()
    waiting = [Requirement(root) for root in roots]
    while waiting:
        wanted = waiting.pop()
        try:
            below = [Requirement(line) for line in requires(wanted.name) or ()]
        except PackageNotFoundError:
            continue
        waiting += [one for one in below if applies(one, wanted.extras) and normal(one.name) not in found]
        found.add(normal(wanted.name))
    return found


def applies(requirement: Requirement, extras: set[str]) -> bool:
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras))


def normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
