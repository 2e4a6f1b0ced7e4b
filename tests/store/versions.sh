#!/usr/bin/env bash
# Runs the store's tests with other versions of MLflow than the one in constraints.txt, each in a virtual environment of its own.
#   tests/store/versions.sh [VERSION ...]
# PYTHON names the interpreter, VENVS the folder of the environments (made once, then used again).
set -eu

cd "$(dirname "$0")/../.."
versions=${*:-3.1.4 3.4.0 3.8.1 3.12.0}
python=${PYTHON:-python3}
venvs=${VENVS:-.venv/versions}
failed=

for version in $versions; do
    venv="$venvs/mlflow-$version"
    if [ ! -x "$venv/bin/pytest" ]; then
        "$python" -m venv "$venv"
        "$venv/bin/pip" install --quiet "mlflow==$version" -e . deltalake==1.6.6 datafusion==55.0.0 'pandas<3' 'sqlalchemy<2.1' scikit-learn skops \
            hypothesis pytest pytest-timeout
    fi
    echo "== mlflow $version"
    "$venv/bin/python" -m pytest -q -p no:cacheprovider --timeout 300 tests/store || failed="$failed $version"
done

[ -z "$failed" ] || { echo "failed with mlflow$failed" >&2; exit 1; }
