// guided_step.cpp, compiled with -mavx2 -mfma (setup.py).
#define PURIFY_ISA avx2
#include "guided_step.cpp"
