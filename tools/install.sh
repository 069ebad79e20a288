#!/usr/bin/env bash
# Install missing packages: `install.sh run` for the daemon, `install.sh test` also for all tests.
# It installs only missing Debian packages, which needs root or sudo, and Python packages into
# .venv. It is harmless to repeat.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=.venv
PYTHON=${PYTHON:-python3}
TEST_PACKAGES=(
    e2fsprogs       # mkfs.ext4, e2fsck
    fio             # load, verification, benchmarks
    libnbd-bin      # nbdinfo, nbdcopy, nbdfuse
    nbd-client      # the kernel's client
    nbdkit          # a server for our client
    python3-libnbd  # nbdsh
    qemu-utils      # qemu-img, qemu-io, qemu-nbd
    xfsprogs        # mkfs.xfs, xfs_repair
)

main() {
    local what=${1:-}
    case $what in
        run) install_debian ;;
        test) install_debian "${TEST_PACKAGES[@]}" ;;
        *) fail "usage: tools/install.sh run|test" ;;
    esac
    check_python
    install_python "$what"
}

fail() {
    echo "install: $*" >&2
    exit 1
}

# Install the missing ones of the given packages and of Python's own.
install_debian() {
    local package missing=()
    # Debian puts ensurepip into python3-venv, not into python3.
    "$PYTHON" -c "import ensurepip, venv" 2>/dev/null || missing+=(python3 python3-venv)
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0

    command -v apt-get >/dev/null ||
        fail "missing, and there is no apt-get to install them: ${missing[*]}"
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null ||
            fail "missing; run as root: apt-get install ${missing[*]}"
        as_root=(sudo)
    fi
    echo "install: Debian packages: ${missing[*]}"
    "${as_root[@]}" apt-get update -q >/dev/null ||
        echo "install: apt-get update failed; trying with the lists at hand" >&2
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends "${missing[@]}" >/dev/null ||
        fail "apt-get could not install: ${missing[*]}"
}

is_installed() {
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

check_python() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "Python 3.11 or newer is needed; $PYTHON is $("$PYTHON" --version 2>&1)." \
            "Set PYTHON to another one."
}

install_python() {
    local target=.
    [ "$1" = run ] || target=".[test]"
    # A checkout that was moved or a Python that was upgraded leaves an environment that cannot run.
    if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        echo "install: making the environment $VENV"
        "$PYTHON" -m venv --clear "$VENV"
    fi
    echo "install: Python packages into $VENV"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
        --root-user-action=ignore --editable "$target" ||
        fail "pip could not install the packages above; is the network there?"
}

main "$@"
