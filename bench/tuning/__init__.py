"""Measurements that choose numbers of the package: tiles, ways to convolve, the guidance of the embedded models."""
