// group_norm_silu_nhwc_backward.cpp, compiled with -mavx2 -mfma (setup.py).
#define PURIFY_ISA avx2
#include "group_norm_silu_nhwc_backward.cpp"
