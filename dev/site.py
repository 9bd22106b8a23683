"""Hooks of mkdocs.yml: the documents at the root become pages, with links to them adapted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
# {document at the root of the repository: its page}
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
}
LINK_INTO_DOCS = re.compile(r"(?<=\]\()docs/")
LINK_TO_ROOT = re.compile(
    rf"(?<=\]\()(?:\.\./)*({'|'.join(map(re.escape, PAGES))})(?=[)#])"
)


def on_files(files: Any, config: Any) -> Any:
    """Add the documents at the root to the files of the site."""
    for name, page in PAGES.items():
        files.append(
            File.generated(config, page, content=(ROOT / name).read_text("utf-8"))
        )
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Adapt links between documents from the repository's paths to the site's."""
    up = "../" * page.file.src_uri.count("/")
    if page.file.src_uri in PAGES.values():
        markdown = LINK_INTO_DOCS.sub("", markdown)
    return LINK_TO_ROOT.sub(lambda link: up + PAGES[link[1]], markdown)
