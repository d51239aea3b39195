"""The measuring commands: counts that are known, and dry runs without a GPU."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from bench import gpu
from bench.core import steps
from bench.core.run import RESULTS, begin, parser
from bench.core.steps import Step
from bench.opponents import compiled
from bench.runs import check_gradient, check_graph, check_ops, loop, ops, precompile, probe, profile, switches
from bench.subjects.checked_cases import Share
from bench.subjects.convolutions import CONVOLUTIONS, TOY, Convolution
from bench.subjects.launches import noted, sharing_code
from bench.subjects.purification import step_flops
from bench.tuning import conv3x3_tiles
from purify_engine import ops as ops_of_triton
from purify_engine.benchmark.harness import Records, read_records
from purify_engine.benchmark.networks import GUIDES, NETWORKS, TOY_GUIDE, TOY_NETWORKS, random_purifier
from purify_engine.benchmark.plain_unet import PlainUNet
from purify_engine.models import Classifier, UNet
from purify_engine.ops import OPS
from purify_engine.testing.cases import Case
from purify_engine.testing.costs import bytes_moved, flops

ROOT = Path(__file__).parent.parent


@pytest.fixture
def lines(tmp_path):
    """Runs a command at toy size and gives (exit status, its lines)."""

    def command(main, *words):
        status = main([*words, "--toy", "--device", "cpu", "--results", str(tmp_path)])
        return status, read_records(sorted(tmp_path.glob("*.jsonl")))

    return command


@pytest.fixture
def committed():
    """Nothing may be written among the results."""
    before = {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()}
    yield
    assert {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()} == before


# What is counted


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_convolutions_written_out_are_those_of_the_networks(name):
    found: Counter[tuple[int, ...]] = Counter()

    def note(module, inputs, output):
        if module.kernel_size == (3, 3):
            size = inputs[0].shape[-1] - inputs[0].shape[-1] % 2  # padded by 1 on two sides, where Ho et al. do
            found[module.in_channels, module.out_channels, size, module.stride[0]] += 1

    with torch.device("meta"):
        network = (PlainUNet(UNet(NETWORKS[name])) if name in NETWORKS else Classifier(GUIDES[name])).eval()
        x = torch.empty(1, 3, *2 * [NETWORKS[name].image_size if name in NETWORKS else 32])
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(note)
        network(x, torch.zeros(1)) if name in NETWORKS else network(x)
    assert {Convolution(count, *kind) for kind, count in found.items()} == set(CONVOLUTIONS[name])


def test_work_of_known_calls():
    conv = Case("conv3x3", (2, 16, 8, 8), torch.bfloat16, "channels_last", "norm-bias-residual", 4)
    assert flops(conv) == 2 * 9 * 16 * 16 * 2 * 64
    for op in ("relu_conv3x3", "relu_conv3x3_backward"):
        assert flops(Case(op, (2, 16, 8, 8), variant="line")) == 2 * 9 * 16 * 32 * 2 * 64
    assert bytes_moved(conv) == 2 * (3 * 2 * 16 * 64 + 9 * 16 * 16 + 3 * 16)  # x, residual, result; weight; bias, norm
    step = Case("guided_step", (8, 3, 32, 32), variant="guided-bfloat16-eps", keywords={"net_dtype": torch.bfloat16})
    ids_rows_and_scalars = 8 * 8 + 8 * 16 + 2 * 8
    assert (flops(step), bytes_moved(step)) == (0, (4 + 2 + 4 + 4 + 2) * 8 * 3 * 32 * 32 + ids_rows_and_scalars)
    assert flops(Case("attention", (2, 3, 5, 7))) == 4 * 2 * 3 * 5 * 5 * 7


def test_a_step_costs_the_unet_and_the_guide_there_and_back():
    purifier = random_purifier(TOY_NETWORKS["toy-ddpm"], TOY_GUIDE)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as unet, torch.no_grad():
        purifier.denoiser.unet(torch.zeros(1, 3, 8, 8), torch.zeros(1))
    with torch.utils.flop_counter.FlopCounterMode(display=False) as guide, torch.no_grad():
        purifier.guide(torch.zeros(1, 3, 8, 8))
    there_and_back = 2 * guide.get_total_flops()
    assert step_flops(purifier) == pytest.approx(unet.get_total_flops() + there_and_back, rel=0.01)


# Dry runs


@pytest.mark.parametrize("part", [check_ops, check_graph, check_gradient], ids=lambda part: part.__name__.rpartition("_")[2])
def test_checks_run_without_a_gpu(part, lines, committed, capsys):
    status, found = lines(part.main)
    told = [line for line in found if line["kind"] == "check"]
    assert status == 0 and told and all(line["ok"] for line in told), [line for line in told if not line["ok"]]
    if part is check_ops:
        assert {line["op"] for line in told} == set(OPS) and {"triton", "cpp"} <= {line.get("engine") for line in told}
    if part is check_graph:
        assert "no CUDA graph was recorded" in capsys.readouterr().out


def test_ops_are_timed_without_a_gpu(lines, committed):
    status, found = lines(ops.main)
    timed = [line for line in found if line["kind"] == "op"]
    assert status == 0 and {line["op"] for line in timed} == set(OPS)
    assert all(line["median"] > 0 and line["roofline"] > 0 and line["bytes"] > 0 and line["cache"] == "warm" for line in timed)


def test_steps_are_timed_without_a_gpu_beside_every_opponent(lines, committed, monkeypatch):
    monkeypatch.setattr(loop, "TOY_SETTINGS", loop.TOY_SETTINGS[:1])
    status, found = lines(loop.main, "--peers")
    timed = {line["variant"]: line for line in found if line["kind"] == "loop"}
    compilers = {f"torch.compile {mode}": compiled.options_of(mode) for mode in compiled.MODES}
    assert status == 0 and set(timed) >= {"engine loop", "eager fp32", "naive loop", *compilers}
    assert {name: timed[name]["options"] for name in compilers} == compilers and "options" not in timed["eager fp32"]
    if importlib.util.find_spec("diffusers") is None:
        notes = [line["says"] for line in found if line["kind"] == "note"]
        assert notes == ["not measured: diffusers is not installed here"]


def test_switches_are_timed_and_their_images_compared_without_a_gpu(lines, committed, monkeypatch):
    for name in ("CIFAR", "OTHERS"):  # two steps in place of ten: a hundred purifications are timed
        short = tuple(dataclasses.replace(setting, steps=2) for setting in getattr(switches, name))
        monkeypatch.setattr(switches, name, short)
    status, found = lines(switches.main)
    timed = {(line["measure"], line["variant"]) for line in found if line["kind"] == "switch"}
    assert status == 0 and timed >= {("whole", "all on"), ("whole", "all off")}
    assert timed >= {("single", "lean_norm off"), ("single", "split_k off")}
    assert timed >= {("gradient", "gradient, all on"), ("loop", "loop, PyTorch's operations")}
    assert {line["variant"] for line in found if line["kind"] == "images"} == {"all on", "all off"}


def test_kernels_are_compiled_beforehand_without_a_gpu(lines, committed, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    code = "from bench.runs.precompile import main; raise SystemExit(main(%r))"
    words = ["--toy", "--device", "cpu", "--results", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code % words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and f"{precompile.MOST_IN_TOY} of {precompile.MOST_IN_TOY} compiled" in done.stdout, done.stderr
    assert len(list((tmp_path / "cache").rglob("*.cubin"))) == precompile.MOST_IN_TOY


def test_a_kernel_that_does_not_compile_is_said():
    code = "from bench.subjects.compilation import *; compile_for((9, 0)); none = (('nothing', 1),)\n"
    code += "print(compile_one(Compiled('purify_engine.kernels.philox', '_philox_kernel', (1, 1, 1), none, ())))"
    compiling = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env=compiling)
    assert done.stdout.startswith("_philox_kernel: ")


def test_cases_that_share_code_are_all_chosen_and_no_kind_of_code_is_left_out():
    known = [Case("group_norm_silu", (2, 4, size, size), num_groups=2) for size in (2, 2, 3, 4, 5, 16, 17, 32)]
    launched = {}

    def call(case):
        with ops_of_triton.backend("triton"):
            torch.ops.purify.group_norm_silu(*case.arguments())

    for case in known:
        with noted(torch.device("cpu"), launched.setdefault(case, set()).add):
            call(case)
    chosen = sharing_code(known, call, torch.device("cpu"))
    code = {one for case in chosen for one in launched[case]}
    assert all((case in chosen) == (launched[case] <= code) for case in known)
    kinds = {one.kind for case in known for one in launched[case]}
    assert {one.kind for one in code} == kinds and 0 < len(chosen) < len(known)


def test_a_step_is_profiled_without_a_gpu(lines, committed, tmp_path):
    status, found = lines(profile.main)
    groups = {line["group"]: line["launches"] for line in found if line["kind"] == "profile"}
    assert status == 0 and groups["guided step and noise"] == 1 and groups["all"] > groups["norm"] > 0
    assert "aten::" in next(tmp_path.glob("*.txt")).read_text()


def test_the_probe_runs_without_a_gpu(lines, committed):
    status, found = lines(probe.main)
    kinds = {line["kind"] for line in found}
    assert status == 0 and kinds == {"machine", "ceilings", "gap", "conv", "convs", "operators", "check", "unet"}


def test_tiles_are_tried_in_the_interpreter(lines, committed, monkeypatch):
    monkeypatch.setattr(conv3x3_tiles, "TOY", {"toy": TOY["toy"][1:2]})
    status, found = lines(conv3x3_tiles.main)
    (told,) = [line for line in found if line["kind"] == "tile"]
    assert status == 0 and told["problem"][:3] == [64, 8, 8] and told["cudnn"]["median"] > 0


def test_the_whole_command_is_a_dry_run_without_a_gpu(committed):
    words, blind = [sys.executable, "-m", "bench", "gpu", "build", "gradient"], {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, env=blind)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left out: it needs a GPU" in done.stdout
    assert "finds no GPU here: a dry run" in done.stdout and "No GPU was found and no GPU figure was made." in done.stdout
    last = json.loads(done.stdout.splitlines()[-1])
    assert [(step["step"], step["verdict"]) for step in last["steps"]] == [("build", "ok"), ("gradient", "ok")]
    assert last["toy"] and last["checks"] == 3 and last["failed"] == []


def carried_out(step, folder, *, dry=False):
    (outcome,) = steps.carried_out((step,), folder, dry=dry)
    return outcome.status, outcome.seconds


def test_a_failing_or_endless_step_is_said_and_fails(tmp_path, monkeypatch, capsys):
    (tmp_path / "endless.py").write_text("import time\nprint('measured', flush=True)\ntime.sleep(60)\n")
    (tmp_path / "failing.py").write_text("raise SystemExit(1)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(steps, "GRACE", 0.0)
    status, seconds = carried_out(Step("endless", ("endless",), 3), tmp_path)
    assert status == steps.TIMED_OUT and seconds < 30
    assert "endless: out of time" in capsys.readouterr().out
    assert carried_out(Step("failing", ("failing",), 30), tmp_path)[0] == 1


def test_a_tool_is_given_its_own_words_and_left_out_without_a_gpu(tmp_path, monkeypatch):
    (tmp_path / "a_tool.py").write_text("import sys\nraise SystemExit(3 if sys.argv[1:] == ['its', 'own'] else 1)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    tool = Step("tool", ("a_tool", "its", "own"), 30, tool=True)
    assert carried_out(tool, tmp_path)[0] == 3
    assert carried_out(tool, tmp_path, dry=True) == (0, 0.0)


def test_steps_of_a_stage_run_side_by_side_and_shards_share_one(tmp_path, monkeypatch):
    meet = "import sys, time, pathlib\nhere = pathlib.Path(sys.argv[sys.argv.index('--results') + 1])\n"
    meet += "name = ''.join(sys.argv[sys.argv.index('--shard') + 1 :]).replace('/', 'of') if '--shard' in sys.argv else 'alone'\n"
    meet += "(here / f'met-{name}').touch()\n"
    meet += "while len(list(here.glob('met-*'))) < 3:\n    time.sleep(0.01)\n"
    (tmp_path / "meet.py").write_text(meet)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    stage = Step("shared", ("meet",), 30, shards=2), Step("one", ("meet",), 30)
    assert [outcome.status for outcome in steps.carried_out(stage, tmp_path, dry=False)] == [0, 0]
    assert {path.name for path in tmp_path.glob("met-*")} == {"met-0of2", "met-1of2", "met-alone"}


def test_shares_of_the_cases_are_all_of_them_once():
    known = list(range(29))
    shares = [Share(number, 8).taken(known) for number in range(8)]
    assert sorted(case for share in shares for case in share) == known
    assert Share().taken(known) == known


@pytest.mark.parametrize("part", gpu.PARTS)
def test_every_part_keeps_to_six_minutes(part):
    assert sum(max(step.seconds for step in stage) for stage in gpu.PARTS[part]) <= 360


def test_steps_that_went_well_are_left_out_when_resumed(tmp_path):
    records = Records(tmp_path / "gpu-a.jsonl", machine="a", run="2026")
    about = {"commit": "abc1234", "toy": False}
    for step, status, where in (("ops", 0, about), ("graph", 1, about), ("build", 0, {**about, "commit": "other"})):
        records(kind="step", step=step, status=status, **where)
    assert gpu.finished(records.path, **about) == {"ops"}
    records(kind="step", step="ops", status=1, **about)
    assert gpu.finished(records.path, **about) == set()
    assert gpu.finished(records.path, commit="abc1234+", toy=False) == gpu.finished(records.path, commit=None, toy=False) == set()


def test_figures_of_a_dry_run_never_reach_the_results(monkeypatch, committed):
    command, _ = begin("ops", parser("ops", "d."), ["--toy"])
    assert command.records.path.parent != RESULTS
    command.records.path.unlink()
