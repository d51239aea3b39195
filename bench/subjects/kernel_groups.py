"""What a kernel does, read off its name: the groups by which a step's time and its launches are told."""

from __future__ import annotations

import re

# The first that is found in a name decides. PyTorch has two kernels for additions: of whole tensors, and with one that is
# broadcast (a convolution's bias), which takes twice the time.
GROUPS: tuple[tuple[str, str], ...] = (
    (
        "norm",
        r"sum_norm|^_(whole|twice|apply|normalise|backward|sums|parameters)_kernel|moments|group_norm|GroupNorm|RowwiseMoments",
    ),
    ("attention", r"attention|flash|fmha"),
    ("guided step and noise", r"guided_step|q_sample|philox|to_images"),
    ("our convolutions", r"conv3x3"),
    ("our sums", r"residual_sum|affine_kernel|affine_relu|_sum_kernel"),
    ("convolutions, gradients", r"dgrad|wgrad|convolution_backward"),
    ("convolutions", r"fprop|implicit_gemm|convolve|conv2d|xmma|winograd|::\w*convolution|conv_transpose"),
    ("linear", r"nvjet|gemm|gemv|cublas|splitK|addmm|::b?mm\b|::linear|cutlass"),
    ("layout changes", r"nchwToNhwc|nhwcToNchw|nhwcAddPadding|cudnn::ops"),
    ("concatenation", r"CatArray|::_?cat"),
    ("upsampling", r"upsample"),
    ("ReLU and its gradient", r"clamp|relu|threshold"),
    ("pads and fills", r"[Ff]ill|[Pp]ad|[Mm]emset|::zero|::ones"),
    ("copies and casts", r"copy|[Mm]emcpy|_to_copy|::to\b|clone"),
    ("reductions", r"reduce|softmax|Softmax|::sum|::mean|avg_pool|argmax|dot_kernel|::norm"),
    (
        "additions of whole tensors",
        r"vectorized_elementwise_kernel.*(CUDAFunctor_add|add_kernel)|CUDAFunctorOnSelf_add|::add_? of whole",
    ),
    ("additions with a broadcast", r"CUDAFunctor_add|AddFunctor|::add"),
    ("indexing", r"index|gather|scatter"),
)
OTHERS = "others"
_PATTERNS = tuple((name, re.compile(pattern)) for name, pattern in GROUPS)


def group_of(kernel: str) -> str:
    """The group of a kernel, or of one of PyTorch's operators ("aten::add"), by its name."""
    return next((name for name, pattern in _PATTERNS if pattern.search(kernel)), OTHERS)
