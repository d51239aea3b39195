import pytest

from bench.report import figures


def test_every_table_and_drawing_is_the_one_that_the_results_give():
    assert not [path.name for path in figures.outdated()], "run `make figures`"


def test_only_what_stands_between_the_marks_is_written(monkeypatch):
    monkeypatch.setitem(figures.FIGURES, "one", lambda results: "| 1 |")
    text = "before\n<!-- generated:one -->\nold\n<!-- /generated:one -->\nafter\n"
    assert figures.filled(text) == "before\n<!-- generated:one -->\n| 1 |\n<!-- /generated:one -->\nafter\n"
    assert figures.filled(figures.filled(text)) == figures.filled(text)


def test_a_block_without_a_figure_is_an_error():
    with pytest.raises(KeyError, match="no figure is called 'nothing'"):
        figures.filled("<!-- generated:nothing -->\n<!-- /generated:nothing -->")
