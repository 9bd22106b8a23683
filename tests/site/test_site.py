"""The documents make a site: every link in it leads somewhere, and reading it takes nothing from the network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pins import too_new_for_the_oldest_python

ROOT = Path(__file__).parents[2]
# What a browser fetches by itself: scripts, styles, fonts and pictures, but not the links that a reader follows.
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*?\bsrc=["']?((?:https?:)?//[^"' >]+)"""
    r"""|<link\b[^>]*?\bhref=["']?((?:https?:)?//[^"' >]+)"""
    r"""|\burl\(["']?((?:https?:)?//[^"')]+)""",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def site() -> Path:
    # mkdocs.yml says strict: a link or an anchor that leads nowhere, and a page without a place, end it.
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--clean"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / ".ugro" / "site"


def test_every_document_has_a_page(site: Path) -> None:
    documents = {
        path.relative_to(ROOT / "docs").with_suffix(".html")
        for path in (ROOT / "docs").rglob("*.md")
    }
    pages = {path.relative_to(site) for path in site.rglob("*.html")}
    assert (
        documents
        | {Path("index.html"), Path("CONTRIBUTING.html"), Path("CHANGELOG.html")}
        <= pages
    )


def test_the_readme_is_the_first_page_and_leads_to_the_others(site: Path) -> None:
    first = (site / "index.html").read_text("utf-8")
    assert 'src="run.svg"' in first
    assert 'href="SETUP.html"' in first
    assert "docs/SETUP" not in first


def test_links_to_the_readme_lead_to_the_first_page(site: Path) -> None:
    assert 'href="index.html#your-own-cluster-in-ten-minutes"' in (
        site / "SETUP.html"
    ).read_text("utf-8")


def test_reading_it_fetches_nothing_from_elsewhere(site: Path) -> None:
    files = [path for path in site.rglob("*") if path.suffix in {".html", ".css"}]
    assert len(files) > 30
    fetched = {
        (path.name, *found)
        for path in files
        for found in FETCHED.findall(path.read_text("utf-8"))
    }
    assert fetched == set()


def test_what_would_be_fetched_is_found() -> None:
    assert FETCHED.findall('<link rel=stylesheet href="https://fonts.example/a.css">')
    assert FETCHED.findall("<script defer src=//cdn.example/a.js></script>")
    assert FETCHED.findall("@font-face{src:url(https://fonts.example/a.woff2)}")
    assert not FETCHED.findall(
        '<a href="https://example.org/">a link</a><script src="assets/a.js">'
    )


def test_what_makes_it_takes_the_oldest_python_that_ugro_takes() -> None:
    assert too_new_for_the_oldest_python("docs") == {}
