"""What every page promises: nothing is fetched or run, every text is escaped, and every name is visible as it is."""

import jinja2
import pytest

from purify_engine.pages import render, visible


def test_a_template_s_missing_value_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        render("pages/page.html.j2")


def test_a_page_forbids_scripts_and_requests_and_knows_dark_screens():
    page = render("pages/page.html.j2", title="<b> & \x1b[2J")
    assert "default-src 'none'" in page and "prefers-color-scheme: dark" in page
    assert "<title>&lt;b&gt; &amp; \\x1b[2J</title>" in page and "<b>" not in page


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Käse 猫 שלום.png", "Käse 猫 שלום.png"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("photo\u202egnp.exe", "photo\\u202egnp.exe"),
        ("\u2066hidden\u2069\u200f\ufeff", "\\u2066hidden\\u2069\\u200f\\ufeff"),
        ("\udcff.png", "\\udcff.png"),
        ("\u2028\x85\x9b2J", "\\u2028\\x85\\x9b2J"),
    ],
    ids=ascii,
)
def test_a_name_is_one_line_that_commands_no_terminal_and_turns_no_text(name, shown):
    assert visible(name) == shown
    shown.encode("utf-8")  # bytes of no encoding would end a report
