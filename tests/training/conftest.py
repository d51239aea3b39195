import pytest
import torch

from purify_engine.config import ClassifierConfig, UNetConfig


@pytest.fixture
def tiny_unet():
    return UNetConfig(
        image_size=4, in_channels=1, base_channels=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), norm_groups=4
    )


@pytest.fixture
def tiny_classifier():
    return ClassifierConfig(architecture="cifar_resnet", depth=8, width=4, num_classes=2, in_channels=1, mean=(0.5,), std=(0.25,))


@pytest.fixture
def stripes():
    """(images [40, 1, 4, 4], labels): noisy stripes, across (0) or down (1); any classifier can tell them apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    across = torch.tensor([0.2, 0.8, 0.2, 0.8]).view(4, 1).expand(4, 4)
    images = torch.stack([across.T if label else across for label in labels])[:, None]
    return (images + 0.05 * torch.randn(images.shape, generator=generator)).clamp(0, 1), labels
