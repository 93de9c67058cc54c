"""report.html in a headless Chromium: it renders, sorts, fits a phone, and prints."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stages import BROWSERS
from synthetic import populate

from lora.report.build import build_report
from lora.report.command import write_report
from lora.report.runs import task_labels

pytestmark = [pytest.mark.browser, pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="no browser")]
GRID = ["experiment=glue_table2,lora_targets,lora_ranks,mnli_start", "seed=1,2"]
ERRORS = """<script>
window.problems = [];
addEventListener("error", (event) => problems.push(String(event.message)), true);
console.error = console.warn = (...all) => problems.push(all.join(" "));
</script>"""
PROBE = """<script>addEventListener("load", () => {
  const found = {problems, width: innerWidth, body: document.documentElement.scrollWidth};
  const shown = (element) => element.getClientRects().length > 0;
  found.fonts = [...document.querySelectorAll("p, td, th, li, summary")].filter(shown)
    .map((element) => parseFloat(getComputedStyle(element).fontSize));
  found.drawn = [...document.querySelectorAll(".picture svg text")].filter(shown).map((text) => {
    const scale = text.getScreenCTM();
    return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(scale.a, scale.b);
  });
  found.tables = [...document.querySelectorAll("table")].filter(shown).map((t) => t.getBoundingClientRect().right);
  const widths = (pictures) => [...document.querySelectorAll(pictures)].map((svg) => svg.getBoundingClientRect().width);
  found.findings = widths("#figure-findings svg");
  found.pictures = widths(".picture svg").filter((width) => width > 0);
  found.titles = [...document.querySelectorAll(".picture")].map(
    (figure) => figure.textContent.split(figure.querySelector("figcaption").textContent).length - 1);
  found.families = [...new Set([...document.querySelectorAll(".picture svg text, .picture figcaption")].map(
    (text) => getComputedStyle(text).fontFamily))];
  found.nav = shown(document.querySelector("nav"));
  found.sticky = getComputedStyle(document.querySelector("nav")).position;
  found.heads = [...document.querySelectorAll("h2")].map((head) => head.id);
  found.folded = [...document.querySelectorAll("details.folded")].map((each) => each.open);
  const right = (cell) => cell.getBoundingClientRect().right;
  found.scores = Math.max(...[...document.querySelectorAll("#table2 td")].map(right));
  const costs = document.querySelector(".costs");
  const picks = [...costs.querySelectorAll("select")];
  const points = () => [...costs.querySelectorAll("circle")].map((one) => [one.cx.baseVal.value, one.cy.baseVal.value]);
  found.names = [...costs.querySelectorAll("li")].map((name) => name.textContent);
  found.points = points();
  picks[1].value = "y";
  picks[2].value = "checkpoint_bytes";
  picks[2].dispatchEvent(new Event("change"));
  found.turned = points();
  document.querySelector("#table2 td[data-cell] button").click();
  const dialog = document.querySelector("dialog");
  found.dialog = [dialog.open, dialog.querySelector("h3").textContent];
  found.runs = [...dialog.querySelectorAll(".run")].map((path) => path.getAttribute("d"));
  dialog.close();
  found.average = [...document.querySelectorAll("#table2 th")].pop().getBoundingClientRect().right;
  const table = document.querySelector("#table2 table");
  const read = () => [...table.tBodies[0].rows].map((row) => row.cells[column].textContent);
  found.last = [...table.tHead.rows[0].cells].pop().textContent;
  const column = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent.startsWith("Trainable"));
  const head = table.tHead.rows[0].cells[column];
  found.before = read();
  head.querySelector("button").click();
  found.up = read();
  found.ariaUp = head.getAttribute("aria-sort");
  head.querySelector("button").click();
  found.down = read();
  found.ariaDown = head.getAttribute("aria-sort");
  parent.postMessage(JSON.stringify(found), "*");
});</script>"""
FRAME = """<!DOCTYPE html><meta charset="utf-8"><pre id="found"></pre><script>
addEventListener("message", (event) => { document.querySelector("#found").textContent = event.data; });
</script><iframe style="border: 0; width: %dpx; height: 900px" srcdoc="%s"></iframe>"""  # windows have a minimum width


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    results = tmp_path_factory.mktemp("results")
    populate(results / "small", "small", GRID)
    write_report(build_report("small", GRID, results), results / "small")
    return results / "small" / "report.html"


def chromium(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    browser = next(filter(None, map(shutil.which, BROWSERS)))
    quiet = ("no-first-run", "disable-background-networking", "disable-component-update", "disable-sync")
    flags = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "enable-logging=stderr", *quiet)
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [browser, *(f"--{flag}" for flag in flags), profile, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)


def probe(page: Path, folder: Path, width: int, change: tuple[str, str] = ("", "")) -> dict:
    """The findings of a script in a copy of the page, shown in a frame of this width."""
    content = page.read_text()
    assert change[0] in content
    content = content.replace(*change) if change[0] else content
    content = content.replace("<head>", f"<head>{ERRORS}").replace("</body>", f"{PROBE}</body>")
    copy = folder / "copy.html"
    copy.write_text(FRAME % (width, html.escape(content)))
    done = chromium(folder, "--window-size=1300,1000", "--dump-dom", copy.as_uri())
    assert "CONSOLE" not in done.stderr
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1]))
    assert found["width"] == width and found["problems"] == []
    return found


def test_it_renders_and_sorts(page, tmp_path):
    found = probe(page, tmp_path, 1400)
    assert found["heads"] == ["found", "tables", "verdicts", "runs"]
    assert found["nav"] and found["sticky"] == "sticky" and found["folded"] == [False]
    assert found["before"] == ["22.6M", "40k", "78k", "80k", "74k"]
    assert (found["up"], found["ariaUp"]) == (["40k", "74k", "78k", "80k", "22.6M"], "ascending")
    assert (found["down"], found["ariaDown"]) == (["22.6M", "80k", "78k", "74k", "40k"], "descending")
    assert len(found["pictures"]) >= 7 and min(found["pictures"]) > 300
    assert found["last"] == "Avg." and found["average"] <= 1400, "Table 2 is in view"
    panel = json.loads((page.parent / "figures" / "parameters.json").read_text())["panels"][0]
    assert found["names"] == [series["label"] for series in panel["series"]]
    places = {key: [series[key][0] for series in panel["series"]] for key in ("x", "y", "checkpoint_bytes")}
    for points, across, up in ((found["points"], "x", "y"), (found["turned"], "y", "checkpoint_bytes")):
        assert np.argsort([x for x, _ in points]).tolist() == np.argsort(places[across]).tolist()
        assert np.argsort([-y for _, y in points]).tolist() == np.argsort(places[up]).tolist()
    cell = build_report("small", GRID, page.parents[1]).cells.iloc[0]
    assert found["dialog"] == [True, f"{cell['label']}, {task_labels(pd.DataFrame([cell]))[cell['task']]}"]
    assert len(found["runs"]) == cell["n"] == 2
    assert found["findings"][0] == 0 < 500 < found["findings"][1] <= 1400
    assert set(found["titles"]) == {1} and len(found["families"]) == 1  # each once, and all in the page's own font


def test_it_is_legible_on_a_phone(page, tmp_path):
    """Nothing is wider than the screen except elements that scroll within their own frame. No text is tiny."""
    found = probe(page, tmp_path, 375)
    assert found["body"] <= 375 and found["scores"] <= 375, "a row is a card, with every score in view"
    assert min(found["fonts"]) >= 12 and min(found["drawn"]) >= 11
    narrow, wide = found["findings"]
    assert 300 < narrow <= 375 and wide == 0, "the findings have a picture of their own, which does not scroll"


def test_it_needs_nothing_but_itself(page):
    content = page.read_text()
    assert not re.search(r'(?:src|href)="(?!#|data:)', content)
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest", content)
