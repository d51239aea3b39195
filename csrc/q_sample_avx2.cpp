// q_sample.cpp, compiled with -mavx2 -mfma (setup.py).
#define PURIFY_ISA avx2
#include "q_sample.cpp"
