"""A headless Chromium for tests of pages: what it reads, draws and measures. Marker `system`: it must be installed."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

CHROMIUM = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
CHROMIUM += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]

MEASURE = """<script>
addEventListener("load", () => {
  const root = document.documentElement;
  const named = [...document.querySelectorAll("[src], [href], [srcset], [data], [action]")].map(
    one => one.getAttribute("src") || one.getAttribute("href") || one.outerHTML);
  const fetched = performance.getEntriesByType("resource").map(entry => entry.name);
  const requests = [...named, ...fetched].filter(name => !name.startsWith("data:"));
  const found = {width: innerWidth, scrolls_to: root.scrollWidth, scripts: document.scripts.length - 1, requests};
  parent.postMessage(JSON.stringify(found), "*");
});
</script>"""
# Chromium's own window is never narrower than 500 pixels; a frame is.
FRAME = """<!doctype html>
<script>addEventListener("message", told => document.body.setAttribute("data-measured", told.data))</script>
<body><iframe src="measured.html" style="border: 0; width: {width}px; height: 800px"></iframe></body>"""


def browse(page: Path, *options: str, width: int = 1280, height: int = 1600) -> str:
    """What Chromium prints of a page, a window of `width` by `height` open on it."""
    assert shutil.which("chromium"), "chromium is missing; install it to run this check"
    profile = page.parent / "profile"
    command = [*CHROMIUM, f"--window-size={width},{height}", f"--user-data-dir={profile}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def measured(page: Path, width: int) -> dict:
    """How wide the page's window is and its content gets, and which scripts and requests it has, by a script in a copy of it.

    The copy is without the page's policy, which forbids all of them: what the page would do by itself is seen.
    """
    html = page.read_text(encoding="utf-8")
    policy = re.compile('<meta http-equiv="Content-Security-Policy"[^>]*>')
    assert policy.search(html), "the page forbids nothing"
    copy = page.with_name("measured.html")
    copy.write_text(policy.sub(MEASURE, html), encoding="utf-8")
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.format(width=width), encoding="utf-8")
    found = re.search('data-measured="([^"]*)"', browse(frame, "--dump-dom", width=width + 100))
    assert found, "the measuring script did not run"
    return json.loads(unescape(found.group(1)))
