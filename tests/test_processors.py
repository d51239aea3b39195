"""The job that runs tests as other processors would: it names every choice, and a failure under one of them is its own."""

from __future__ import annotations

import pytest

from tests import processors


@pytest.mark.parametrize(
    ("variable", "values"),
    [
        ("ATEN_CPU_CAPABILITY", {"default", "avx2", "avx512"}),
        ("ONEDNN_MAX_CPU_ISA", {"AVX2", "SSE41", None}),
        ("MKL_CBWR", {"COMPATIBLE", "AVX2", None}),
        ("LD_PRELOAD", {processors.INTEL, None}),
        ("OMP_NUM_THREADS", {"1", "2"}),
    ],
)
def test_every_choice_is_in_some_setting(variable, values):
    assert {setting.get(variable) for setting in processors.SETTINGS.values()} == values


@pytest.mark.parametrize(("name", "text", "code"), [("good", "def test_it(): pass", 0), ("bad", "def test_it(): assert 0", 1)])
def test_a_failure_under_a_setting_is_a_failure(name, text, code, tmp_path, monkeypatch, capsys):
    (tmp_path / f"test_{name}.py").write_text(text)
    monkeypatch.setattr(processors, "TESTS", (str(tmp_path),))
    assert processors.main(["oldest", "intel-widest"]) == code
    said = capsys.readouterr().out
    assert said.count("FAILED oldest") == said.count("FAILED intel-widest") == code


def test_an_unknown_setting_is_refused(capsys):
    assert processors.main(["newest"]) == 2
    assert "must be one of oldest, avx2, intel-avx2, intel-widest, got newest" in capsys.readouterr().err
