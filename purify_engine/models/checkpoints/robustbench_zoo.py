"""What RobustBench's zoo says of its models and their weights do not: by the file's name, `NAME.pt` as RobustBench stores it.

Read off robustbench/model_zoo/cifar10.py, cifar100.py and imagenet.py at 78fcc9e. A name alone is not enough, since the same
name stands for several networks: it counts together with the layout and the number of classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from purify_engine.models.checkpoints.layout import Told
from purify_engine.models.checkpoints.normalisation import NORMALISATIONS, Normalisation


class Group(NamedTuple):
    """Models that share a layout, a number of classes and a normalisation; None: their file holds it."""

    layout: str
    classes: int
    normalisation: Normalisation | None
    names: str
    fields: dict[str, Any] = {"activation": "relu"}


_NONE, _HALF, _CIFAR10, _CIFAR100, _IMAGENET = NORMALISATIONS.values()
_ENGSTROM = Normalisation(_CIFAR10.mean, (0.2023, 0.1994, 0.2010))
_RONY = Normalisation((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))
_AUGUSTIN = Normalisation(
    (0.4913997551666284, 0.48215855929893703, 0.4465309133731618), (0.24703225141799082, 0.24348516474564, 0.26158783926049628)
)
_CHEN_100 = Normalisation((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
_EXACT_100 = Normalisation(
    (0.5070751592371323, 0.48654887331495095, 0.4409178433670343), (0.2673342858792401, 0.2564384629170883, 0.27615047132568404)
)

GROUPS = (
    Group("trades", 10, _NONE, """
        Carmon2019Unlabeled Sehwag2020Hydra Wang2020Improving Zhang2019Theoretically Huang2020Self Zhang2019You Zhang2020Attacks
        Wu2020Adversarial_extra Wu2020Adversarial Sehwag2021Proxy Sehwag2021Proxy_R18 Sitawarin2020Improving
        Cui2020Learnable_34_20 Cui2020Learnable_34_10 Zhang2020Geometry Sridhar2021Robust Sridhar2021Robust_34_15
        Addepalli2021Towards_RN18 Addepalli2021Towards_WRN34 Chen2021LTD_WRN34_10 Chen2021LTD_WRN34_20 Standard
        Jia2022LAS-AT_34_10 Jia2022LAS-AT_70_16 Addepalli2022Efficient_RN18 Addepalli2022Efficient_WRN_34_10
        Cui2023Decoupled_WRN-34-10 Chen2024Data_WRN_34_10 Chen2024Data_WRN_34_20"""),
    Group("trades", 100, _NONE, """
        Cui2020Learnable_34_20_LBGAT6 Cui2020Learnable_34_10_LBGAT0 Cui2020Learnable_34_10_LBGAT6
        Cui2020Learnable_34_10_LBGAT9_eps_8_255 Sehwag2021Proxy Sitawarin2020Improving Addepalli2021Towards_WRN34
        Chen2021LTD_WRN34_10 Jia2022LAS-AT_34_10 Jia2022LAS-AT_34_20 Addepalli2022Efficient_RN18
        Addepalli2022Efficient_WRN_34_10 Cui2023Decoupled_WRN-34-10 Cui2023Decoupled_WRN-34-10_autoaug Chen2024Data_WRN_34_10"""),
    Group("trades", 10, _HALF, "Hendrycks2019Using Hendrycks2020AugMix_WRN"),
    Group("trades", 100, _HALF, "Hendrycks2019Using Hendrycks2020AugMix_WRN"),
    Group("trades", 10, _CIFAR10, "Rice2020Overfitting Chen2020Efficient"),
    Group("trades", 100, _CHEN_100, "Chen2020Efficient"),
    Group("trades", 100, _EXACT_100, "Wu2020Adversarial"),
    Group("trades", 10, _ENGSTROM, "Engstrom2019Robustness"),
    Group("trades", 10, _RONY, "Rony2019Decoupling"),
    Group("trades", 10, _AUGUSTIN, """
        Augustin2020Adversarial Augustin2020Adversarial_34_10 Augustin2020Adversarial_34_10_extra"""),
    Group("trades", 10, None, "Modas2021PRIMEResNet18"),
    Group("trades", 100, None, "Modas2021PRIMEResNet18"),
    Group("preact_resnet", 10, _NONE, "Andriushchenko2020Understanding", {"activation": "relu", "shortcut_reads": "input"}),
    Group("preact_resnet", 10, _CIFAR10, "Wong2020Fast", {"activation": "relu", "shortcut_reads": "input"}),
    Group("preact_resnet", 10, _CIFAR10, """
        Rice2020Overfitting Kireev2021Effectiveness_Gauss50percent Kireev2021Effectiveness_AugMixNoJSD
        Kireev2021Effectiveness_RLAT Kireev2021Effectiveness_RLATAugMixNoJSD Kireev2021Effectiveness_RLATAugMix""",
        {"activation": "relu", "shortcut_reads": "activated"}),
    Group("preact_resnet", 100, _EXACT_100, "Rice2020Overfitting", {"activation": "relu", "shortcut_reads": "activated"}),
    Group("preact_resnet", 100, _NONE, "Addepalli2021Towards_PARN18", {"activation": "relu", "shortcut_reads": "activated"}),
    Group("robustbench", 10, _CIFAR10, """
        Gowal2020Uncovering Gowal2020Uncovering_extra Gowal2020Uncovering_70_16 Gowal2020Uncovering_70_16_extra
        Gowal2020Uncovering_34_20 Gowal2020Uncovering_28_10_extra Rebuffi2021Fixing_28_10_cutmix_ddpm
        Rebuffi2021Fixing_106_16_cutmix_ddpm Rebuffi2021Fixing_70_16_cutmix_ddpm Rebuffi2021Fixing_70_16_cutmix_extra
        Rebuffi2021Fixing_70_16_cutmix_extra_Linf Rebuffi2021Fixing_70_16_cutmix_extra_L2 Rebuffi2021Fixing_R18_ddpm
        Rebuffi2021Fixing_R18_cutmix_ddpm Rade2021Helper_R18_extra Rade2021Helper_R18_ddpm Rade2021Helper_extra
        Rade2021Helper_ddpm Gowal2021Improving_70_16_ddpm_100m Gowal2021Improving_28_10_ddpm_100m
        Gowal2021Improving_R18_ddpm_100m Pang2022Robustness_WRN28_10 Pang2022Robustness_WRN70_16 Wang2023Better_WRN-28-10
        Wang2023Better_WRN-70-16 Xu2023Exploring_WRN-28-10 Cui2023Decoupled_WRN-28-10 Bartoldson2024Adversarial_WRN-94-16
        Bartoldson2024Adversarial_WRN-82-8""", {"activation": "silu"}),
    Group("robustbench", 100, _CIFAR100, """
        Gowal2020Uncovering Gowal2020Uncovering_extra Gowal2020Uncovering_Linf Gowal2020Uncovering_extra_Linf
        Rebuffi2021Fixing_70_16_cutmix_ddpm Rebuffi2021Fixing_28_10_cutmix_ddpm Rebuffi2021Fixing_R18_ddpm Rade2021Helper_R18_ddpm
        Pang2022Robustness_WRN28_10 Pang2022Robustness_WRN70_16 Wang2023Better_WRN-28-10 Wang2023Better_WRN-70-16
        Cui2023Decoupled_WRN-28-10""", {"activation": "silu"}),
    Group("torchvision", 1000, _IMAGENET, """
        Wong2020Fast Engstrom2019Robustness Salman2020Do_R50 Salman2020Do_R18 Salman2020Do_50_2 Salman2020Do_50_2_Linf
        Standard_R50 Erichson2022NoisyMix Erichson2022NoisyMix_new Geirhos2018_SIN Geirhos2018_SIN_IN Geirhos2018_SIN_IN_IN
        Hendrycks2020Many Hendrycks2020AugMix"""),
    Group("torchvision", 1000, _NONE, "Chen2024Data_WRN_50_2"),
)  # fmt: skip

REFUSED = {"Ding2020MMA": "each image is normalised by its own mean and deviation, which a Classifier cannot do"}

MODELS = {(group.layout, group.classes, name): group for group in GROUPS for name in group.names.split()}


def told(layout: str, name: str, classes: int) -> list[Told]:
    """What the zoo says of a file called `name` (without its ending); nothing where it has no such model.

    ValueError, in one line, where it has one that we cannot run.
    """
    if name in REFUSED:
        raise ValueError(f"{name} of RobustBench's zoo is not supported: {REFUSED[name]}")
    group = MODELS.get((layout, classes, name))
    if group is None:
        return []
    known = [Told(group.fields, f"{' and '.join(group.fields)} as {name} has in RobustBench's zoo, by the file's name")]
    if group.normalisation is not None:
        known.append(Told(group.normalisation.fields(), f"normalised as {name} is in RobustBench's zoo, by the file's name"))
    return known
