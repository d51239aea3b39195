"""Other libraries that do the same, on the same weights."""
