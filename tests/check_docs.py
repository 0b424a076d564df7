"""Builds the documentation as `make docs` does and checks its links: `make check`.

The build is strict. In the built pages every link to another page or anchor is valid, and nothing that a page loads
(style sheets, scripts, images, fonts) is on another host. Links of README.md and CONTRIBUTING.md lead to files and
headings of the repository, and every repository file that a document names exists.
"""

import os
import re
import subprocess
import sys
import time
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
# Kinds of <link> that a browser requests.
LOADED = {"stylesheet", "icon", "preload", "preconnect", "prefetch", "modulepreload"}


class Page(HTMLParser):
    """A built page: its anchors, the targets of its links, and what a browser loads with it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.anchors |= {values[key] for key in ("id", "name") if key in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "link" and LOADED & set(values.get("rel", "").split()):
            self.loaded.append(values["href"])
        if tag != "a" and "src" in values:
            self.loaded.append(values["src"])


@cache
def page(path: Path) -> Page:
    return Page(path.read_text())


def build(folder: Path) -> None:
    """Builds the site; exits with mkdocs's output if there is a warning."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"check_docs: mkdocs build --strict ended with {done.returncode}\n{done.stdout}{done.stderr}")


def dead_links(site: Path) -> list[str]:
    """Returns the links of all pages that lead to no file or no anchor, and the resources that do not exist."""
    dead = []
    for path in sorted(site.rglob("*.html")):
        for link in (*page(path).links, *page(path).loaded):
            target = urlsplit(link)
            if target.scheme or target.netloc or path.name == "404.html":  # which may be shown at any depth
                continue
            file = (path.parent / unquote(target.path)).resolve() if target.path else path
            alive = file.is_file() and (
                not anchored(file, target.fragment) or unquote(target.fragment) in page(file).anchors
            )
            if not alive:
                dead.append(f"{path.relative_to(site)}: {link}")
    return dead


def anchored(file: Path, fragment: str) -> bool:
    """Returns whether a link to this file has an anchor that its page must have."""
    return bool(fragment) and file.suffix == ".html" and fragment != "__codelineno"


def external_resources(site: Path) -> list[str]:
    """Returns everything on another host that pages or style sheets load."""
    found = [
        f"{path.relative_to(site)}: {address}"
        for path in sorted(site.rglob("*.html"))
        for address in page(path).loaded
        if urlsplit(address).netloc
    ]
    for path in sorted(site.rglob("*.css")):
        imported = re.findall(r"(?:url\(|@import\s*)[\"']?((?:https?:)?//[^\"')]+)", path.read_text())
        found += [f"{path.relative_to(site)}: {address}" for address in imported]
    return found


def slug(heading: str) -> str:
    """Returns the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def dead_repository_links(document: Path) -> list[str]:
    """Returns the links of a document of the repository that lead to no file or no heading."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        target = urlsplit(link)
        if target.scheme:
            continue
        file = document.parent / unquote(target.path) if target.path else document
        headings = (
            re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE) if file.suffix == ".md" and file.is_file() else []
        )
        if not file.exists() or (target.fragment and target.fragment not in map(slug, headings)):
            dead.append(f"{document.relative_to(ROOT)}: {link}")
    return dead


def missing_files(document: Path) -> list[str]:
    """Returns the paths of the repository in code spans of a document that do not exist."""
    spans = re.findall(r"`((?:sslpl|conf|tests|benchmarks|multirun_sweeps|docs)/[\w/.\-]*)`", document.read_text())
    return [f"{document.relative_to(ROOT)}: `{span}`" for span in spans if not (ROOT / span).exists()]


def main() -> None:
    """Exits with 0 if the documentation builds without a warning and nothing in it is dead."""
    start_time = time.monotonic()
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    with TemporaryDirectory(prefix="sslpl-docs-") as name:
        site = Path(name) / "site"
        build(site)
        pages = len([*site.rglob("*.html")])
        problems = {
            "dead link": dead_links(site) + [line for path in documents for line in dead_repository_links(path)],
            "missing file": [line for path in documents for line in missing_files(path)],
            "loaded from another host": external_resources(site),
        }
    lines = [f"check_docs: {kind}: {line}" for kind, found in problems.items() for line in found]
    if lines:
        sys.exit("\n".join(lines))
    print(f"check_docs: {pages} pages, every link alive ({time.monotonic() - start_time:.0f} s)")


if __name__ == "__main__":
    main()
