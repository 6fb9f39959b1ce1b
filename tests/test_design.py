"""Imports follow the order of the rooms."""

import ast
from importlib.util import resolve_name
from pathlib import Path

import iwae

ORDER = """
    typing errors wording files precision data models inference objectives evaluation training
    config runs results experiments reports cli sklearn testing
""".split()  # noqa: SIM905


def imported(path, root):
    """Yield the modules of this package that a file imports, at its top or inside functions."""
    package = ".".join((root.name, *path.parent.relative_to(root).parts))
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            names = [f"{base}.{name}" for name in names]
        yield from (name.split(".")[1] for name in names if name.startswith("iwae."))


def test_modules_import_only_those_above_them():
    root = Path(iwae.__file__).parent
    violations = []
    for path in sorted(root.rglob("*.py")):
        module = path.relative_to(root).parts[0].removesuffix(".py")
        if module not in {"__init__", "__main__"}:
            above = ORDER[: ORDER.index(module) + 1]
            names = [name for name in imported(path, root) if name not in above]
            violations += [f"{path.relative_to(root)} imports {name}" for name in names]
    assert not violations
