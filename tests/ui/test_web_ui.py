"""MLflow's web UI on a lake, as a person sees it: headless Chromium walks the pages, and no request may fail.

Screenshots are kept in tests/screenshots (ignored by git), to be looked at.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import requests

webdriver = pytest.importorskip("selenium.webdriver", reason="the browser tests need selenium (pip install selenium)")
from selenium.webdriver.chrome.service import Service  # noqa: E402

from tests.servers import mlflow_server  # noqa: E402

SCREENSHOTS = Path(__file__).parent.parent / "screenshots"
QUIET = ("favicon", "/mlflow/ui-telemetry", "/mlflow/users/current")
"""Requests that fail with any backend: the last is answered by MLflow's basic-auth app only."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="the browser tests need Chromium (on Debian: apt-get install chromium chromium-driver)",
    ),
]


class Echo(mlflow.pyfunc.PythonModel):
    """The smallest model that there is."""

    def predict(self, context, model_input, params=None):
        return model_input


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An `mlflow server` on a lake with an experiment of nested runs, curves, a logged and a registered model."""
    folder = tmp_path_factory.mktemp("ui")
    lake = f"delta://{folder}/lake"
    with mlflow_server(lake, folder) as started:
        yield {"url": started.url, **_runs(lake)}


def _runs(lake: str) -> dict[str, str]:
    mlflow.set_tracking_uri(lake)
    try:
        experiment = mlflow.create_experiment("wine")
        children = []
        with mlflow.start_run(experiment_id=experiment, run_name="search"):
            for depth in (2, 4, 8):
                with mlflow.start_run(experiment_id=experiment, run_name=f"depth-{depth}", nested=True) as run:
                    mlflow.log_params({"max_depth": depth, "criterion": "gini"})
                    for step in range(20):
                        mlflow.log_metrics({"accuracy": 1 - 1 / (depth + step), "loss": 1 / (depth + step)}, step=step)
                    mlflow.log_metrics({"ratio": math.inf, "undefined": math.nan})
                    children.append(run.info.run_id)
            model = mlflow.pyfunc.log_model(name="echo", python_model=Echo(), registered_model_name="echo")
        mlflow.MlflowClient().set_registered_model_alias("echo", "champion", 1)
        return {"experiment": experiment, "run": children[0], "runs": json.dumps(children), "model": model.model_id or ""}
    finally:
        mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    quiet = ("background-networking", "component-update", "sync", "gpu", "quic")
    for flag in ("headless=new", "no-sandbox", "no-first-run", *(f"disable-{name}" for name in quiet)):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.add_argument("--window-size=1500,1000")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_page_load_timeout(120)
    SCREENSHOTS.mkdir(exist_ok=True)
    yield driver
    driver.quit()


def visit(browser: webdriver.Chrome, server: dict[str, str], path: str, name: str, expected: list[str]) -> str:
    """Open a page of the UI, wait until it shows all that is expected, keep a screenshot; returns the page's text."""
    browser.get_log("performance")
    browser.get("about:blank")
    browser.get(f"{server['url']}/#/{path}")
    text, deadline = "", time.monotonic() + 90
    while time.monotonic() < deadline:
        text = str(browser.execute_script("return document.body ? document.body.innerText : ''"))
        if all(word in text for word in expected):
            break
        time.sleep(0.5)
    time.sleep(1)  # charts draw after their data came
    browser.save_screenshot(str(SCREENSHOTS / f"{name}.png"))
    missing = [word for word in expected if word not in text]
    assert not missing, f"the page '{path}' does not show {missing}; it shows: {text[:2000]}"
    assert not failed_requests(browser)
    for apology in ("Something went wrong", "Internal Server Error", "not implemented"):
        assert apology.lower() not in text.lower()
    return text


def failed_requests(browser: webdriver.Chrome) -> list[str]:
    """Requests that the server answered with an error since the last look."""
    found = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        response = message.get("params", {}).get("response", {})
        failed = message["method"] == "Network.responseReceived" and response["status"] >= 400
        if failed and not any(part in response["url"] for part in QUIET):
            found.append(f"{response['status']} {response['url']}")
    return found


def test_the_experiment_list_shows_experiments(browser: webdriver.Chrome, server: dict[str, str]) -> None:
    visit(browser, server, "experiments", "experiments", ["wine", "Default"])


def test_the_run_table_shows_runs_with_metrics_and_params(browser: webdriver.Chrome, server: dict[str, str]) -> None:
    visit(browser, server, f"experiments/{server['experiment']}/runs", "runs", ["search", "Run Name"])


def test_the_run_page_shows_params_metrics_and_the_model(browser: webdriver.Chrome, server: dict[str, str]) -> None:
    page = f"experiments/{server['experiment']}/runs/{server['run']}"
    visit(browser, server, page, "run", ["depth-2", "max_depth", "gini", "accuracy", "loss", "ratio"])


def test_the_run_page_draws_metric_curves(browser: webdriver.Chrome, server: dict[str, str]) -> None:
    page = f"experiments/{server['experiment']}/runs/{server['run']}/model-metrics"
    visit(browser, server, page, "run-curves", ["accuracy", "loss"])
    assert browser.execute_script("return document.querySelectorAll('.js-plotly-plot, canvas, svg.main-svg').length") > 0


def test_the_compare_view_draws_parallel_coordinates_and_scatter(browser: webdriver.Chrome, server: dict[str, str]) -> None:
    runs, experiments = server["runs"], json.dumps([server["experiment"]])
    page = f"compare-runs?runs={runs}&experiments={experiments}"
    visit(browser, server, page, "compare", ["Parallel Coordinates Plot", "Scatter Plot", "depth-4", "depth-8"])


def test_the_models_pages_show_versions_and_aliases(browser: webdriver.Chrome, server: dict[str, str]) -> None:
    visit(browser, server, "models", "models", ["echo", "champion"])
    visit(browser, server, "models/echo", "model", ["echo", "Version 1", "champion"])
    visit(browser, server, "models/echo/versions/1", "model-version", ["echo", "Version 1"])


def test_the_logged_model_page_shows_its_source_run(browser: webdriver.Chrome, server: dict[str, str]) -> None:
    visit(browser, server, f"experiments/{server['experiment']}/models", "logged-models", ["echo"])
    page = f"experiments/{server['experiment']}/models/{server['model']}"
    visit(browser, server, page, "logged-model", ["echo", "search"])


def test_pages_of_what_a_lake_does_not_keep_are_quiet(browser: webdriver.Chrome, server: dict[str, str]) -> None:
    for tab in ("traces", "evaluation-runs", "datasets"):
        visit(browser, server, f"experiments/{server['experiment']}/{tab}", tab, ["wine"])
    visit(browser, server, "prompts", "prompts", ["Prompt"])


def test_a_deleted_run_leaves_the_table_and_comes_back_when_restored(browser: webdriver.Chrome, server: dict[str, str]) -> None:
    api = f"{server['url']}/api/2.0/mlflow/runs"
    page = f"experiments/{server['experiment']}/runs/{server['run']}"
    assert requests.post(f"{api}/delete", json={"run_id": server["run"]}, timeout=30).ok
    text = visit(browser, server, f"experiments/{server['experiment']}/runs", "runs-after-delete", ["search"])
    assert "depth-2" not in text
    assert requests.post(f"{api}/restore", json={"run_id": server["run"]}, timeout=30).ok
    visit(browser, server, page, "run-restored", ["depth-2", "max_depth"])
