"""Do the tests notice a fault? A list of planted ones, and a sample of those that mutmut makes; `make mutants` runs either."""
