"""Tables, verdicts and drawings from the lines of bench/results."""
