"""Each statement of SECURITY.md names tests that are there."""

import ast
import re

from workplace import PROJECT

TEXT = (PROJECT / "SECURITY.md").read_text(encoding="utf-8")
TESTS = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)


def test_each_statement_is_held() -> None:
    statements = re.split(r"^- ", TEXT, flags=re.MULTILINE)[1:]
    assert len(statements) > 20
    assert all("    - `tests/" in statement for statement in statements)
    assert len(TESTS) == TEXT.count("    - `tests/")
    for file, name in TESTS:
        tree = ast.parse((PROJECT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"
