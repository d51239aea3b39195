"""What tests, benchmarks and `doctor` share: cases, the error allowed, truths of more digits, worlds of known answers."""
