"""What is true: every equation of docs/math.md in plain PyTorch, safe in float64. Kernels are judged against this."""
