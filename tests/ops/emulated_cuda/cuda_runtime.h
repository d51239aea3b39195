// Stands in for CUDA's own header where there is no GPU: a C++ compiler takes csrc/cuda as it is, and the threads of a block
// are fibres, run in an order that changes from one barrier to the next. A barrier that not all threads of a block reach is the
// end of the program.
//
// It shows whether a kernel computes the right thing, in which places, and whether a barrier is missing where that order
// uncovers it. It knows no speed, no streams, and none of a GPU's own arithmetic: every operation is the host's IEEE one.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline const char* cudaGetErrorString(cudaError_t error) { return error ? "invalid configuration argument" : "no error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace emulated {

constexpr size_t kStack = 64 << 10;
constexpr uint64_t kLimits[] = {(1u << 31) - 1, 65535, 65535};

// A fibre begins by way of ucontext, and changes hands by longjmp from then on: swapcontext would call the kernel of the system
// each time.
struct Thread {
  ucontext_t begin;
  jmp_buf place;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool begun, finished;
};

inline std::vector<Thread> threads;
inline jmp_buf scheduler;
inline size_t running;
inline std::function<void()> body;

inline void run_body() {
  body();
  threads[running].finished = true;
  _longjmp(scheduler, 1);
}

inline void prepare(Thread& thread) {
  thread.begun = thread.finished = false;
  getcontext(&thread.begin);
  thread.begin.uc_stack.ss_sp = thread.stack.get();
  thread.begin.uc_stack.ss_size = kStack;
  thread.begin.uc_link = nullptr;
  makecontext(&thread.begin, run_body, 0);
}

inline void resume(size_t index) {
  running = index;
  threadIdx.x = static_cast<unsigned>(index);
  if (_setjmp(scheduler)) return;
  Thread& thread = threads[index];
  if (thread.begun) _longjmp(thread.place, 1);
  thread.begun = true;
  setcontext(&thread.begin);
}

// Runs every thread of a block up to the next barrier, and again, until all are done.
inline void run_block(size_t count) {
  if (threads.size() < count) threads.resize(count);
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  for (size_t i = 0; i < count; ++i) prepare(threads[i]);
  for (size_t finished = 0, round = 0; finished < count; ++round) {
    std::rotate(order.begin(), order.begin() + (7 * round + 3) % count, order.end());
    if (round % 2) std::reverse(order.begin(), order.end());
    for (size_t thread : order) resume(thread);
    finished = 0;
    for (size_t i = 0; i < count; ++i) finished += threads[i].finished;
    if (finished != 0 && finished != count) {
      std::fprintf(stderr, "%zu of %zu threads left a block in which the others wait at a barrier\n", finished, count);
      std::abort();
    }
  }
}

}  // namespace emulated

inline void __syncthreads() {
  if (!_setjmp(emulated::threads[emulated::running].place)) _longjmp(emulated::scheduler, 1);
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments... arguments) {
  const unsigned grid[] = {config->gridDim.x, config->gridDim.y, config->gridDim.z};
  for (int i = 0; i < 3; ++i)
    if (grid[i] < 1 || grid[i] > emulated::kLimits[i]) return cudaErrorInvalidConfiguration;
  if (config->blockDim.x < 1 || config->blockDim.x > 1024) return cudaErrorInvalidConfiguration;
  gridDim = config->gridDim, blockDim = config->blockDim;
  emulated::body = [&] { kernel(arguments...); };
  for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) emulated::run_block(blockDim.x);
  return cudaSuccess;
}

using std::fma;
using std::min;

inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }
