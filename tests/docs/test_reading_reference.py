"""The reference page of tables, columns and options is that of the code."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_reference_page_is_made_from_the_code() -> None:
    spec = importlib.util.spec_from_file_location("reading_reference", ROOT / "scripts" / "reading_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "reading-reference.md").read_text()
    assert page == module.document(), "run: python scripts/reading_reference.py > docs/reading-reference.md"
