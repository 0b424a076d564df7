"""Adds a reference page for each package of sslpl to the site, generated from its docstrings by mkdocstrings."""

import ast
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]


def packages() -> dict[str, list[Path]]:
    """Maps each package of sslpl to its modules; modules directly in sslpl/ belong to the package `sslpl`."""
    found: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "sslpl").rglob("*.py")):
        package = ".".join(path.relative_to(ROOT).parent.parts)
        if not path.name.startswith("_") and path.parent.joinpath("__init__.py").is_file():
            found.setdefault(package, []).append(path)
    return found


def summary(path: Path) -> str:
    """Returns the first line of a module's docstring, with brackets escaped for Markdown."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0].replace("[", "\\[")


def page(package: str, modules: list[Path]) -> str:
    """Returns a page in Markdown: a section for each module of a package."""
    header = f"# {package}\n\nThis page lists the public functions and classes of `{package}`. "
    header += summary(ROOT.joinpath(*package.split("."), "__init__.py"))
    sections = [f"## {path.stem}\n\n{summary(path)}\n\n{members(package, path)}" for path in modules]
    return "\n\n".join([header, *sections]) + "\n"


def members(package: str, path: Path) -> str:
    """Returns a mkdocstrings directive for each public, documented function and class of a module."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    nodes = [node for node in ast.parse(path.read_text()).body if isinstance(node, kinds) and ast.get_docstring(node)]
    names = [node.name for node in nodes if not node.name.startswith("_") and node.name != "main"]
    return "\n\n".join(f"::: {package}.{path.stem}.{name}" for name in names)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages to the site and to the section `API reference` of its navigation."""
    reference = next(entry["API reference"] for entry in config.nav[-1]["Extend"] if "API reference" in entry)
    for package, modules in packages().items():
        name = f"api/{package}.md"
        files.append(File.generated(config, name, content=page(package, modules)))
        reference.append({package: name})
    return files


def on_page_markdown(markdown: str, page: object, **_: object) -> str:
    """Appends links to all packages to the page `API reference`."""
    if page.file.src_uri != "api.md":  # type: ignore[attr-defined]
        return markdown
    rows = [
        f"| [{package}](api/{package}.md) | {summary(ROOT.joinpath(*package.split('.'), '__init__.py'))} |"
        for package in packages()
    ]
    return "\n".join([markdown, "", "| package | content |", "|---|---|", *rows])
