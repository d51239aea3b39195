"""Every bound of every field: what lies on it, what lies just beyond, and what an error says."""

from typing import Literal

import numpy as np
import pytest

from purify_engine.config import (
    Assembly,
    AttackConfig,
    ClassifierConfig,
    ClassifierTraining,
    DemoConfig,
    DiffusionTraining,
    EvaluationConfig,
    GuidanceConfig,
    Perturbation,
    PurifierConfig,
    ScheduleConfig,
    TradesTraining,
    Training,
    UNetConfig,
    one_of,
    require,
)

NAMED = {"name": "a"}
NEXT_TO_ONE = 1 - 1e-9

# (class, field, allowed values, refused values, the range as the error says it, what else must be given)
BOUNDS = [
    (ScheduleConfig, "kind", ["linear", "cosine", "scaled_linear", "sigmoid"], ["square"],
     "one of linear, cosine, scaled_linear, sigmoid", {}),
    (ScheduleConfig, "num_timesteps", [1, 1000], [0, -1], "at least 1", {}),
    (ScheduleConfig, "beta_start", [1e-9, 2e-2], [0.0, -1e-9, 0.0201], "in (0, beta_end=0.02]", {}),
    (GuidanceConfig, "kind", ["none", "adversarial", "pixel"], ["magic"], "one of none, adversarial, pixel", {}),
    (GuidanceConfig, "form", ["score", "mean"], ["sum"], "one of score, mean", {}),
    (GuidanceConfig, "pseudo_label", ["pseudo", "none", "soft"], ["hard"], "one of pseudo, none, soft", {}),
    (GuidanceConfig, "look_at", ["xt", "x0"], ["x1"], "one of xt, x0", {}),
    (GuidanceConfig, "growth", ["constant", "noise"], ["linear"], "one of constant, noise", {}),
    (GuidanceConfig, "growth", ["constant"], ["noise"], "constant for a normalised pull, whose length is s",
     {"normalised": True}),
    (GuidanceConfig, "scale", [0, 1e9], [-1e-9], "at least 0", {}),
    (GuidanceConfig, "norm_eps", [1e-30], [0.0, -1.0], "positive", {}),
    (GuidanceConfig, "label_weight", [0, 2.5], [-1e-9], "at least 0", {}),
    (GuidanceConfig, "latent_weight", [0, 2.5], [-1e-9], "at least 0", {}),
    (PurifierConfig, "sampler", ["ddpm", "ddpm_large", "ddpm_learned", "ddim", "vp_sde"], ["heun"],
     "one of ddpm, ddpm_large, ddpm_learned, ddim, vp_sde", {}),
    (PurifierConfig, "clip_x0", ["never", "consistent"], ["always"], "one of never, consistent, x0_only", {}),
    (PurifierConfig, "clip_x0", ["x0_only"], [], "", {"sampler": "ddim"}),
    (PurifierConfig, "clip_x0", ["consistent"], ["x0_only"], "'never' or 'consistent' unless sampler='ddim'", {}),
    (PurifierConfig, "noise", ["fresh", "fixed", "torch"], ["none"], "one of fresh, fixed, torch", {}),
    (PurifierConfig, "gradient", ["exact", "blind"], ["none"], "one of exact, surrogate, bpda, blind, straight_through, "
     "detached_guidance", {}),
    (PurifierConfig, "t_star", [1, 50], [0, 51], "in [1, 50]", {"schedule": ScheduleConfig(num_timesteps=50)}),
    (PurifierConfig, "num_steps", [None, 1, 20], [0, 21], "in [1, t_star=20]", {"t_star": 20}),
    (PurifierConfig, "num_steps", [None, 1, 3], [0, 4], "in [1, least of cycle_t_stars=3]",
     {"t_star": 9, "cycles": 2, "cycle_t_stars": (9, 3)}),
    (PurifierConfig, "num_steps", [None, 2], [1, 3], "None or 2, as many as timesteps", {"t_star": 9, "timesteps": (8, 3)}),
    (PurifierConfig, "timesteps", [(8,), (8, 0), (8, 7, 3)], [(), (7, 3), (9, 3), (8, 8), (8, 3, 4), (8, -1)],
     "integers falling strictly from t_star - 1 = 8", {"t_star": 9}),
    (PurifierConfig, "timesteps", [(8, 3)], [(8.0, 3.5), 8, ("8",)], "a tuple of integers, or None", {"t_star": 9}),
    (PurifierConfig, "timesteps", [None], [(8, 3)], "None where cycle_t_stars is given", {"t_star": 9, "cycle_t_stars": (9,)}),
    (PurifierConfig, "landings", [(3, -1), (7, 2), (-1, -1)], [(8, -1), (3, 3), (3, -2)], "in [-1, timestep) for each timestep",
     {"t_star": 9, "timesteps": (8, 3)}),
    (PurifierConfig, "landings", [None], [(3,), (3, 2, -1), ()], "2 numbers, one a timestep", {"t_star": 9, "timesteps": (8, 3)}),
    (PurifierConfig, "landings", [None], [(-1,)], "None where timesteps is None", {}),
    (PurifierConfig, "cycle_t_stars", [(9, 1), (4, 9)], [(9,), (9, 9, 9), ()], "2 numbers, one a cycle (cycles)",
     {"t_star": 9, "cycles": 2}),
    (PurifierConfig, "cycle_t_stars", [(9, 1)], [(9, 0), (-1, 9)], "in [1, t_star=9]", {"t_star": 9, "cycles": 2}),
    (PurifierConfig, "t_star", [9], [8, 10], "the largest of cycle_t_stars, 9", {"cycles": 2, "cycle_t_stars": (2, 9)}),
    (PurifierConfig, "time_labels", ["index", "diffpure"], ["score"], "one of index, diffpure", {"sampler": "vp_sde"}),
    (PurifierConfig, "time_labels", ["index"], ["diffpure"], "index, but for sampler='vp_sde'", {}),
    (PurifierConfig, "last_noise", [False, True], [], "", {"sampler": "ddpm_large"}),
    (PurifierConfig, "last_noise", [False], [True], "false, but for sampler='ddpm_large'", {}),
    (PurifierConfig, "sampler", ["ddpm", "ddpm_large", "ddim"], ["vp_sde"], "other than vp_sde unless the schedule is linear",
     {"schedule": ScheduleConfig(kind="cosine")}),
    (PurifierConfig, "eta", [0, 1], [-1e-9, 1 + 1e-9], "in [0, 1]", {}),
    (PurifierConfig, "cycles", [1, 9], [0], "at least 1", {}),
    (PurifierConfig, "surrogate_steps", [1, 9], [0], "at least 1", {}),
    (PurifierConfig, "sizes", ["exact", "native", "resize", "tile"], ["pad"], "one of exact, native, resize, tile", {}),
    (PurifierConfig, "tile_stride", [None, 1, 9], [0], "at least 1, or None", {}),
    (PurifierConfig, "seed", [0, 2**63 - 1, np.int64(7)], [-1, 2**63, 1.5], "in [0, 2**63), an integer, or None", {}),
    (UNetConfig, "image_size", [8, 16], [0], "at least 1", {}),
    (UNetConfig, "image_size", [8, 24], [4, 12, 33], "a multiple of 8 for this channel_mult", {}),
    (UNetConfig, "in_channels", [1, 4], [0], "at least 1", {}),
    (UNetConfig, "base_channels", [4, 128], [0, -4, 6], "a positive multiple of 4", {}),
    (UNetConfig, "channel_mult", [(1,), (1, 3)], [(), (1, 0)], "positive integers", {}),
    (UNetConfig, "num_res_blocks", [1, 3], [0], "at least 1", {}),
    (UNetConfig, "time_embedding", ["additive", "scale_shift"], ["none"], "one of additive, scale_shift", {}),
    (UNetConfig, "resample", ["conv", "pool", "residual"], ["none"], "one of conv, pool, residual", {}),
    (UNetConfig, "downsample_padding", ["symmetric", "asymmetric"], ["none"], "one of symmetric, asymmetric", {}),
    (UNetConfig, "decoder_attention", ["every_block", "last_block"], ["none"], "one of every_block, last_block", {}),
    (UNetConfig, "sinusoid", ["sin_first", "cos_first"], ["none"], "one of sin_first, cos_first", {}),
    (UNetConfig, "prediction", ["eps", "x0", "v", "edm"], ["score"], "one of eps, x0, v, edm", {}),
    (UNetConfig, "dropout", [0, NEXT_TO_ONE], [-1e-9, 1.0], "in [0, 1)", {}),
    (ClassifierConfig, "architecture", ["resnet", "preact_resnet", "imagenet_resnet"], ["vgg"],
     "one of resnet, cifar_resnet, wide_resnet, preact_resnet, imagenet_resnet", {}),
    (ClassifierConfig, "activation", ["relu", "silu"], ["elu"], "one of relu, silu", {}),
    (ClassifierConfig, "depth", [10, 14, 18, 26, 34, 50, 101, 152], [0, 11, 28],
     "10, 14, 18, 26, 34, 50, 101 or 152 for resnet", {}),
    (ClassifierConfig, "depth", [18, 50], [20, 28], "10, 14, 18, 26, 34, 50, 101 or 152 for preact_resnet",
     {"architecture": "preact_resnet"}),
    (ClassifierConfig, "bottleneck_factor", [1, 2], [0], "at least 1", {"depth": 50}),
    (ClassifierConfig, "bottleneck_factor", [1], [0, 2], "1 for resnet of depth 18", {}),
    (ClassifierConfig, "downsample_padding", ["symmetric", "asymmetric"], ["same"], "one of symmetric, asymmetric",
     {"architecture": "wide_resnet", "depth": 10}),
    (ClassifierConfig, "downsample_padding", ["symmetric"], ["asymmetric"], "symmetric for resnet", {}),
    (ClassifierConfig, "shortcut_reads", ["activated", "input"], ["output"], "one of activated, input",
     {"architecture": "preact_resnet"}),
    (ClassifierConfig, "shortcut_reads", ["activated"], ["input"], "activated for wide_resnet",
     {"architecture": "wide_resnet", "depth": 10}),
    (ClassifierConfig, "shortcut_kernel", [1, 3], [2], "1 or 3 for preact_resnet", {"architecture": "preact_resnet"}),
    (ClassifierConfig, "shortcut_kernel", [1], [3], "1 for resnet", {}),
    (ClassifierConfig, "final_norm", [True, False], [], "", {"architecture": "preact_resnet"}),
    (ClassifierConfig, "final_norm", [True], [False], "True for resnet", {}),
    (ClassifierConfig, "depth", [8, 14, 20], [2, 9, 21], "6n + 2 for n of at least 1 for cifar_resnet",
     {"architecture": "cifar_resnet"}),
    (ClassifierConfig, "depth", [10, 16, 28], [4, 11, 27], "6n + 4 for n of at least 1 for wide_resnet",
     {"architecture": "wide_resnet"}),
    (ClassifierConfig, "width", [1, 64], [0], "at least 1", {}),
    (ClassifierConfig, "num_classes", [2, 1000], [1], "at least 2", {}),
    (ClassifierConfig, "mean", [(0.1, 0.2, 0.3)], [(0.1,), (0.1,) * 4], "3 numbers", {}),
    (ClassifierConfig, "std", [(0.1, 0.2, 0.3)], [(0.1,), (0.1,) * 4], "3 numbers", {}),
    (AttackConfig, "kind", ["none", "pgd", "apgd"], ["magic"],
     "one of none, pgd, apgd, diffhammer, low_frequency, square, spsa, stadv, autoattack", NAMED),
    (AttackConfig, "norm", ["linf", "l2"], ["l1"], "one of linf, l2, spatial", NAMED),
    (AttackConfig, "norm", ["linf", "l2"], ["spatial"], "one of linf, l2 for kind='pgd'", NAMED),
    (AttackConfig, "norm", ["linf"], ["l2", "spatial"], "one of linf for kind='square'", {**NAMED, "kind": "square"}),
    (AttackConfig, "norm", ["spatial"], ["linf", "l2"], "one of spatial for kind='stadv'", {**NAMED, "kind": "stadv"}),
    (AttackConfig, "norm", ["linf", "l2", "spatial"], ["l0"], "one of linf, l2, spatial", {**NAMED, "kind": "none"}),
    (AttackConfig, "loss", ["dlr", "joint"], ["mse"], "one of cross_entropy, margin, dlr, joint, features", NAMED),
    (AttackConfig, "start", ["clean", "random", "preview"], ["best"], "one of clean, random, guide, guide_worst, preview", NAMED),
    (AttackConfig, "surface", ["defence", "others"], ["input"], "one of defence, guide, others", NAMED),
    (AttackConfig, "gradient", ["exact", "ddim"], ["magic"], "one of exact, surrogate, bpda, blind, straight_through, "
     "detached_guidance, preview, ddim", NAMED),
    (AttackConfig, "epsilon", [0, 1], [-1e-9], "at least 0", NAMED),
    (AttackConfig, "step_size", [None, 1e-9], [0.0, -1.0], "positive or None", NAMED),
    (AttackConfig, "num_steps", [1, 4096], [0, 4097], "in [1, 4096]", NAMED),
    (AttackConfig, "num_eot", [1, 256], [0, 257], "in [1, 256]", NAMED),
    (AttackConfig, "seed", [0, 511], [-1, 512], "in [0, 512)", NAMED),
    *((EvaluationConfig, name, [0, 1.5], [-1e-9], "at least 0", {}) for name in ("epsilon", "epsilon_l2", "max_shift")),
    *((EvaluationConfig, name, [1, 50], [0], "at least 1", {}) for name in ("num_steps", "num_eot", "num_queries", "num_draws")),
    (EvaluationConfig, "fresh_draws", [0, 4096], [-1, 4097], "in [0, 4096]", {}),
    (EvaluationConfig, "fresh_seeds", [1, 64], [0, 65], "in [1, 64]", {}),
    (EvaluationConfig, "batch_size", [None, 1, 512], [0], "at least 1 or None", {}),
    *((cls, "confidence", [1e-9, NEXT_TO_ONE], [0, 1], "in (0, 1)", {}) for cls in (EvaluationConfig, DemoConfig)),
    (DemoConfig, "epsilon", [0, 1], [-1e-9], "at least 0", {}),
    *(
        (DemoConfig, name, [1, 50], [0], "at least 1", {})
        for name in ("transfer_steps", "num_adaptive", "adaptive_steps", "num_eot", "num_draws", "num_exhibits")
    ),
    *((Assembly, name, [None, 1, 70], [0, -1], "at least 1, or None", {}) for name in ("t_star", "num_steps")),
    *((Assembly, name, [0, 1.5], [-1e-9], "at least 0", {"label_weight": 1.0}) for name in ("ratio", "latent_weight")),
    (Assembly, "label_weight", [1e-9], [0], "positive where latent_weight is 0", {"latent_weight": 0.0}),
    (Assembly, "pseudo_label", [None, "soft"], ["none"], "pseudo or soft where label_weight is positive", {"label_weight": 1.0}),
    (Assembly, "label_weight", [0], [-1e-9], "at least 0", {"latent_weight": 1.0}),
    (Assembly, "sizes", ["exact", "native", "resize", "tile"], ["pad"], "one of exact, native, resize, tile", {}),
    (Assembly, "calibration_images", [1, 256], [0], "at least 1", {}),
    (Perturbation, "norm", ["linf", "l2"], ["l1"], "one of linf, l2", {}),
    (Perturbation, "epsilon", [0, 1], [-1e-9], "at least 0", {}),
    (Perturbation, "step_size", [1e-9], [0, -1], "positive", {}),
    (Perturbation, "num_steps", [1, 9], [0], "at least 1", {}),
    *((Training, name, [1, 9], [0], "at least 1", {}) for name in ("steps", "batch_size", "report_every", "checkpoint_every")),
    (Training, "learning_rate", [1e-9], [0, -1], "positive", {}),
    (Training, "weight_decay", [0, 1], [-1e-9], "at least 0", {}),
    (Training, "shift", [0, 4], [-1], "at least 0", {}),
    (Training, "accumulate", [1, 128], [0, 129], "in [1, 128], the images of a batch", {}),
    (Training, "precision", ["auto", "float32", "bf16"], ["fp16"], "one of auto, float32, bf16", {}),
    (Training, "decay", ["cosine", "linear", "step"], ["sudden"], "one of cosine, linear, step", {}),
    (Training, "hold", [0, NEXT_TO_ONE], [-1e-9, 1], "in [0, 1)", {}),
    (Training, "hold", [0], [0.5], "0 where decay is step, whose drop_at says when", {"decay": "step"}),
    (Training, "other_ema_decays", [(), (0.5, 0), (NEXT_TO_ONE,)], [(0.5, 1)], "each in [0, 1)", {}),
    (Training, "other_ema_decays", [(0.5,)], [(0.5, 0.9)], "different, and none of them 0.9, the ema_decay", {"ema_decay": 0.9}),
    (Training, "seed", [0, 2**63 - 1], [-1, 2**63], "in [0, 2**63)", {}),
    (DiffusionTraining, "t_max", [None, 1, 50], [0, 51], "in [1, 50]", {"schedule": ScheduleConfig(num_timesteps=50)}),
    (DiffusionTraining, "warmup_steps", [0, 9], [-1], "at least 0", {}),
    (DiffusionTraining, "gradient_clip", [1e-9], [0, -1], "positive", {}),
    (DiffusionTraining, "ema_decay", [None, 0, NEXT_TO_ONE], [-1e-9, 1], "in [0, 1), or None", {}),
    *((cls, "momentum", [0, NEXT_TO_ONE], [-1e-9, 1], "in [0, 1)", {}) for cls in (ClassifierTraining, TradesTraining)),
    *((cls, "steps", [1], [0], "at least 1", {}) for cls in (DiffusionTraining, ClassifierTraining, TradesTraining)),
    (TradesTraining, "trade_off", [0, 6], [-1e-9], "at least 0", {}),
    (TradesTraining, "drop_at", [0, 1], [-1e-9, 1 + 1e-9], "in [0, 1]", {}),
    (TradesTraining, "t_star", [0, 50], [-1, 51], "in [0, 50]", {"schedule": ScheduleConfig(num_timesteps=50)}),
    (TradesTraining, "clean_share", [0, 1], [-1e-9, 1 + 1e-9], "in [0, 1]", {}),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "field", "allowed", "refused", "said", "beside"), BOUNDS)
def test_a_field_takes_what_lies_in_its_range_and_nothing_else(cls, field, allowed, refused, said, beside):
    for value in allowed:
        assert getattr(cls(**{**beside, field: value}), field) == value
    for value in refused:
        with pytest.raises(ValueError) as wrong:
            cls(**{**beside, field: value})
        assert str(wrong.value) == f"{field} must be {said}, got {value!r}"


def test_the_last_beta_is_below_one_and_may_be_the_first():
    assert ScheduleConfig(beta_start=0.5, beta_end=0.5).beta_end == 0.5
    with pytest.raises(ValueError, match=r"^beta_start must be in \(0, beta_end=1\], got 0.5$"):
        ScheduleConfig(beta_start=0.5, beta_end=1)


def test_a_check_says_argument_range_and_value():
    require(True, "size", "odd", 4)
    with pytest.raises(ValueError, match="^size must be odd, got '4'$"):
        require(False, "size", "odd", "4")
    one_of("digit", 2, Literal[1, 2])
    with pytest.raises(ValueError, match="^digit must be one of 1, 2, got 3$"):
        one_of("digit", 3, Literal[1, 2])
