// conv3x3_winograd.cpp, compiled with -mavx512f and what comes with it (setup.py).
#define PURIFY_ISA avx512
#include "conv3x3_winograd.cpp"
