// conv3x3_winograd.cpp, compiled with -mavx2 -mfma (setup.py).
#define PURIFY_ISA avx2
#include "conv3x3_winograd.cpp"
