"""Calibration measures the guide's pull as it is: neither a scale nor a length that is in force already changes what it finds."""

from __future__ import annotations

import dataclasses

import pytest

from tests.test_purifier import images, purifier


@pytest.mark.parametrize("changes", [{"normalised": True}, {"scale": 7.0}], ids=str)
def test_it_hangs_on_no_strength_that_is_in_force(changes):
    plain = purifier(kind="adversarial", scale=1.0)
    other = plain.configured(guidance=dataclasses.replace(plain.config.guidance, **changes))
    assert other.calibrate(images(), ratio=0.2) == pytest.approx(plain.calibrate(images(), ratio=0.2), rel=1e-6)


def test_what_has_no_pull_to_measure_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^guidance.kind must be 'adversarial' or 'pixel': .* got 'none'$"):
        purifier(kind="none", scale=1.0).calibrate(images(), ratio=0.2)
    with pytest.raises(ValueError, match=r"^images must be at least one image, got \[0, "):
        purifier(kind="adversarial", scale=1.0).calibrate(images()[:0], ratio=0.2)
