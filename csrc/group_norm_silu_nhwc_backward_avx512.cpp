// group_norm_silu_nhwc_backward.cpp, compiled with -mavx512f and what comes with it (setup.py).
#define PURIFY_ISA avx512
#include "group_norm_silu_nhwc_backward.cpp"
