import pytest

from purify_engine.markdown import table


def test_the_first_column_is_aligned_left_and_the_figures_right():
    assert table(["name", "a", "b"], [["x", "1", "2"], ["y", "3", "4"]]) == "\n".join(
        ["| name | a | b |", "| --- | ---: | ---: |", "| x | 1 | 2 |", "| y | 3 | 4 |"]
    )


def test_any_columns_may_be_aligned_left():
    assert table(["a", "b", "c"], [], left=(1,)).splitlines()[1] == "| ---: | --- | ---: |"


def test_no_cell_ends_early():
    header, _, row = table(["a|b", "c\nd"], iter([["|x|", "1\r\n2\n3"]])).splitlines()
    assert header == r"| a\|b | c d |" and row == r"| \|x\| | 1 2 3 |"


@pytest.mark.parametrize("row", [["1"], ["1", "2", "3"]], ids=["short", "long"])
def test_a_row_of_another_length_is_refused(row):
    with pytest.raises(ValueError, match=r"rows must be of 2 cells, as the header, got \['1'"):
        table(["a", "b"], [["1", "2"], row])
