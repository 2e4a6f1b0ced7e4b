#!/usr/bin/env bats
# The init script in a scratch root: a Spark configuration folder, no daemons. $PYTHON is the Python that has the package.

# What the real Python answers to right and to wrong settings is asked once: to name what is wrong it imports MLflow, which takes seconds.
setup_file() {
  answer right http://mlflow.example.com:5000
  answer wrong adbazureml://x
}

answer() {
  local folder=$BATS_FILE_TMPDIR/$1 code=0
  mkdir "$folder"
  SPARK_TRACKING_URI=$2 "${PYTHON:-python3}" -m spark_tracking.cluster.environment >"$folder/out" 2>"$folder/err" || code=$?
  cat >"$folder/python" <<STUB
#!/bin/sh
case "\$*" in *spark_tracking.cluster.environment*) cat "$folder/out"; cat "$folder/err" >&2; exit $code ;; esac
exec "${PYTHON:-python3}" "\$@"
STUB
  chmod +x "$folder/python"
}

# From here on Python's half of the script answers at once.
quick_python() { export SPARK_TRACKING_PYTHON=$BATS_FILE_TMPDIR/$1/python; }

setup() {
  SCRIPT=$BATS_TEST_DIRNAME/../../../init_scripts/spark-tracking-init.sh
  ROOT=$BATS_TEST_TMPDIR/root
  mkdir -p "$ROOT/conf"
  export TMPDIR=$BATS_TEST_TMPDIR
  export SPARK_TRACKING_INIT_ROOT=$ROOT SPARK_CONF_DIR=/conf SPARK_TRACKING_PYTHON=${PYTHON:-python3}
  export SPARK_TRACKING_URI=http://mlflow.example.com:5000
  unset SPARK_HOME SPARK_TRACKING_STRICT SPARK_TRACKING_PACKAGE SPARK_TRACKING_EXPERIMENT MLFLOW_TRACKING_URI DATABRICKS_RUNTIME_VERSION
}

# What a daemon's environment holds after Spark has read its spark-env.sh.
seen_by_daemon() {
  env -i PATH="$PATH" bash -euc 'set -a; . "$1"; set +a; env' _ "$ROOT/conf/spark-env.sh"
}

tree() { (cd "$ROOT" && find . -type f -exec sh -c 'for f; do printf "%s %s %s\n" "$f" "$(stat -c "%a" "$f")" "$(md5sum <"$f")"; done' _ {} + | sort); }

