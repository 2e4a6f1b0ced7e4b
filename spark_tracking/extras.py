"""What the core leaves out: which extra brings a package that is not there, as one line."""

from __future__ import annotations

from importlib.util import find_spec

_BRINGS = {
    "spark": ("pyspark", "py4j", "delta", "pandas"),
    "server": ("flask", "sklearn", "scipy"),
    "database": ("sqlalchemy", "adbc_driver_manager", "adbc_driver_sqlite", "adbc_driver_postgresql", "pymysql"),
    "s3": ("obstore", "boto3"),
    "abfss": ("azure",),
    "gs": ("google",),
}


def sentence(what: str, package: str) -> str:
    """That `what` needs a package, and how to install it."""
    extra = next((extra for extra, packages in _BRINGS.items() if package in packages), None)
    return f"{what} needs {package}: pip install " + (package if extra is None else f"'spark-tracking[{extra}]'")


def require(what: str, *packages: str) -> None:
    """Raise an ImportError that names what needs a package, and the extra that brings it, where one is not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise ImportError(sentence(what, package), name=package)
