// philox.cpp, compiled with -mavx2 -mfma (setup.py).
#define PURIFY_ISA avx2
#include "philox.cpp"
