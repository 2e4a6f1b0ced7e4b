#!/usr/bin/env bash
# Makes every Python process that Spark starts on this node track to one MLflow server.
#
# It installs the package if asked to, lets it check the settings, and writes what they come to into one file that
# spark-env.sh and the login shell read. Run it as a Databricks init script, or before the Spark daemons start elsewhere.
# Safe to run again, to kill at any moment, and to undo. It never asks anything and never handles a secret.
set -eu

usage() {
  cat <<'TEXT'
Usage: spark-tracking-init.sh [--print | --uninstall | --help]

  --print      say what a start would do, and change nothing
  --uninstall  take everything back that a start has written (the package stays)

Settings, from the environment:
  SPARK_TRACKING_URI           databricks, http(s)://..., delta+abfss://... (or s3, gs), azureml://...
  SPARK_TRACKING_AZURE_*       SUBSCRIPTION, RESOURCE_GROUP, WORKSPACE, REGION, or CONFIG: instead of the URI
  SPARK_TRACKING_REGISTRY_URI  the model registry, if it is another server
  SPARK_TRACKING_EXPERIMENT    the experiment of processes that name none: may hold {user} {job} {notebook} {cluster}
  SPARK_TRACKING_PACKAGE       what to install: a requirement, or a wheel's path (its folder may hold what it needs);
                               [s3], [abfss], [gs] or [azure] behind either adds what such a destination needs
  SPARK_TRACKING_PYTHON        the Python to install into, if not the platform's own
  SPARK_TRACKING_STRICT        true: wrong settings fail the start; false (default): tracking stays as it was
  SPARK_TRACKING_INIT_ROOT     a folder to take for /, for a trial run
TEXT
}

BEGIN_MARK='# >>> spark-tracking >>> (spark-tracking-init.sh --uninstall removes this block)'
JOINED_MARK='# >>> spark-tracking >>> (no line break before; spark-tracking-init.sh --uninstall removes this block)'
END_MARK='# <<< spark-tracking <<<'
root=${SPARK_TRACKING_INIT_ROOT:-}

log() { printf 'spark-tracking: %s\n' "$*" >&2; }
# What spark_tracking.masking does, for texts from before the package is there.
masked() { sed -E -e 's,//[^[:space:]]*@,//***@,g' -e 's,(://[^[:space:]?#]*)([?#])[^[:space:]]*,\1\2***,g'; }
scratch=
locked=
clean_up() { [ -z "$scratch" ] || rm -rf "$scratch"; }
trap clean_up EXIT

# --- where things lie -----------------------------------------------------------------------------------------------

find_python() {
  local candidate
  for candidate in "${SPARK_TRACKING_PYTHON:-}" "$root/databricks/python/bin/python" "${PYSPARK_PYTHON:-}" python3; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
}

find_conf_dir() {
  local candidate
  for candidate in "$root/databricks/spark/conf" "${SPARK_CONF_DIR:+$root$SPARK_CONF_DIR}" "$root/etc/spark/conf" "${SPARK_HOME:+$root$SPARK_HOME/conf}"; do
    if [ -n "$candidate" ] && [ -d "$candidate" ]; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  if [ -n "${SPARK_CONF_DIR:-}${SPARK_HOME:-}" ]; then
    printf '%s\n' "$root${SPARK_CONF_DIR:-$SPARK_HOME/conf}" # it will be made
  fi
}

locate() {
  python=$(find_python)
  conf_dir=$(find_conf_dir)
  spark_env=${conf_dir:+$conf_dir/spark-env.sh}
  state_dir=$root/etc/spark-tracking
  profile=$root/etc/profile.d/spark-tracking.sh
  if ! writable "$state_dir" && [ -n "$conf_dir" ]; then # not an administrator: Spark's own folder has to do
    state_dir=$conf_dir
    profile=
  fi
  env_file=$state_dir/spark-tracking-env.sh
}

# Whether a path can be written, or made in the nearest folder that exists.
writable() {
  local path=$1
  until [ -e "$path" ]; do path=$(dirname "$path"); done
  [ -w "$path" ]
}

# --- files: each is replaced whole, or not at all -------------------------------------------------------------------

# One start at a time on a node: they share files, and a Python to install into. Where there is no flock each file is still replaced whole.
lock() {
  command -v flock >/dev/null 2>&1 || return 0
  mkdir -p "$state_dir" 2>/dev/null && { exec 9<"$state_dir"; } 2>/dev/null || return 0
  if flock -w 1200 9; then locked=1; else log "another start has been at work for 20 minutes; going on beside it"; fi
}

# Standard input becomes the file; one that is the same already keeps its time.
write_file() {
  local file=$1 new
  [ ! -L "$file" ] || file=$(readlink -f "$file")
  mkdir -p "$(dirname "$file")" || return 1
  # Named by the node, since nodes may share the folder. Of a start that was killed here, where no other is at work now:
  [ -z "$locked" ] || rm -f "$file.spark-tracking.${HOSTNAME:-node}".??????
  new=$(mktemp "$file.spark-tracking.${HOSTNAME:-node}.XXXXXX") || return 1
  if [ -e "$file" ]; then cp -p "$file" "$new"; else chmod 644 "$new"; fi
  if ! cat >"$new"; then
    rm -f "$new"
    return 1
  fi
  if cmp -s "$new" "$file"; then rm -f "$new"; else mv -f "$new" "$file"; fi
}

# A file without our block, byte by byte as it was before. A block whose end is missing loses its first line only.
without_block() {
  [ -e "$1" ] || return 0
  awk -v begin="$BEGIN_MARK" -v joined="$JOINED_MARK" -v end="$END_MARK" -v open="$(ends_open "$1")" '
    function put(text) { printf "%s%s", (lines++ ? "\n" : ""), text }
    function give_back(  i) { for (i = 0; i < kept; i++) put(block[i]); kept = 0 }
    $0 == begin || $0 == joined { give_back(); inside = 1; bare = ($0 == joined); next }
    inside && $0 == end { inside = 0; kept = 0; if (bare) open_at = NR; next }
    inside { block[kept++] = $0; next }
    { put($0) }
    END { give_back(); if (lines && !open && open_at != NR) printf "\n" }
  ' "$1"
}

# 1 for a file whose last line has no line break.
ends_open() {
  if [ -s "$1" ] && [ "$(tail -c 1 "$1" | wc -l)" -eq 0 ]; then echo 1; else echo 0; fi
}

with_block() {
  local mark=$BEGIN_MARK
  without_block "$1" >"$scratch/rest" || return 1
  cat "$scratch/rest" || return 1
  if [ "$(ends_open "$scratch/rest")" -eq 1 ]; then
    mark=$JOINED_MARK
    printf '\n'
  fi
  printf '%s\n%s\n%s\n' "$mark" "$(source_line)" "$END_MARK"
}

source_line() {
  local quoted="'${env_file//\'/\'\\\'\'}'"
  printf 'if [ -r %s ]; then . %s; fi\n' "$quoted" "$quoted"
}

# --- the package ----------------------------------------------------------------------------------------------------

# Python puts the working folder first on its path, and a cluster's could hold anything.
run_python() { (cd / && "$python" "$@"); }

installed_version() {
  run_python -c 'import sys; from importlib.metadata import version; print(version(sys.argv[1]))' "${1:-spark-tracking}" 2>/dev/null || true
}

# Which version SPARK_TRACKING_PACKAGE asks for, where its text tells.
wanted_version() {
  case ${SPARK_TRACKING_PACKAGE:-} in
    *.whl | *.whl\[*) printf '%s\n' "${SPARK_TRACKING_PACKAGE##*/}" | cut -d- -f2 ;;
    *==*) printf '%s\n' "${SPARK_TRACKING_PACKAGE##*==}" ;;
    *) ;;
  esac
}

must_install() {
  [ -n "${SPARK_TRACKING_PACKAGE:-}" ] || return 1
  local have want
  have=$(installed_version)
  want=$(wanted_version)
  case $SPARK_TRACKING_PACKAGE in # an extra may be missing where the package is there
    *\[*azure*\]*) [ -n "$(installed_version azureml-mlflow)" ] || return 0 ;;
    *\[*s3*\]* | *\[*abfss*\]* | *\[*gs*\]*) [ -n "$(installed_version obstore)" ] || return 0 ;;
  esac
  [ -z "$have" ] || { [ -n "$want" ] && [ "$have" != "$want" ]; }
}

