"""What `python -m bench NAME` runs: measurements and checks."""
