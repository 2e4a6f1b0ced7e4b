"""A large estimator in a module of its own, so that workers import it and its arrays can be shared."""

from __future__ import annotations

import os
from typing import Any

from sklearn.linear_model import LogisticRegression


class Big(LogisticRegression):
    """A logistic regression that carries an array; notes the process of each load in a file."""

    notes: str

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        with open(self.notes, "a") as file:
            file.write(f"{os.getpid()}\n")
