"""Where to compute and in which precision, as a user says it; `purify_engine/devices.py` finds out what that means here."""

from __future__ import annotations

from typing import Literal

Precision = Literal["auto", "float32", "bf16", "fp16"]
