"""Measurements, and the figures made from them. Not part of the installed package; `python -m bench` lists what can be run.

    core/       a run and its lines, the one comparison with float64, clocks
    opponents/  other libraries that do the same
    subjects/   what is measured: cases of ops, networks, guided steps, purifications
    report/     tables, verdicts and drawings from the lines of results/
    tuning/     measurements that choose numbers of the package
    runs/       the other measurements and the checks; gpu.py runs those that concern a GPU, one after the other

Imports point up this list only, and no module that is run is imported by another (tests/test_bench_layers.py).
"""
