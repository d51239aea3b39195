"""What every layout is held to: one comparison of our network with the same network written out from the layout's own names."""

import torch

from purify_engine.models import UNet
from purify_engine.models.checkpoints.layout import shapes_of, translate, written
from purify_engine.models.checkpoints.registry import recognised


def our_unet(layout, tensors, given=None, dtype=torch.float64):
    """The U-Net that a layout makes of a file's tensors, by the way a file takes."""
    config = recognised(shapes_of(tensors), [layout], "a test", given=given).config
    with torch.device("meta"):
        wanted = shapes_of(UNet(config).state_dict())
    unet = UNet(config).to(dtype).eval().requires_grad_(False)
    unet.load_state_dict(translate(layout, config, tensors, wanted, "a test"))
    return unet


def largest_difference(ours, wanted):
    """Relative to the largest value wanted."""
    return float((ours.double() - wanted).abs().max() / wanted.abs().max())


def comes_back(layout, unet, tensors):
    """Whether the network's tensors under the layout's names are the file's, to the bit."""
    back = written(layout, unet.config, unet.state_dict())
    return set(back) <= set(tensors) and all(torch.equal(tensor, tensors[name].to(tensor)) for name, tensor in back.items())


def every_broken_shape_is_one_line(layout, tensors, given):
    """Whether a missing weight, or one of another shape, makes no other error than a ValueError of one line naming the file."""
    whole = shapes_of(tensors)
    for name, shape in ((name, shape) for name, shape in whole.items() if len(shape) > 1):
        left = {other: held for other, held in whole.items() if other != name}
        for broken in (left, *({**whole, name: other} for other in ((), (1,), (0,) * len(shape)))):
            try:
                recognised(broken, [layout], "the file", given=given)
            except ValueError as error:
                message = str(error)
                assert message.startswith("the file") and "\n" not in message and "unpack" not in message, message
    return True


def on_meta(layout, tensors, given=None):
    """(configuration, parameters read, names not read) of full-size tensors without values."""
    config = recognised(shapes_of(tensors), [layout], "a test", given=given).config
    with torch.device("meta"):
        wanted = shapes_of(UNet(config).state_dict())
    ours = translate(layout, config, tensors, wanted, "a test")
    assert set(ours) == set(wanted)
    return (
        config,
        sum(tensor.numel() for tensor in ours.values()),
        set(tensors) - {name for entry in layout.entries(config) for name in entry.theirs},
    )
