"""Is a captured graph the loop? Replays against the loop, bit for bit; on a CPU the same code holds its recordings to it.

    python -m bench check-graph [--device cuda]     appends to bench/results/checks-MACHINE.jsonl; exit status 1 if one differs
"""

from __future__ import annotations

import copy
import dataclasses

import torch

from bench.core.comparison import difference
from bench.core.run import Run, begin, parser
from purify_engine.benchmark.networks import GUIDES, NETWORKS, TOY_GUIDE, TOY_NETWORKS, random_purifier
from purify_engine.config import ClipX0, PurifierConfig, Sampler
from purify_engine.engine.guide import AdversarialGuide, Guide, NoGuide, PixelGuide
from purify_engine.engine.loop import Loop
from purify_engine.engine.plan import ReversePlan, make_plan
from purify_engine.engine.process import ReverseProcess
from purify_engine.engine.replay import Replay
from purify_engine.purifier import GuidedPurifier
from purify_engine.types import Images, NoiseKey

BATCH = 4  # a bucket of its own, so that loop and graph compute on the same batch
# Seeds, samplers and lengths of the plans that one capture must serve: another seed, another plan, a longer one, a shorter one.
REPLAYS: tuple[tuple[int, Sampler, int, int], ...] = (
    (0, "ddpm", 100, 4), (1, "ddpm", 100, 4), (2**62 + 3, "ddim", 70, 2), (3, "vp_sde", 36, 7), (4, "ddpm_large", 150, 3),
)  # fmt: skip
CORRECTED: tuple[tuple[Sampler, ClipX0], ...] = (("ddpm_learned", "never"), ("ddpm_learned", "consistent"), ("ddim", "x0_only"))


def main(words: list[str]) -> int:
    """One capture serves five (seed, plan) pairs; each equals the loop to the bit."""
    options = parser("check-graph", __doc__)
    options.add_argument("--shard", default="0/1", help="which share of the checks, K/N")
    run, chosen = begin("checks", options, words)
    number, of = map(int, chosen.shard.split("/"))
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    checks = [
        (f"{name}, {kind} guide, {'whole plan' if whole_plan else 'step'}", purifier, guide, whole_plan)
        for name, purifier in subjects(run)
        for kind, guide in guides(purifier).items()
        for whole_plan in (False, True)
    ]
    for label, purifier, guide, whole_plan in checks[number::of]:
        if run.seconds_left < 0:
            run.check(f"graph {label}", False, "no time left")
            continue
        says = graph_fault(purifier, guide, run.device, whole_plan=whole_plan)
        run.check(f"graph {label}", not says, says or f"{len(REPLAYS)} replays equal the loop bit for bit")
    if number:
        return run.close()
    check_corrections(run)
    if run.device.type == "cuda":
        check_door(run)
    else:
        run.note("graph", "no GPU: what was captured are recordings on the CPU; no CUDA graph was recorded")
    return run.close()


def subjects(run: Run) -> list[tuple[str, GuidedPurifier]]:
    """Small networks of the three families in both precisions, and the CIFAR-10 network as it is used; in a dry run one."""
    purifiers = []
    for name, network in list(TOY_NETWORKS.items())[: 1 if run.toy else None]:
        purifier = random_purifier(network, TOY_GUIDE, device=run.device, execution="loop")
        purifiers.append((f"{name} float32", purifier))
        if run.device.type == "cuda":
            purifiers.append((f"{name} bfloat16", low_precision(copy.deepcopy(purifier))))
    if not run.toy:
        large = random_purifier(NETWORKS["ddpm-cifar10"], GUIDES["resnet18"], device=run.device, execution="loop")
        purifiers.append(("ddpm-cifar10 bfloat16", low_precision(large)))
    return purifiers


