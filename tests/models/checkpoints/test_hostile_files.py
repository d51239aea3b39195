"""Files made to do harm: small ones that would fill the memory, tensors of no network, names that command terminals."""

from __future__ import annotations

import json
import pickle
import resource
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from purify_engine.cli import run
from purify_engine.conversion import Stated, convert
from purify_engine.models.checkpoints.reading import opened
from purify_engine.testing.published import diffusers, edm, guided_diffusion, score_sde, trades

FLAGS = guided_diffusion.Flags(image_size=8, num_channels=32, num_res_blocks=1, channel_mult=(1, 2), attention_resolutions=(4,))
STATED = Stated(unet={"image_size": 8, "num_heads": 4}, classifier={"normalisation": "cifar10"})
NETWORKS = {
    "guided-diffusion": lambda: guided_diffusion.state_dict(FLAGS),
    "edm": lambda: edm.state_dict(**edm.SMALL),
    "score_sde": lambda: score_sde.state_dict(**score_sde.SMALL),
    "trades": lambda: trades.wide_resnet(10, 1),
}


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Half a GB more than this process has: whatever wants gigabytes fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (1 << 29), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refusal(path: Path, content: Any) -> str:
    """The one line in which `convert` refuses a file of this content."""
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError) as error:
        convert(path, path.with_suffix(".out"), stated=STATED)
    line = str(error.value)
    assert str(path) in line and "\n" not in line and len(line) < 500
    return line


def test_a_zip_that_would_fill_the_memory_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    with pytest.raises(ValueError, match=r"bomb.pt holds 1,048,576 bytes when unpacked, but torch.save compresses nothing"):
        opened(tmp_path / "bomb.pt")


def test_a_pickle_gets_no_table_of_the_size_that_it_asks_for(tmp_path, little_memory):
    (tmp_path / "memo.pkl").write_bytes(b"\x80\x02}r" + struct.pack("<I", 1 << 27) + b".")  # entry 2^27 of the table
    assert opened(tmp_path / "memo.pkl").content == {}


def test_a_tensor_of_a_pickle_has_nothing_that_is_not_in_the_file(tmp_path):
    """PyTorch would make its storage larger: gigabytes, or what this process forgot."""
    held = torch.storage.TypedStorage(wrap_storage=torch.UntypedStorage(16), dtype=torch.float32, _internal=True)
    for length, fits in ((4, True), (5, False), (1 << 30, False)):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": Called(torch._utils._rebuild_tensor, held, 0, (length,), (1,))}))
        if fits:
            assert opened(tmp_path / "a.pkl").content["a"].shape == (length,)
        else:
            with pytest.raises(ValueError, match=r"a tensor reaches beyond what is stored of it"):
                opened(tmp_path / "a.pkl")


class Called:
    """Pickled as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def laughs() -> Any:
    """Lists in lists, a few hundred bytes in a file and gigabytes in words."""
    held: Any = ["a" * 100]
    for _ in range(7):
        held = [held] * 10
    return held


@pytest.mark.parametrize("meta, said", [
    ({"class_name": laughs()}, "got one under ''"),
    ({"class_name": "EDMPrecond", "state": {"sigma_data": laughs()}}, "got one with sigma_data 'list'"),
])  # fmt: skip
def test_what_is_short_in_a_file_and_endless_in_words_is_not_quoted(tmp_path, little_memory, meta, said):
    persistent = b"\x80\x02ctorch_utils.persistence\n_reconstruct_persistent_obj\n"
    assert said in refusal(tmp_path / "laughs.pkl", persistent + pickle.dumps(meta, 2)[2:-1] + b"\x85R.")


def within_itself() -> Any:
    content: dict[str, Any] = {"ema": {"shadow_params": []}}
    content["model"] = content
    return content


def many_times() -> Any:
    content: Any = [1] * 3000
    for _ in range(2):
        content = [content] * 3000
    return content


@pytest.mark.parametrize("content", [within_itself, many_times])
def test_what_holds_itself_is_not_walked_for_ever(tmp_path, content):
    assert "got a file with nothing" in refusal(tmp_path / "endless.pt", content())


def spread(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros(1).expand(30_000 * len(tensor), 30_000, 3, 3)  # 4 bytes in the file


OTHERS = {
    "spread": spread,
    "empty": lambda tensor: tensor[:0],
    "no dimension": lambda tensor: torch.zeros(()),
    "one dimension": lambda tensor: torch.zeros(4),
    "integers": lambda tensor: tensor.long(),
    "complex": lambda tensor: tensor.cfloat(),
    "8 bits": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "sparse": lambda tensor: tensor.to_sparse(),
    "meta": lambda tensor: tensor.to("meta"),
}
WEIGHTS = {
    "guided-diffusion": ("time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.1.qkv.weight", "out.2.weight"),
    "edm": ("model.enc.8x8_conv.weight", "model.enc.4x4_block0.qkv.bias", "model.map_layer0.weight"),
    "score_sde": ("all_modules.0.weight", "all_modules.2.weight", "all_modules.3.Conv_0.weight"),
    "trades": ("conv1.weight", "block1.layer.0.conv1.weight", "fc.weight"),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_tensors_of_no_network_are_refused_in_one_line(tmp_path, network, little_memory):
    tensors = NETWORKS[network]()
    for name in WEIGHTS[network]:
        for kind, other in OTHERS.items():
            refusal(tmp_path / f"{name} {kind}.pt", {**tensors, name: other(tensors[name])})


def test_names_that_command_the_terminal_are_said_in_letters(tmp_path, capsys):
    tensors = {**diffusers.state_dict(diffusers.SMALL), "class_embedding.\x1b[2J\x9b": torch.zeros(1)}
    torch.save(tensors, tmp_path / "a.pt")
    with pytest.raises(SystemExit) as ended:
        run.main(["convert", str(tmp_path / "a.pt"), str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert ended.value.code == run.USAGE and said.removesuffix("\n").isprintable() and r"\x1b[2J\x9b" in said


@pytest.mark.parametrize("number", [10**9, 10**30])
def test_numbers_of_json_that_would_take_for_ever_are_refused(tmp_path, number):
    diffusers.save(tmp_path / "layers", diffusers.SMALL)
    (tmp_path / "layers" / "config.json").write_text(json.dumps({**diffusers.SMALL, "layers_per_block": number}))
    diffusers.save(tmp_path / "steps", diffusers.SMALL, {**diffusers.SCHEDULER, "num_train_timesteps": number})
    for folder, said in (("layers", "layers_per_block must be 1 to 100"), ("steps", "num_train_timesteps must be 1 to 100000")):
        with pytest.raises(ValueError, match=f"{said}, got {number}"):
            convert(tmp_path / folder, tmp_path / "out")


def test_json_that_is_too_deep_is_refused(tmp_path):
    diffusers.save(tmp_path / "network", diffusers.SMALL)
    (tmp_path / "network" / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config.json must be JSON"):
        opened(tmp_path / "network")


@pytest.mark.parametrize("mean, std", [((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)), ((0.5,) * 3, (float("inf"),) * 3)])
def test_a_normalisation_of_other_images_than_ours_is_refused(tmp_path, mean, std):
    tensors = {f"model.{name}": tensor for name, tensor in trades.wide_resnet(10, 1).items()}
    torch.save({**tensors, "mean": torch.tensor(mean), "std": torch.tensor(std)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"the file's (means must be in \[0, 1\]|deviations must be positive)"):
        convert(tmp_path / "a.pt", tmp_path / "out")
    if mean[0] > 1:
        convert(tmp_path / "a.pt", tmp_path / "out", stated=STATED)  # as the line says
