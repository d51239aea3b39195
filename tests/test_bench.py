"""The measuring commands: counts that are known, faults that must be found, and dry runs without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from bench import bench_loop, bench_ops, check_engine, checks, gpu, peers, probe, run, shapes, tune
from bench.shapes import CONVOLUTIONS, Convolution
from purify_engine.benchmark.harness import read_records
from purify_engine.benchmark.networks import GUIDES, NETWORKS, TOY_GUIDE, TOY_NETWORKS, random_purifier
from purify_engine.benchmark.plain_unet import PlainUNet
from purify_engine.config import PurifierConfig
from purify_engine.models import Classifier, UNet
from purify_engine.ops.registry import OPS, Op
from purify_engine.testing.cases import Case, cases
from purify_engine.testing.costs import bytes_moved, flops

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


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
    before = {path: path.stat().st_mtime_ns for path in run.RESULTS.iterdir()}
    yield
    assert {path: path.stat().st_mtime_ns for path in run.RESULTS.iterdir()} == before


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
    assert bench_loop.step_flops(purifier) == pytest.approx(unet.get_total_flops() + there_and_back, rel=0.01)


# Faults that must be found


def broken(op: Op, change) -> Op:
    def launch(*args, **kwargs):
        return change(op.engines["reference"](*args, **kwargs))

    return Op(op.name, {**op.engines, "cpp": launch}, op.check)


@pytest.mark.parametrize("name", ["group_norm_silu", "philox", "to_images", "conv3x3"])
def test_an_engine_that_is_slightly_wrong_is_found(name):
    case = next(c for c in cases(name) if 0 not in c.shape and c.dtype == torch.float32 and min(c.shape[2:], default=2) > 1)
    op = Op(name, {**OPS[name].engines, "cpp": OPS[name].engines["reference"]}, OPS[name].check)
    assert checks.disagreement(op, case, "cpp", CPU) == ""
    off = broken(op, lambda y: y * 1.0001 if y.is_floating_point() else y + 1)
    assert checks.disagreement(off, case, "cpp", CPU) != ""


def test_another_memory_format_than_the_references_is_found():
    op, case = OPS["group_norm_silu"], Case("group_norm_silu", (2, 4, 3, 3), num_groups=2)
    sideways = broken(op, lambda y: y.contiguous(memory_format=torch.channels_last))
    assert "strides" in checks.disagreement(sideways, case, "cpp", CPU)


def test_an_element_that_a_kernel_leaves_unwritten_is_found():
    op, case = OPS["group_norm_silu"], Case("group_norm_silu", (2, 4, 3, 3), num_groups=2)

    def forgetful(y):
        out = torch.empty_like(y)
        out.view(-1)[1:] = y.reshape(-1)[1:]
        return out

    assert "NaN" in checks.disagreement(broken(op, forgetful), case, "cpp", CPU)


def test_an_engine_that_takes_no_case_at_all_has_not_passed(tmp_path):
    command, _ = run.begin("checks", run.parser("d."), ["--results", str(tmp_path), "--toy"])
    declining = Op("philox", {**OPS["philox"].engines, "cpp": lambda *_: NotImplemented}, OPS["philox"].check)
    checks.check_engine(command, declining, "cpp")
    assert command.failed == ["philox cpp"] and command.close() == 1


def test_tensors_keep_their_gaps_and_repetitions_on_the_way_to_a_device():
    for layout in ("contiguous", "channels_last", "strided", "expanded"):
        (x, *_) = Case("to_images", (2, 3, 4, 5), layout=layout).arguments()
        there = checks.moved(x, torch.device("meta"))
        assert (there.shape, there.stride(), there.device.type) == (x.shape, x.stride(), "meta")


def test_a_graph_that_replays_old_noise_is_found(monkeypatch):
    purifier = random_purifier(TOY_NETWORKS["toy-ddpm"], TOY_GUIDE, execution="loop")
    guide = check_engine.guides(purifier)["xt"]
    assert check_engine.graph_fault(purifier, guide, CPU, whole_plan=False) == ""

    class Stale(check_engine.Replay):
        def run(self, process, x):
            return super().run(process._replace(noise=check_engine.NoiseKey(torch.tensor(0), process.noise.ids)), x)

    monkeypatch.setattr(check_engine, "Replay", Stale)
    assert "seed 1, ReversePlan(ddpm" in check_engine.graph_fault(purifier, guide, CPU, whole_plan=False)


def test_a_wrong_gradient_is_found(lines, monkeypatch):
    sound = check_engine.gradient
    single = [0]

    def off(purifier):
        found = sound(purifier)
        single[0] += found.dtype == torch.float32
        here = single[0] == 2 and found.dtype == torch.float32  # the second in float32 is this device's
        return 1.001 * found if here else found

    monkeypatch.setattr(check_engine, "gradient", off)
    status, found = lines(checks.main, "gradient")
    failed = [line["check"] for line in found if line["kind"] == "check" and not line["ok"]]
    assert (status, failed) == (1, ["gradient toy-ddpm float32"])


def test_a_variant_that_computes_something_else_is_a_failed_check(tmp_path):
    command, _ = run.begin("loop", run.parser("d."), ["--results", str(tmp_path), "--toy"])
    purifier = random_purifier(TOY_NETWORKS["toy-ddpm"], TOY_GUIDE, PurifierConfig(t_star=100, num_steps=3, noise="fixed"))
    compared = bench_loop.Comparison(purifier, bench_loop.images_for(purifier, 3))
    sound = bench_loop.BASELINES["eager fp32"](purifier)
    compared.check(command, "sound", "eager fp32", sound)
    assert command.failed == [] and compared.errors["eager fp32"] < 1e-5
    compared.check(command, "ours", "engine loop", bench_loop.engine(purifier, "loop"))
    assert command.failed == []
    wrong = bench_loop.engine(purifier, "loop")
    with torch.no_grad():
        next(wrong.denoiser.parameters()).mul_(1.001)
    compared.check(command, "wrong", "engine loop", wrong)
    assert command.failed == ["wrong"]


# Dry runs


@pytest.mark.parametrize("part", ["ops", "graph", "gradient"])
def test_checks_run_without_a_gpu(part, lines, committed, capsys):
    status, found = lines(checks.main, part)
    told = [line for line in found if line["kind"] == "check"]
    assert status == 0 and told and all(line["ok"] for line in told), [line for line in told if not line["ok"]]
    if part == "ops":
        assert {line["op"] for line in told} == set(OPS) and {"triton", "cpp"} <= {line.get("engine") for line in told}
    if part == "graph":
        assert "no CUDA graph was recorded" in capsys.readouterr().out


def test_ops_are_timed_without_a_gpu(lines, committed):
    status, found = lines(bench_ops.main)
    timed = [line for line in found if line["kind"] == "op"]
    assert status == 0 and {line["op"] for line in timed} == set(OPS)
    assert all(line["median"] > 0 and line["roofline"] > 0 and line["bytes"] > 0 and line["cache"] == "warm" for line in timed)


def test_steps_are_timed_without_a_gpu_beside_every_opponent(lines, committed, monkeypatch):
    monkeypatch.setattr(bench_loop, "TOY_SETTINGS", bench_loop.TOY_SETTINGS[:1])
    status, found = lines(bench_loop.main, "--peers")
    told = {line["variant"] for line in found if line["kind"] == "loop"}
    assert status == 0 and told >= {"engine loop", "eager fp32", "naive loop", "torch.compile"}
    if peers.importlib.util.find_spec("diffusers") is None:
        notes = [line["says"] for line in found if line["kind"] == "note"]
        assert notes == ["not measured: diffusers is not installed here"]


def test_the_probe_runs_without_a_gpu(lines, committed):
    status, found = lines(probe.main)
    kinds = {line["kind"] for line in found}
    assert status == 0 and kinds == {"machine", "ceilings", "gap", "conv", "convs", "operators", "unet"}


def test_tiles_are_tried_in_the_interpreter(lines, committed, monkeypatch):
    monkeypatch.setattr(tune, "TOY", {"toy": shapes.TOY["toy"][1:2]})
    status, found = lines(tune.main)
    (told,) = [line for line in found if line["kind"] == "tile"]
    assert status == 0 and told["problem"][:3] == [64, 8, 8] and told["cudnn"]["median"] > 0


def test_the_whole_command_is_a_dry_run_without_a_gpu(committed):
    words, blind = [sys.executable, "-m", "bench.gpu", "build", "gradient"], {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, env=blind)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left out: it needs a GPU" in done.stdout
    assert "finds no GPU here: a dry run" in done.stdout and "No GPU was found and no GPU figure was made." in done.stdout


def test_a_failing_or_endless_command_is_said_and_fails(tmp_path, monkeypatch):
    (tmp_path / "endless.py").write_text("import time\nprint('measured', flush=True)\ntime.sleep(60)\n")
    (tmp_path / "failing.py").write_text("raise SystemExit(1)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpu, "GRACE", 0.0)
    status, seconds = gpu.carried_out(gpu.Command(("endless",), 3), tmp_path, dry=False)
    assert status == gpu.TIMED_OUT and seconds < 30
    assert gpu.carried_out(gpu.Command(("failing",), 30), tmp_path, dry=False)[0] == 1


def test_a_tool_is_given_its_own_words_and_left_out_without_a_gpu(tmp_path, monkeypatch):
    (tmp_path / "a_tool.py").write_text("import sys\nraise SystemExit(3 if sys.argv[1:] == ['its', 'own'] else 1)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    tool = gpu.Command(("a_tool", "its", "own"), 30, tool=True)
    assert gpu.carried_out(tool, tmp_path, dry=False)[0] == 3
    assert gpu.carried_out(tool, tmp_path, dry=True) == (0, 0.0)


def test_every_part_keeps_to_eight_minutes():
    seconds = {part: sum(command.seconds + gpu.GRACE for command in commands) for part, commands in gpu.PARTS.items()}
    assert set(seconds) == {"probe", "build", "ops", "graph", "gradient", "bench", "peers"} and max(seconds.values()) <= 480


def test_figures_of_a_dry_run_never_reach_the_results(monkeypatch, committed):
    command, _ = run.begin("ops", run.parser("d."), ["--toy"])
    assert command.records.path.parent != run.RESULTS
    command.records.path.unlink()
