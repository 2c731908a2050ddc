"""Each statement of SECURITY.md names tests that are there."""

import ast
import re

from workplace import PROJECT

TEXT = (PROJECT / "SECURITY.md").read_text(encoding="utf-8")
TESTS = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)


def test_each_statement_is_held() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and "---" not in line]
    statements = [line for line in rows if line != "| statement | held by |"]
    assert len(statements) == len(TESTS) > 25
    for file, name in TESTS:
        tree = ast.parse((PROJECT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"
