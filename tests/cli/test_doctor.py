import dataclasses
import json

import pytest
import torch

from purify_engine.cli import doctor
from purify_engine.cli.doctor import disagreement
from purify_engine.ops import OPS, Launcher, Op
from purify_engine.testing.cases import cases


def test_a_sound_installation_is_healthy(command):
    code, out, err = command("doctor", "--json")
    result = json.loads(out)
    assert code == 0 and result["healthy"], [finding for finding in result["findings"] if finding["ok"] is False]
    assert {f"op {name}" for name in OPS} <= {finding["name"] for finding in result["findings"]}
    assert {"extension", "purifier", "noise", "gradient"} <= {finding["name"] for finding in result["findings"]}


@pytest.mark.parametrize("name", ["guided_step", "philox"])
def test_an_op_that_is_slightly_wrong_is_found(name):
    sound, case = OPS[name], next(case for case in cases(name) if 0 not in case.shape and case.dtype == torch.float32)

    def broken(*args, **kwargs):
        result = sound.reference(*args, **kwargs)
        return (result[0] * 1.00001, result[1]) if isinstance(result, tuple) else result + 1

    assert disagreement(sound, case) == ""
    assert disagreement(Op(name, {**sound.engines, "cpp": Launcher(broken)}, sound.check), case) != ""


def test_an_op_that_does_without_a_kernel_is_no_fault_and_one_whose_kernels_are_missing_is(monkeypatch):
    verdicts = {finding.name: finding.ok for finding in doctor.gpu_findings()}
    assert verdicts["guided_step"] and verdicts["relu_conv3x3"] is None and verdicts["conv3x3_backward"] is None
    absent = {**OPS["guided_step"].engines, "triton": "Triton is not installed; get it", "cuda": "_cuda is not built; build it"}
    monkeypatch.setitem(OPS, "guided_step", dataclasses.replace(OPS["guided_step"], engines=absent))
    assert {finding.name: finding.ok for finding in doctor.gpu_findings()}["guided_step"] is False


def test_what_is_missing_for_a_gpu_is_said_plainly(command, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, out, _ = command("doctor", "--gpu")
    assert code == 4 and "PyTorch finds no GPU on this machine" in out and "kernels" in out


def test_embedded_purifiers_are_listed_with_their_presets_and_a_damaged_one_is_found(small_purifier, tmp_path, monkeypatch):
    import json
    import shutil

    from purify_engine import presets
    from purify_engine.cli.doctor import embedded_findings
    from purify_engine.models.checkpoints.network import sha256

    folder = tmp_path / "toy"
    shutil.copytree(small_purifier, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"presets": {"fast": {"num_steps": 1}, "slow": {}}, "weights": {"unet": sha256(folder / "unet.safetensors")}}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(presets, "EMBEDDED", tmp_path)
    (finding,) = embedded_findings()
    assert finding.name == "embedded toy" and finding.ok is True
    assert finding.says == "images of 8x8 (exact for others), presets: fast, slow"
    with (folder / "unet.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\1")
    (finding,) = embedded_findings()
    assert finding.ok is False and "unet.safetensors is not the file that was packed" in finding.says
    config["presets"] = {"fast": {"num_steps": 99}}
    (folder / "config.json").write_text(json.dumps(config))
    (finding,) = embedded_findings()
    assert finding.ok is False and "presets.fast of" in finding.says