def low_precision(purifier: GuidedPurifier) -> GuidedPurifier:
    """As a GPU runs it: bfloat16, channels_last."""
    return purifier.to(torch.bfloat16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def guides(purifier: GuidedPurifier) -> dict[str, Guide]:
    """Every kind of guidance on the purifier's networks."""
    assert purifier.guide is not None
    at_noise, at_start = (dataclasses.replace(purifier.config.guidance, look_at=where) for where in ("xt", "x0"))
    adversarial = {"xt": AdversarialGuide(purifier.guide, at_noise), "x0": AdversarialGuide(purifier.guide, at_start)}
    return {**adversarial, "pixel": PixelGuide(), "no": NoGuide()}


@torch.no_grad()
def graph_fault(purifier: GuidedPurifier, guide: Guide, device: torch.device, *, whole_plan: bool) -> str:
    """What differs between replays and the loop; nothing if they agree to the bit."""
    replay = Replay(whole_plan=whole_plan)
    network = purifier.denoiser.unet.config
    shape = BATCH, network.in_channels, network.image_size, network.image_size
    x = 2 * torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device) - 1
    for seed, sampler, t_star, num_steps in REPLAYS:
        plan = plan_for(purifier, sampler, t_star, num_steps)
        noise = NoiseKey(torch.tensor(seed, device=device), torch.arange(BATCH, device=device))
        if fault := replay_fault(replay, ReverseProcess(plan, purifier.denoiser, guide, noise), x):
            return f"seed {seed}, {plan}: {fault}"
    return ""


def replay_fault(replay: Replay, process: ReverseProcess, x: Images) -> str:
    """What differs between one replay and the loop."""
    looped = Loop().run(process, x)
    replayed = [replay.run(process, x) for _ in range(3)][-1]  # on a CPU the second is recorded
    return difference(replayed, looped) if looped.isfinite().all() else "the loop itself is not finite"


def plan_for(
    purifier: GuidedPurifier, sampler: Sampler, t_star: int, num_steps: int, clip_x0: ClipX0 = "never"
) -> ReversePlan:
    """A plan on the purifier's device, for its networks' precision."""
    parameter = next(purifier.denoiser.parameters())
    guidance = purifier.config.guidance
    config = PurifierConfig(t_star=t_star, num_steps=num_steps, sampler=sampler, eta=0.5, guidance=guidance, clip_x0=clip_x0)
    return make_plan(config).to(parameter.device, None if parameter.dtype == torch.float32 else parameter.dtype)


@torch.no_grad()
def check_corrections(run: Run) -> None:
    """Learned variance and clipped estimates, one after another by one `Replay`, on the small network that has a variance."""
    purifier = random_purifier(TOY_NETWORKS["toy-adm"], TOY_GUIDE, device=run.device, execution="loop")
    assert purifier.guide is not None
    replay, guide = Replay(), AdversarialGuide(purifier.guide, dataclasses.replace(purifier.config.guidance, look_at="x0"))
    x = 2 * torch.rand(BATCH, 3, 8, 8, generator=torch.Generator().manual_seed(2)).to(run.device) - 1
    noise = NoiseKey(torch.tensor(5, device=run.device), torch.arange(BATCH, device=run.device))
    for sampler, clip_x0 in CORRECTED:
        plan = plan_for(purifier, sampler, 100, 4, clip_x0)
        fault = replay_fault(replay, ReverseProcess(plan, purifier.denoiser, guide, noise), x)
        run.check(f"graph toy-adm float32, {sampler}, clip_x0 {clip_x0}", not fault, fault or "the same to the bit")


@torch.no_grad()
def check_door(run: Run) -> None:
    """GuidedPurifier with execution="graph" against "loop": a full bucket, and one that is padded by its first image."""
    looped = low_precision(random_purifier(TOY_NETWORKS["toy-ddpm"], TOY_GUIDE, device=run.device, execution="loop"))
    replayed = GuidedPurifier(looped.denoiser, looped.guide, looped.config, execution="graph").to(run.device)
    bucket = 2 * BATCH
    images = torch.rand(bucket, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(run.device)
    for batch in (bucket, BATCH + 1):
        ids = torch.arange(bucket, device=run.device)
        images[batch:], ids[batch:] = images[0], ids[0]
        expected, got = looped(images, ids=ids)[:batch], replayed(images[:batch], ids=ids[:batch])
        fault = difference(got, expected)
        label = f"purifier, graph against loop, batch {batch} in a bucket of {bucket}"
        run.check(label, not fault, fault or "the same to the bit")
    if run.device.type != "cuda":
        return  # a recording owns what it writes to
    give_memory_to_others(run.device)
    fault = difference(replayed(images, ids=ids), looped(images, ids=ids))
    run.check("purifier, graph after others took all free memory", not fault, fault or "the same to the bit")


def give_memory_to_others(device: torch.device) -> None:
    """What torch.compile does before it records: cuBLAS gives its workspaces back, and free memory holds other things."""
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    taken = [torch.full((2**size,), torch.nan, device=device) for size in range(8, 26) for _ in range(4)]
    torch.cuda.synchronize(device)
    del taken