@test "a daemon that reads spark-env.sh and a login shell track to the server" {
  SPARK_TRACKING_EXPERIMENT="it's {user}'s" run "$SCRIPT"
  [ "$status" -eq 0 ]
  seen_by_daemon | grep -qx 'MLFLOW_TRACKING_URI=http://mlflow.example.com:5000'
  seen_by_daemon | grep -qx 'MLFLOW_REGISTRY_URI=http://mlflow.example.com:5000'
  seen_by_daemon | grep -qx "SPARK_TRACKING_EXPERIMENT=it's {user}'s"
  run env -i PATH="$PATH" sh -c '. "$1"; env' _ "$ROOT/etc/profile.d/spark-tracking.sh"
  [[ "$output" == *MLFLOW_TRACKING_URI=http://mlflow.example.com:5000* ]]
}

# bats test_tags=slow
@test "a hundred starts leave what one leaves" {
  printf 'export MINE=1\n' >"$ROOT/conf/spark-env.sh"
  quick_python right
  "$SCRIPT"
  tree >"$BATS_TEST_TMPDIR/once"
  time_once=$(stat -c %Y "$ROOT/etc/spark-tracking/spark-tracking-env.sh")
  for _ in $(seq 99); do "$SCRIPT" 2>/dev/null; done
  tree | diff "$BATS_TEST_TMPDIR/once" -
  [ "$time_once" = "$(stat -c %Y "$ROOT/etc/spark-tracking/spark-tracking-env.sh")" ]
}

# bats test_tags=slow
@test "killed at any moment, spark-env.sh stays whole and the next start is right" {
  printf 'export MINE=1\n' >"$ROOT/conf/spark-env.sh"
  quick_python right
  "$SCRIPT"
  tree >"$BATS_TEST_TMPDIR/reference"
  for delay in 0.002 0.005 0.008 0.01 0.012 0.015 0.018 0.02 0.025 0.03 0.035 0.04 0.05 0.06 0.08; do
    rm -rf "$ROOT"/etc
    printf 'export MINE=1\n' >"$ROOT/conf/spark-env.sh"
    timeout -s KILL "$delay" "$SCRIPT" 2>/dev/null || true
    seen_by_daemon | grep -qx 'MINE=1'
    "$SCRIPT" 2>/dev/null
    tree | diff "$BATS_TEST_TMPDIR/reference" -
  done
}

@test "what a killed start left lying is removed by the next" {
  mkdir -p "$ROOT/etc/spark-tracking"
  touch "$ROOT/conf/spark-env.sh.spark-tracking.$HOSTNAME.aB3dE6" "$ROOT/etc/spark-tracking/spark-tracking-env.sh.spark-tracking.$HOSTNAME.aB3dE6"
  touch "$ROOT/conf/spark-env.sh.spark-tracking.another-node.aB3dE6" # at work in a folder that nodes share
  quick_python right
  "$SCRIPT"
  [ "$(find "$ROOT" -name '*.spark-tracking.*')" = "$ROOT/conf/spark-env.sh.spark-tracking.another-node.aB3dE6" ]
}

# As many strict starts at once as $1 says: all succeed, and leave what one leaves.
starts_at_once() {
  printf 'export MINE=1\n' >"$ROOT/conf/spark-env.sh"
  "$SCRIPT"
  tree >"$BATS_TEST_TMPDIR/once"
  rm -rf "$ROOT"/etc
  printf 'export MINE=1\n' >"$ROOT/conf/spark-env.sh"
  local number
  for number in $(seq "$1"); do
    { SPARK_TRACKING_STRICT=true "$SCRIPT" 2>"$BATS_TEST_TMPDIR/log.$number" || touch "$BATS_TEST_TMPDIR/failed.$number"; } &
  done
  wait
  for number in "$BATS_TEST_TMPDIR"/failed.*; do
    [ ! -e "$number" ] || { cat "${number/failed/log}"; return 1; }
  done
  tree | diff "$BATS_TEST_TMPDIR/once" -
}

@test "a dozen strict starts at once end as one" {
  quick_python right
  starts_at_once 12
}

# bats test_tags=slow
@test "a hundred strict starts at once end as one" {
  starts_at_once 100
}

@test "strict starts at once end as one where there is no flock" {
  mkdir "$BATS_TEST_TMPDIR/bin"
  for tool in $(compgen -c | sort -u); do
    [ "$tool" = flock ] || [ -z "$(type -P "$tool")" ] || ln -sf "$(type -P "$tool")" "$BATS_TEST_TMPDIR/bin/$tool"
  done
  quick_python right
  PATH=$BATS_TEST_TMPDIR/bin starts_at_once 12
}

@test "other settings replace the earlier ones" {
  "$SCRIPT"
  SPARK_TRACKING_URI=delta+s3://bucket/lake "$SCRIPT"
  seen_by_daemon | grep -qx 'MLFLOW_TRACKING_URI=delta+s3://bucket/lake'
  [ "$(grep -c '>>> spark-tracking' "$ROOT/conf/spark-env.sh")" -eq 1 ]
}

@test "--uninstall gives back each file byte by byte" {
  for text in '' 'export A=1' 'export A=1\n' '#!/bin/sh\n\n\nexport A=1\n\n'; do
    printf "$text" >"$ROOT/conf/spark-env.sh"
    chmod 640 "$ROOT/conf/spark-env.sh"
    cp -p "$ROOT/conf/spark-env.sh" "$BATS_TEST_TMPDIR/before"
    "$SCRIPT"
    "$SCRIPT" --uninstall
    [ -z "$text" ] || cmp "$BATS_TEST_TMPDIR/before" "$ROOT/conf/spark-env.sh"
    [ -z "$text" ] || [ "$(stat -c %a "$ROOT/conf/spark-env.sh")" = 640 ]
    [ ! -e "$ROOT/etc/spark-tracking" ]
    [ ! -e "$ROOT/etc/profile.d/spark-tracking.sh" ]
  done
}

@test "--uninstall keeps lines that were added after the block, and a block that lost its end loses no foreign line" {
  printf 'export A=1' >"$ROOT/conf/spark-env.sh"
  "$SCRIPT"
  echo 'export B=2' >>"$ROOT/conf/spark-env.sh"
  "$SCRIPT" --uninstall
  [ "$(cat "$ROOT/conf/spark-env.sh")" = $'export A=1\nexport B=2' ]
  "$SCRIPT"
  sed -i '/^# <<</d' "$ROOT/conf/spark-env.sh"
  echo 'export C=3' >>"$ROOT/conf/spark-env.sh"
  "$SCRIPT"
  seen_by_daemon | grep -qx 'C=3'
}

@test "--uninstall where nothing was installed changes nothing" {
  printf 'export A=1\n' >"$ROOT/conf/spark-env.sh"
  tree >"$BATS_TEST_TMPDIR/before"
  "$SCRIPT" --uninstall
  tree | diff "$BATS_TEST_TMPDIR/before" -
}

@test "a spark-env.sh that is a link stays one" {
  printf 'export A=1\n' >"$ROOT/real-env.sh"
  ln -s "$ROOT/real-env.sh" "$ROOT/conf/spark-env.sh"
  "$SCRIPT"
  [ -L "$ROOT/conf/spark-env.sh" ]
  grep -q 'spark-tracking' "$ROOT/real-env.sh"
}

@test "--print tells and changes nothing" {
  printf 'export A=1\n' >"$ROOT/conf/spark-env.sh"
  tree >"$BATS_TEST_TMPDIR/before"
  SPARK_TRACKING_PACKAGE=spark-tracking==99.0 run "$SCRIPT" --print
  [ "$status" -eq 0 ]
  [[ "$output" == *'would install spark-tracking==99.0'* ]]
  [[ "$output" == *'MLFLOW_TRACKING_URI=http://mlflow.example.com:5000'* ]]
  tree | diff "$BATS_TEST_TMPDIR/before" -
}

@test "--print of wrong settings: the reason is on standard error; strict fails" {
  quick_python wrong
  "$SCRIPT" --print >"$BATS_TEST_TMPDIR/out" 2>"$BATS_TEST_TMPDIR/err"
  grep -q 'would be left as it was: .*retired' "$BATS_TEST_TMPDIR/err"
  SPARK_TRACKING_STRICT=true run "$SCRIPT" --print
  [ "$status" -eq 1 ]
  [[ "${lines[-1]}" == *retired* ]]
  quick_python right
  SPARK_TRACKING_STRICT=true run "$SCRIPT" --print
  [ "$status" -eq 0 ]
}

@test "wrong settings: the cluster starts, tracking is as it was, and the reason is in the log and the environment" {
  "$SCRIPT"
  quick_python wrong
  run "$SCRIPT"
  [ "$status" -eq 0 ]
  [[ "$output" == *'tracking is left as it was'*'retired'* ]]
  [ -z "$(seen_by_daemon | grep MLFLOW_TRACKING_URI)" ]
  seen_by_daemon | grep -q 'SPARK_TRACKING_PROBLEM=.*retired'
}

@test "wrong settings, strict: the start fails with the reason as the last line" {
  quick_python wrong
  SPARK_TRACKING_STRICT=true run "$SCRIPT"
  [ "$status" -eq 1 ]
  [[ "${lines[-1]}" == *'retired with azureml-mlflow 1.43'* ]]
}

@test "right settings, strict: the start succeeds" {
  SPARK_TRACKING_STRICT=true run "$SCRIPT"
  [ "$status" -eq 0 ]
}

@test "a setting that is misspelt is named with its neighbour" {
  SPARK_TRACKING_EXPERIMNT=churn run "$SCRIPT"
  [[ "$output" == *'SPARK_TRACKING_EXPERIMNT'*'SPARK_TRACKING_EXPERIMENT'* ]]
}

@test "no secret is written or printed, also where it was put into the wrong place" {
  export AZURE_TENANT_ID=t AZURE_CLIENT_ID=c AZURE_CLIENT_SECRET=hush-1 MLFLOW_TRACKING_PASSWORD=hush-2 MLFLOW_TRACKING_TOKEN=hush-3
  run "$SCRIPT"
  [[ "$output" != *hush* ]]
  SPARK_TRACKING_URI=https://ann:hush-4@mlflow.example.com run "$SCRIPT"
  [[ "$output" == *MLFLOW_TRACKING_PASSWORD* ]]
  [[ "$output" != *hush* ]]
  SPARK_TRACKING_PACKAGE=https://ann:hush-5@127.0.0.1:9/no-package.whl run "$SCRIPT" --print
  [[ "$output" != *hush* ]]
  [[ "$output" == *PIP_INDEX_URL* ]]
  for uri in delta://u:hush-6@h/x http://hush-7@host 'delta+s3://hush-8@b' 'http://host/#hush-9' 'http://host?password=hush-10' \
    'postgresql://u:hush-11@db/x' 'nonsense://u:hush-12@h'; do
    SPARK_TRACKING_URI=$uri run "$SCRIPT"
    [[ "$output" == *'left as it was'* ]]
    [[ "$output" != *hush* ]]
  done
  [ -z "$(grep -r hush "$ROOT")" ]
}

@test "a package's signed URL is in nobody's process list, and in no output" {
  "$SPARK_TRACKING_PYTHON" -m venv --without-pip "$BATS_TEST_TMPDIR/bare"
  cat >"$BATS_TEST_TMPDIR/python" <<STUB
#!/bin/sh
case "\$*" in *"-m pip install"*) cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' >"$BATS_TEST_TMPDIR/processes"; exit 1 ;; esac
exec "$BATS_TEST_TMPDIR/bare/bin/python" "\$@"
STUB
  chmod +x "$BATS_TEST_TMPDIR/python"
  SPARK_TRACKING_PYTHON=$BATS_TEST_TMPDIR/python
  SPARK_TRACKING_PACKAGE='https://127.0.0.1:9/spark_tracking-0.1.0-py3-none-any.whl?sig=hush' run "$SCRIPT"
  [[ "$output" != *hush* ]]
  grep -q -- '-m pip install' "$BATS_TEST_TMPDIR/processes"
  [ -z "$(grep -o hush "$BATS_TEST_TMPDIR/processes")" ]
}

@test "nothing to install: a start takes less than two seconds" {
  export SPARK_TRACKING_PACKAGE=spark-tracking
  before=$(date +%s%N)
  "$SCRIPT"
  [ $((($(date +%s%N) - before) / 1000000)) -lt 2000 ]
}

@test "it never reads from the terminal" {
  run bash -c 'yes answer | head -c 100000 | { "$1" 2>/dev/null; cat | wc -c; }' _ "$SCRIPT"
  [ "$output" -eq 100000 ]
}

@test "a wheel that is not there: said, and the cluster starts" {
  "$SPARK_TRACKING_PYTHON" -m venv --without-pip "$BATS_TEST_TMPDIR/bare"
  export SPARK_TRACKING_PYTHON=$BATS_TEST_TMPDIR/bare/bin/python SPARK_TRACKING_PACKAGE=/Volumes/x/spark_tracking-0.1.0-py3-none-any.whl
  run "$SCRIPT"
  [ "$status" -eq 0 ]
  [[ "$output" == *"'/Volumes/x/spark_tracking-0.1.0-py3-none-any.whl' cannot be read from this node"* ]]
  seen_by_daemon | grep -q 'SPARK_TRACKING_PROBLEM=.*cannot be read'
}

@test "a wheel with an extra and a version that is there already: nothing is installed; an extra that is missing is" {
  version=$("$SPARK_TRACKING_PYTHON" -c 'from importlib.metadata import version; print(version("spark-tracking"))')
  SPARK_TRACKING_PACKAGE="/nowhere/spark_tracking-$version-py3-none-any.whl[s3]" run "$SCRIPT"
  [[ "$output" != *installing* ]]
  SPARK_TRACKING_PACKAGE="/nowhere/spark_tracking-$version-py3-none-any.whl[azure]" run "$SCRIPT"
  [[ "$output" == *"'/nowhere/spark_tracking-$version-py3-none-any.whl' cannot be read from this node"* ]]
}

@test "no package and none to install: said with what to set" {
  "$SPARK_TRACKING_PYTHON" -m venv --without-pip "$BATS_TEST_TMPDIR/bare"
  SPARK_TRACKING_PYTHON=$BATS_TEST_TMPDIR/bare/bin/python run "$SCRIPT"
  [ "$status" -eq 0 ]
  [[ "$output" == *'set SPARK_TRACKING_PACKAGE'* ]]
}

@test "an old Databricks Runtime: what works and what does not is said" {
  "$SPARK_TRACKING_PYTHON" -m venv --without-pip "$BATS_TEST_TMPDIR/bare"
  export DATABRICKS_RUNTIME_VERSION=15.4 SPARK_TRACKING_PYTHON=$BATS_TEST_TMPDIR/bare/bin/python
  run "$SCRIPT"
  [[ "$output" == *'15.4'*'MLflow 2'*'Works here'*'Does not'*'17.3'* ]]
}

@test "on Databricks the runtime's own Python and configuration folder are taken" {
  mkdir -p "$ROOT/databricks/spark/conf" "$ROOT/databricks/python/bin"
  ln -s "$(command -v "$SPARK_TRACKING_PYTHON")" "$ROOT/databricks/python/bin/real"
  printf '#!/bin/sh\nexec "%s" "$@"\n' "$(command -v "$SPARK_TRACKING_PYTHON")" >"$ROOT/databricks/python/bin/python"
  chmod +x "$ROOT/databricks/python/bin/python"
  unset SPARK_TRACKING_PYTHON SPARK_CONF_DIR
  run "$SCRIPT" --print
  [[ "$output" == *"Python: $ROOT/databricks/python/bin/python"* ]]
  [[ "$output" == *"would add to $ROOT/databricks/spark/conf/spark-env.sh"* ]]
}

@test "a place that cannot be written: said, and the cluster starts; strict fails" {
  touch "$ROOT/etc"
  run "$SCRIPT"
  [ "$status" -eq 0 ]
  [[ "$output" == *'cannot be written'* ]]
  SPARK_TRACKING_STRICT=1 run "$SCRIPT"
  [ "$status" -eq 1 ]
  [[ "${lines[-1]}" == *'cannot be written'* ]]
}

@test "an unknown option fails with the usage" {
  run "$SCRIPT" --unistall
  [ "$status" -eq 2 ]
  [[ "$output" == *Usage* ]]
}
