# shellcheck shell=sh
# What scripts/run and scripts/test share: a virtual environment that holds this checkout. Sourced; sets $root and
# $venv, and defines `set_up EXTRAS`. Needs Python 3.11 and nothing else: where Debian keeps venv or pip in packages
# that are not installed, pip comes from such a package, unpacked privately.
#
#   VFIO_USER_VENV    the virtual environment (default: .venv in the checkout)
#   VFIO_USER_PYTHON  the Python to make it with (default: the first on PATH that is new enough)

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
venv=${VFIO_USER_VENV:-$root/.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac

# Hundreds of servers are started: none is to compile again what the one before has compiled.
unset PYTHONDONTWRITEBYTECODE

say() { printf '%s\n' "$*" >&2; }

# give_up WHAT [HINT]: the set-up could not be done, which is status 2 as everywhere
give_up() {
    say "error: $1"
    [ -z "${2:-}" ] || say "  $2"
    exit 2
}

# may_have_fresh: whether scripts/fresh can have a machine of its own here; where it cannot, that is said
may_have_fresh() {
    [ "$(id -u)" = 0 ] && unshare --mount --pid --fork --ipc --uts true 2>/dev/null && return
    say "a fresh machine is left out: it needs root, and leave to make namespaces"
    return 1
}

# set_up EXTRAS: make the environment hold the package with these extras; fast when it does already
set_up() {
    extras=$1
    wanted=$(sha256sum <"$root/pyproject.toml" | cut -d' ' -f1)" $root"
    is_current && return
    began=$(date +%s)
    lock_venv
    is_current || {
        make_venv
        install_package
        for extra in $(each_extra); do printf '%s\n' "$wanted" >"$venv/.vfio-user-$extra"; done
        say "the Python environment is ready after $(($(date +%s) - began)) s"
    }
    exec 9>&-
}

each_extra() { echo "$extras" | tr , ' '; }

is_current() {
    [ -x "$venv/bin/vfio-user" ] || return 1
    for extra in $(each_extra); do
        [ "$(cat "$venv/.vfio-user-$extra" 2>/dev/null)" = "$wanted" ] || return 1
    done
}

# Two runs at once: the second waits here, then finds the work done. The kernel frees a dead run's lock.
lock_venv() {
    { mkdir -p "$(dirname "$venv")" && touch "$venv.lock"; } 2>/dev/null ||
        give_up "$venv cannot be made: its folder cannot be written" "set VFIO_USER_VENV to a folder that you may write"
    exec 9>>"$venv.lock"
    flock -n 9 || {
        say "waiting for another run to finish setting up $venv"
        flock -w 1800 9 || give_up "another run has been setting up $venv for over 30 minutes" "end it and try again"
    }
}

find_python() {
    for python in ${VFIO_USER_PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && return
    done
    python=${VFIO_USER_PYTHON:-python3}
    have=$("$python" --version 2>&1) || have="no $python"
    give_up "Python 3.11 or later is needed; there is $have" "install it, or name one by VFIO_USER_PYTHON"
}

make_venv() {
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 && return
    if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
        give_up "$venv is not a virtual environment" "move it away, or set VFIO_USER_VENV to another folder"
    fi
    find_python
    say "making a Python environment in $venv ($("$python" --version))"
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        "$python" -m venv --clear "$venv" >&2 || give_up "$python -m venv failed, see above"
    else
        "$python" -m venv --clear --without-pip "$venv" >&2 || give_up "$python -m venv failed, see above"
        install_pip
    fi
}

# A Debian without python3-venv: pip's wheel is in python3-pip-whl.
install_pip() {
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
        give_up "this Python has no pip" "install your system's packages for Python's venv and pip"
    say "this Python has no pip: unpacking Debian's into the environment"
    scratch=$(mktemp -d)
    # The machine's sources and its way to them, but folders of our own, and none of its hooks.
    mkdir -p "$scratch/lists/partial" "$scratch/archives/partial" "$scratch/none"
    : >"$scratch/status"
    {
        apt-config dump Acquire | grep '^Acquire::'
        printf '%s "%s";\n' Dir::Etc::parts "$scratch/none" Dir::State "$scratch" Dir::State::lists "$scratch/lists/" \
            Dir::State::status "$scratch/status" Dir::Cache "$scratch" APT::Sandbox::User ""
    } >"$scratch/apt.conf"
    (
        cd "$scratch"
        export APT_CONFIG="$scratch/apt.conf"
        apt-get -qq update && apt-get -qq download python3-pip-whl && dpkg-deb -x python3-pip-whl_*.deb .
    ) >"$scratch/log" 2>&1 || {
        cat "$scratch/log" >&2
        rm -rf "$scratch"
        give_up "pip cannot be fetched from Debian's archive, see above" "is there a network?"
    }
    wheel=$(echo "$scratch"/usr/share/python-wheels/pip-*.whl)
    "$venv/bin/python" "$wheel/pip" install --quiet --no-index "$wheel" >&2 || give_up "pip cannot be installed, see above"
    rm -rf "$scratch"
}

install_package() {
    log="$venv/pip.log"
    say "installing vfio-user and the Python packages that it needs (with $extras)"
    {
        "$venv/bin/python" -m pip install --disable-pip-version-check --no-color --progress-bar off \
            --editable "$root[$extras]" 2>&1
        echo $? >"$venv/pip.status"
    } | tee "$log" | sed -un 's/^ *Collecting \([A-Za-z0-9._-]*\).*/  \1/p; s/^Installing collected.*/  unpacking/p' >&2
    [ "$(cat "$venv/pip.status")" = 0 ] || {
        tail -n 15 "$log" >&2
        give_up "pip could not install the packages, see above and $log"
    }
}