# The runtime's own packages stay as they are: pip refuses rather than replace one.
constraints() {
  run_python -c '
from importlib.metadata import distributions
keep = {"pyspark", "delta-spark", "mlflow", "mlflow-skinny", "mlflow-tracing", "pandas", "numpy", "pyarrow", "protobuf", "databricks-sdk"}
for found in distributions():
    if (found.metadata["Name"] or "").lower() in keep:
        print(found.metadata["Name"] + "==" + found.version)'
}

check_package() {
  local host=${SPARK_TRACKING_PACKAGE:-}
  host=${host#*://}
  case ${host%%/*} in
    *@*) problem="SPARK_TRACKING_PACKAGE carries credentials. Take them out of the URL: they belong into pip's own configuration, \
PIP_INDEX_URL from a secret scope or ~/.netrc" ;;
    *) return 0 ;;
  esac
  return 1
}

# A URL may be signed, and pip's arguments are seen by every user of this node: it goes by a file.
pip_install_url() {
  printf '%s\n' "$1" >"$scratch/requirement.txt"
  pip_install --requirement "$scratch/requirement.txt"
}

pip_install() {
  PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
    timeout 900 "$python" -m pip install --quiet --retries 1 --timeout 15 --constraint "$scratch/keep.txt" "$@" </dev/null >>"$scratch/pip.log" 2>&1
}

install_package() {
  local package=$SPARK_TRACKING_PACKAGE file
  check_package || return 1
  constraints >"$scratch/keep.txt"
  case $package in
    *://*) pip_install_url "$package" && return ;;
    *.whl | *.whl\[*)
      file=${package%%\[*}
      if [ ! -r "$file" ]; then
        problem="SPARK_TRACKING_PACKAGE='$(printf '%s' "$file" | masked)' cannot be read from this node"
        return 1
      fi
      pip_install --no-index --find-links "$(dirname "$file")" "$package" || pip_install "$package" && return
      ;;
    *) pip_install "$package" && return ;;
  esac
  problem="the package could not be installed: $(grep -v '^$' "$scratch/pip.log" | grep -i error | tail -n 1 | masked | cut -c 1-400)"
  explain_old_runtime
  return 1
}

runtime_version() {
  if [ -n "${DATABRICKS_RUNTIME_VERSION:-}" ]; then
    printf '%s\n' "$DATABRICKS_RUNTIME_VERSION"
  elif [ -r "$root/databricks/DBR_VERSION" ]; then
    head -n 1 "$root/databricks/DBR_VERSION"
  fi
}

explain_old_runtime() {
  local version major
  version=$(runtime_version)
  major=${version%%.*}
  case $major in
    '' | *[!0-9]*) return 0 ;;
  esac
  if [ "$major" -lt 17 ]; then
    problem="Databricks Runtime $version has Spark 3.5 and MLflow 2, which stay as they are; spark-tracking needs MLflow 3 on the cluster. \
Works here: %pip install spark-tracking in a notebook and spark_tracking's MLflow store from there. Does not: this cluster-wide setup, \
the Spark data sources, logging from executors. Take 17.3 LTS or newer ($problem)"
  fi
}

# --- what a start does ----------------------------------------------------------------------------------------------

# Sets $exports, or $problem.
settle() {
  exports=
  problem=
  if [ -z "$python" ]; then
    problem='no Python was found; set SPARK_TRACKING_PYTHON'
  elif ! must_install || { log "installing $(printf '%s' "$SPARK_TRACKING_PACKAGE" | masked)" && install_package; }; then
    check_settings
  fi
  [ -z "$problem" ]
}

check_settings() {
  if exports=$(run_python -m spark_tracking.cluster.environment 2>"$scratch/check.log"); then
    while IFS= read -r line; do log "$line"; done <"$scratch/check.log"
  elif [ -z "$(installed_version)" ]; then
    problem="spark-tracking is not installed for $python; set SPARK_TRACKING_PACKAGE, or install the cluster library"
    explain_old_runtime
  else
    problem=$(grep -v '^$' "$scratch/check.log" | tail -n 1 | masked)
  fi
}

content() {
  printf '# Written by spark-tracking-init.sh at each start; do not edit.\n'
  printf 'unset SPARK_TRACKING_PROBLEM SPARK_TRACKING_CONFIGURED\n'
  if [ -n "$problem" ]; then
    printf "export SPARK_TRACKING_PROBLEM='%s'\n" "${problem//\'/\'\\\'\'}"
  else
    printf '%s\n' "$exports"
  fi
  printf "export SPARK_TRACKING_ENV_FILE='%s'\n" "${env_file//\'/\'\\\'\'}"
}

start() {
  lock
  settle || log "tracking is left as it was: $problem"
  content | write_file "$env_file" || not_written "$env_file"
  if [ -z "$spark_env" ]; then
    log 'no Spark configuration folder was found (SPARK_CONF_DIR, SPARK_HOME): only login shells are set'
  elif ! with_block "$spark_env" >"$scratch/spark-env" || ! write_file "$spark_env" <"$scratch/spark-env"; then
    not_written "$spark_env"
  fi
  [ -z "$profile" ] || source_line | write_file "$profile" || not_written "$profile"
  [ -n "$problem" ] || log "$(grep -o 'MLFLOW_TRACKING_URI=.*' "$env_file") (in $env_file)"
}

not_written() {
  problem="$1 cannot be written (is the disk full or read-only?)"
  log "$problem"
}

print_plan() {
  printf 'Python: %s\n' "${python:-none found}"
  if [ -n "$python" ] && must_install; then
    printf 'would install %s with %s -m pip, keeping:\n' "$(printf '%s' "$SPARK_TRACKING_PACKAGE" | masked)" "$python"
    constraints | sed 's/^/  /'
  fi
  problem=
  exports=
  if [ -z "$python" ]; then
    problem='no Python was found; set SPARK_TRACKING_PYTHON'
  elif ! check_package || [ -n "$(installed_version)" ] || ! must_install; then
    [ -n "$problem" ] || check_settings
  else
    log 'the settings can be checked once spark-tracking is installed'
  fi
  [ -z "$problem" ] || log "tracking would be left as it was: $problem"
  printf 'would write %s:\n' "$env_file"
  content | sed 's/^/  /'
  [ -z "$spark_env" ] || printf 'would add to %s:\n  %s\n' "$spark_env" "$(source_line)"
  [ -z "$profile" ] || printf 'would write %s:\n  %s\n' "$profile" "$(source_line)"
}

uninstall() {
  local file
  [ ! -d "$state_dir" ] || lock
  if [ -n "$spark_env" ] && [ -e "$spark_env" ]; then
    without_block "$spark_env" >"$scratch/spark-env"
    if [ -s "$scratch/spark-env" ]; then write_file "$spark_env" <"$scratch/spark-env"; else rm -f "$spark_env"; fi
  fi
  for file in "$env_file" "$profile"; do
    [ -z "$file" ] || rm -f "$file" "$file".spark-tracking.*
  done
  [ "$state_dir" = "$conf_dir" ] || rmdir "$state_dir" 2>/dev/null || true
  log 'uninstalled; restart the Spark daemons'
}

main() {
  local action=${1:-start}
  case $action in
    --help | -h) usage && return ;;
    start | --print | --uninstall) ;;
    *) usage >&2 && return 2 ;;
  esac
  scratch=$(mktemp -d "${TMPDIR:-/tmp}/spark-tracking-init.XXXXXX")
  locate
  case $action in
    --uninstall) uninstall && return ;;
    --print) print_plan ;;
    start) start ;;
  esac
  case $problem:${SPARK_TRACKING_STRICT:-} in
    :*) ;;
    *:1 | *:[Tt][Rr][Uu][Ee] | *:[Yy][Ee][Ss] | *:[Oo][Nn])
      log "the start fails, since SPARK_TRACKING_STRICT is set: $problem"
      return 1
      ;;
  esac
}

main "$@"
