#!/bin/sh
# The sources on each supported Spark (4.0, 4.1, 4.2) in each kind (classic, workers of their own, Connect).
# Usage: tests/sources/matrix.sh [FOLDER FOR THE ENVIRONMENTS] [VERSION ...]
# Each version gets a virtual environment of its own, which is kept for the next time. Needs Java 17 and PyPI.
set -eu

die() { echo "matrix: $1" >&2; exit 1; }

root=$(cd "$(dirname "$0")/../.." && pwd)
envs=${1:-$root/.matrix}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- 4.0.1 4.1.1 4.2.0
command -v java >/dev/null || die "Java 17 is missing"

for version in "$@"; do
    env=$envs/spark-$version
    if [ ! -e "$env/.ready" ]; then
        "${PYTHON:-python3}" -m venv "$env"
        "$env/bin/python" -m pip install --quiet --disable-pip-version-check "pyspark[connect]==$version" "pandas<3" "mlflow>=3.1,<4" -e "$root"
        touch "$env/.ready"
    fi
    for mode in classic cluster connect; do
        echo "== Spark $version, $mode"
        "$env/bin/python" "$root/tests/sources/modes.py" "$mode" || die "Spark $version, $mode: failed"
    done
done
echo "matrix: all passed"
