#!/bin/sh
# The sources on each supported Spark (4.0, 4.1, 4.2) in each kind (classic, workers of their own, Connect).
# Usage: [PYTHON=…] [MODES="classic cluster connect"] tests/sources/matrix.sh [FOLDER FOR THE ENVIRONMENTS] [VERSION ...]
# PYTHON is of an environment with `.[dev]`; each version's own environment, which is kept for the next time, adds its pyspark.
set -eu

die() { echo "matrix: $1" >&2; exit 1; }

root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
envs=${1:-$root/.matrix}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- 4.0.1 4.1.1 4.2.0
[ -x "$python" ] || die "there is no $python; run 'make check' first, or set PYTHON"

packages() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

for version in "$@"; do
    env=$envs/spark-$version
    if [ ! -e "$env/.ready" ]; then
        "$python" -m venv "$env"
        "$env/bin/python" -m pip install --quiet --disable-pip-version-check "pyspark==$version"
        printf '%s\n' "$(packages "$python")" "$root" > "$(packages "$env/bin/python")/others.pth"
        touch "$env/.ready"
    fi
    for mode in ${MODES:-classic cluster connect}; do
        log=$env/$mode.log
        "$env/bin/python" "$root/tests/sources/modes.py" "$mode" > "$log" 2>&1 || { tail -n 40 "$log" >&2; die "Spark $version, $mode: failed"; }
        grep -ao 'ok: .*' "$log"
    done
done
echo "matrix: all passed"
