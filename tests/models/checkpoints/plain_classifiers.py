"""Forward passes in plain PyTorch, written from the papers on the weights as their publishers name them: what ours are held to.

Images are normalised beforehand. `w` maps published names to tensors; `act` is the activation.
"""

from itertools import count

import torch.nn.functional as F


def conv(w, name, x, stride=1, padding=0):
    return F.conv2d(x, w[f"{name}.weight"], stride=stride, padding=padding)


def norm(w, name, x):
    statistics = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    return F.batch_norm(x, *statistics, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-5)


def head(w, name, x):
    return F.linear(x.mean((2, 3)), w[f"{name}.weight"], w[f"{name}.bias"])


def blocks(w, pattern, first, stages, told_by):
    """(name, stride) of every block, a stage's first halving the resolution but in the first stage."""
    for stage in range(stages):
        for index in count():
            name = pattern.format(stage + first, index)
            if f"{name}.{told_by}.weight" not in w:
                break
            yield name, 2 if stage > 0 and index == 0 else 1


def same(x, stride):
    """TensorFlow's SAME for a 3x3 convolution of an even size."""
    return F.pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))


def trades_wide(w, x, act):
    """Zagoruyko & Komodakis 2016, as TRADES names it."""
    x = conv(w, "conv1", x, padding=1)
    for name, stride in blocks(w, "block{}.layer.{}", 1, 3, "bn1"):
        h = act(norm(w, f"{name}.bn1", x))
        x = conv(w, f"{name}.convShortcut", h, stride) if f"{name}.convShortcut.weight" in w else x
        h = act(norm(w, f"{name}.bn2", conv(w, f"{name}.conv1", h, stride, 1)))
        x = x + conv(w, f"{name}.conv2", h, 1, 1)
    return head(w, "fc", act(norm(w, "bn1", x)))


def deepmind_wide(w, x, act):
    """Gowal et al. 2020: the same with SAME padding."""
    x = conv(w, "init_conv", x, padding=1)
    for name, stride in blocks(w, "layer.{}.block.{}", 0, 3, "batchnorm_0"):
        h = act(norm(w, f"{name}.batchnorm_0", x))
        x = conv(w, f"{name}.shortcut", h, stride) if f"{name}.shortcut.weight" in w else x
        h = act(norm(w, f"{name}.batchnorm_1", conv(w, f"{name}.conv_0", same(h, stride), stride)))
        x = x + conv(w, f"{name}.conv_1", h, 1, 1)
    return head(w, "logits", act(norm(w, "batchnorm", x)))


def deepmind_preact(w, x, act):
    """Rebuffi et al. 2021: SAME padding, and shortcuts that are 3x3 convolutions of a block's input."""
    x = conv(w, "conv_2d", x, padding=1)
    for name, stride in blocks(w, "layer_{}.{}", 0, 4, "batchnorm_0"):
        h = act(norm(w, f"{name}.batchnorm_0", x))
        h = act(norm(w, f"{name}.batchnorm_1", conv(w, f"{name}.conv_2d_1", same(h, stride), stride)))
        x = conv(w, f"{name}.shortcut", same(x, stride), stride) if f"{name}.shortcut.weight" in w else x
        x = x + conv(w, f"{name}.conv_2d_2", h, 1, 1)
    return head(w, "logits", act(norm(w, "batchnorm", x)))


def preact(w, x, act, reads_input=False):
    """He et al. 2016, Identity mappings, as kuangliu names it."""
    x = conv(w, "conv1", x, padding=1)
    for name, stride in blocks(w, "layer{}.{}", 1, 4, "bn1"):
        h = act(norm(w, f"{name}.bn1", x))
        read = x if reads_input else h
        x = conv(w, f"{name}.shortcut.0", read, stride) if f"{name}.shortcut.0.weight" in w else x
        if f"{name}.conv3.weight" in w:
            h = act(norm(w, f"{name}.bn2", conv(w, f"{name}.conv1", h)))
            x = x + conv(w, f"{name}.conv3", act(norm(w, f"{name}.bn3", conv(w, f"{name}.conv2", h, stride, 1))))
        else:
            x = x + conv(w, f"{name}.conv2", act(norm(w, f"{name}.bn2", conv(w, f"{name}.conv1", h, stride, 1))), 1, 1)
    return head(w, "linear", act(norm(w, "bn", x)) if "bn.weight" in w else x)


def _postact(w, x, act, shortcut, stages=4):
    for name, stride in blocks(w, "layer{}.{}", 1, stages, "bn1"):
        if f"{name}.{shortcut}.0.weight" in w:
            rest = norm(w, f"{name}.{shortcut}.1", conv(w, f"{name}.{shortcut}.0", x, stride))
        elif stride == 2:  # option A of He et al. 2016
            channels = w[f"{name}.bn2.weight"].numel() - x.shape[1]
            rest = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, channels // 2, channels // 2))
        else:
            rest = x
        if f"{name}.conv3.weight" in w:
            h = act(norm(w, f"{name}.bn1", conv(w, f"{name}.conv1", x)))
            h = act(norm(w, f"{name}.bn2", conv(w, f"{name}.conv2", h, stride, 1)))
            x = act(norm(w, f"{name}.bn3", conv(w, f"{name}.conv3", h)) + rest)
        else:
            h = act(norm(w, f"{name}.bn1", conv(w, f"{name}.conv1", x, stride, 1)))
            x = act(norm(w, f"{name}.bn2", conv(w, f"{name}.conv2", h, 1, 1)) + rest)
    return x


def small_resnet(w, x, act):
    """He et al. 2016 for small images, as TRADES, kuangliu and Y. Idelbayev name it."""
    return head(w, "linear", _postact(w, act(norm(w, "bn1", conv(w, "conv1", x, 1, 1))), act, "shortcut"))


def torchvision(w, x, act):
    """He et al. 2016 for ImageNet, the stride in the 3x3 convolution."""
    x = F.max_pool2d(act(norm(w, "bn1", conv(w, "conv1", x, 2, 3))), 3, 2, 1)
    return head(w, "fc", _postact(w, x, act, "downsample"))
