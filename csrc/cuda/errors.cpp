// Where a failed launch becomes an exception: kept from the kernels' files, which compile faster without <string>.
#include <stdexcept>
#include <string>

#include "ops.h"

namespace purify::cuda {

void check(const char* op, cudaError_t launched) {
  if (launched == cudaSuccess) return;
  throw std::runtime_error("purify::" + std::string(op) + " did not launch: " + cudaGetErrorString(launched));
}

}  // namespace purify::cuda
