"""Prove the limits of the house: no file of the package over 400 lines, no function's body over 45.

Run by `make check`. It prints what is over and ends with 1, or the number of lines and ends with 0.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE, BODY = 400, 45


def bodies(tree: ast.Module) -> list[tuple[str, int]]:
    """Each function's name and the lines of its body, without its docstring."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            found.append((node.name, (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0))
    return found


def main() -> int:
    total, over = 0, []
    for path in sorted([*ROOT.glob("*.py"), *ROOT.joinpath("spark_tracking").rglob("*.py")]):
        text, name = path.read_text(), path.relative_to(ROOT)
        lines = len(text.splitlines())
        total += lines
        if lines > FILE:
            over.append(f"{name} has {lines} lines (at most {FILE})")
        over += [
            f"{name}: {function} has {body} lines in its body (at most {BODY})" for function, body in bodies(ast.parse(text)) if body > BODY
        ]
    print("\n".join(over) or f"{total:,} lines; no file over {FILE}, no function's body over {BODY}")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
