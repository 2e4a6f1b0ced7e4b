"""What may be a secret is in no text that leaves us, wherever in a URI or a variable it stood."""

from __future__ import annotations

import os
import string
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote, unquote

import mlflow
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import spark_tracking
from spark_tracking.address import LakeUri
from spark_tracking.cluster.findings import OK, Finding
from spark_tracking.cluster.settings import destination
from spark_tracking.errors import InvalidInput, SparkTrackingError
from spark_tracking.masking import masked, without_secrets
from spark_tracking.mirror.result import SyncResult
from spark_tracking.sources.options import Defaults, parse_options

PLACES = (
    "delta://u:{}@h/x", "delta://{}@h/x", "http://{}@host", "https://ann:{}@host:5000/p", "delta+s3://{}@b", "delta+s3://k:{}@b/l",
    "http://h/x?password={}", "http://h/x?{}", "http://h/x#{}", "postgresql://ann:{}@db:5432/mlflow", "postgresql:///mlflow?password={}",
    "mysql+pymysql://ann:{}@db/mlflow?charset=utf8", "delta:lake?token={}", "delta:lake#{}", "https://a.blob.core.windows.net/c?sv=1&sig={}",
    "azureml://{}@eastus.api.azureml.ms/x", "gs://k:{}@b", "adbazureml://u:{}@x", "nonsense://u:{}@h",
)  # fmt: skip
SENTENCES = (
    "{}", "cannot open '{}': refused", 'GET "{}" failed', "Max retries exceeded with url: {} (Caused by x)", "[{}, other]",
    "java.io.IOException: {}\n\tat org.apache.Spark(x.java:1)", "see http://h/ and {}",
)  # fmt: skip
ASCII = string.ascii_letters + string.digits
plain = st.text(ASCII + "!$&*+-._~:/#?@=", min_size=6, max_size=20).map(lambda text: f"Zq{text}9x")
odd = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=6, max_size=20).map(lambda text: f"Zq{text}9x")


def leaks(secret: str, text: str) -> bool:
    return any(form in text for form in (secret, quote(secret), quote(secret, safe=""), unquote(secret)))


@given(st.sampled_from(PLACES), st.sampled_from(SENTENCES), plain.map(lambda text: quote(text, safe="")))
def test_a_percent_encoded_secret_is_masked_in_any_sentence(place: str, sentence: str, secret: str) -> None:
    assert not leaks(secret, masked(sentence.format(place.format(secret))))


@given(st.sampled_from(PLACES), st.sampled_from(SENTENCES), odd)
@example("delta://u:{}@h/x", "cannot open '{}': refused", "Zq a'b\"c@/?#9x")
def test_a_secret_of_any_characters_is_masked_where_the_uri_is_known(place: str, sentence: str, secret: str) -> None:
    uri = place.format(secret)
    assert not leaks(secret, masked(sentence.format(uri), uri))
    assert not leaks(secret, masked(f"login failed for password {secret!r}", uri))
    assert masked(masked(uri, uri)) == masked(uri, uri)


@given(st.sampled_from(PLACES), odd)
def test_no_refusal_result_or_finding_shows_it(place: str, secret: str) -> None:
    uri = place.format(secret)
    for refuse in (destination, LakeUri.parse, lambda uri: parse_options({"tracking_uri": uri, "path": "runs"}, None, Defaults())):
        with pytest.raises(SparkTrackingError) as refused:
            refuse(uri)
        assert not leaks(secret, str(refused.value))
    assert not leaks(secret, repr(SyncResult(uri, uri)))
    assert not leaks(quote(secret, safe=""), str(Finding(OK, "x", f"tracks to {place.format(quote(secret, safe=''))}.")))


@given(plain)
def test_a_variables_value_and_a_named_value_are_masked_in_any_text(secret: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_TOKEN", secret)
        assert not leaks(secret, str(InvalidInput(f"the proxy answered: {secret} is not welcome")))
    word = quote(secret, safe="").replace("%", "")
    for text in (f"fe_sendauth: password={word} host=h", f'{{"token": "{word}", "a": 1}}', f"Authorization: Bearer {word}"):
        assert word not in masked(text)


@pytest.mark.parametrize(
    "uri",
    [
        "delta+abfss://container@account.dfs.core.windows.net/Users/ann@example.com/lake", "s3://bucket/ann@example.com/lake", "databricks",
        "delta:///Users/ann@example.com/lake", "databricks://profile", "sqlite:////srv/mlflow.db?mode=ro", "models:/wine@champion",
        "http://127.0.0.1:5000/prefix", "delta:lake",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(uri: str) -> None:
    assert masked(uri) == masked(uri, uri) == without_secrets(uri) == uri
    assert masked(f"The server '{uri}' does not answer.") == f"The server '{uri}' does not answer."


@pytest.mark.parametrize(
    "uri", ["delta://u:hush-1@h/x", "http://hush-1@127.0.0.1:9", "http://127.0.0.1:9/?password=hush-1", "delta+s3://hush-1@b"]
)
def test_doctor_command_reader_and_init_script_say_nothing_of_it(uri: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "conf").mkdir(parents=True)
    script = Path(__file__).parents[2] / "init_scripts" / "spark-tracking-init.sh"
    environ = {**os.environ, "SPARK_TRACKING_URI": uri, "SPARK_TRACKING_INIT_ROOT": str(root), "SPARK_CONF_DIR": "/conf"}
    done = subprocess.run([script], env={**environ, "SPARK_TRACKING_PYTHON": sys.executable}, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr + "".join(file.read_text() for file in root.rglob("*") if file.is_file())
    assert "left as it was" in said
    mlflow.set_tracking_uri(uri)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARK_TRACKING_URI", uri)
        said += str(spark_tracking.doctor(read_only=True))
    if not uri.startswith("http"):  # of which the reader waits for an answer for minutes
        with pytest.raises(SparkTrackingError) as refused:
            spark_tracking.read("runs_latest")
        said += str(refused.value)
    assert "hush" not in said
