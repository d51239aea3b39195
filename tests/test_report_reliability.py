"""The table of reliability: a row a case, by its latest line, in the order of the areas."""

from bench.report.reliability import AREAS, NOT_YET, RESULT, reliability
from purify_engine.files import append_json_line

LINE = {"asked": 250, "of": "points", "test": "tests/soak/test_a.py::test_b[folder]", "machine": "a CPU", "date": "2026-01-02"}


def test_before_anything_was_measured_the_table_says_so(tmp_path):
    assert reliability(tmp_path) == NOT_YET


def test_the_latest_line_of_each_case_is_a_row_in_the_order_of_the_areas(tmp_path):
    counted = [("tar", "", 20_050), ("crash points", "tar", 3), ("crash points", "folder", 5), ("tar", "", 20_051)]
    for area, case, count in counted:
        append_json_line(tmp_path / RESULT, {"area": area, "case": case, "count": count, **LINE})
    header, rule, *rows = reliability(tmp_path).splitlines()
    assert [row.split(" | ")[0] for row in rows] == ["| crash points: folder", "| crash points: tar", "| tar"]
    assert AREAS["tar"] in rows[-1] and "20,051 points" in rows[-1] and "20,050" not in rows[-1]
    assert rows[0].endswith("| 250 points | 5 points | `tests/soak/test_a.py::test_b` | a CPU, 2026-01-02 |")
