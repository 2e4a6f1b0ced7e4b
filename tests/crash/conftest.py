"""Processes that can be killed, and a folder for what they note."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

CONTEXT: ForkServerContext = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.crash.worker"])  # each process starts in milliseconds, from one that used no Delta


@pytest.fixture
def processes() -> ForkServerContext:
    return CONTEXT


@pytest.fixture
def histories(tmp_path: Path) -> Path:
    folder = tmp_path / "histories"
    folder.mkdir()
    return folder
