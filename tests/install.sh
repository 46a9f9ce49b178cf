#!/bin/sh
# Install Debian packages, and the Python ones into a virtual environment of the project's own.
# Usage: install.sh APT_LIST [VENV]. Says what it does; asks for root only if a package is really missing.
set -eu

list=$1
venv=${2:-}
python=${PYTHON:-python3}

missing=
while read -r package; do
    case $package in '' | '#'*) continue ;; esac
    # a removed package is still known, with its configuration: only "ok installed" counts
    case $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true) in
        *'ok installed') ;;
        *) missing="$missing $package" ;;
    esac
done <"$list"

if [ -n "$missing" ]; then
    echo "install: Debian packages:$missing"
    if [ "$(id -u)" -eq 0 ]; then
        root=
    elif command -v sudo >/dev/null; then
        root=sudo
    else
        echo "install: not root and no sudo; as root, run: apt-get install --no-install-recommends$missing" >&2
        exit 1
    fi
    # Name servers and brokers are started by the tests themselves, on their own ports in their own namespaces:
    # this machine must not suddenly run them. Debian's way to say so is policy-rc.d (101: action forbidden).
    policy=/usr/sbin/policy-rc.d
    made=
    if [ ! -e "$policy" ]; then
        # shellcheck disable=SC2016
        printf '#!/bin/sh\nexit 101\n' | $root tee "$policy" >/dev/null
        $root chmod 755 "$policy"
        made=yes
    fi
    status=0
    $root apt-get update -q || status=$?
    # shellcheck disable=SC2086
    [ "$status" -ne 0 ] || $root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends $missing || status=$?
    [ -z "$made" ] || $root rm -f "$policy"
    [ "$status" -eq 0 ] || exit "$status"
fi

[ -n "$venv" ] || exit 0
echo "install: Python packages into $venv"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# dependency groups (PEP 735) need pip 25.1; Debian 12 has 23.0
"$venv/bin/python" -m pip install -q --disable-pip-version-check --upgrade 'pip>=25.1'
"$venv/bin/python" -m pip install -q --disable-pip-version-check --group run --group desk --group test
