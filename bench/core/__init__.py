"""What every measurement shares: a run and its lines, the comparison with float64, clocks."""
