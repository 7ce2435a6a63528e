#!/usr/bin/env bash
# Installs the backup tools that Strongroom is measured beside into STRONGROOM_TOOLS/peers/bin, once: restic and borg out
# of Debian's packages, without installing these, and rustic, which cargo builds (some ten minutes on two cores);
# pgBackRest out of Debian's packages too, where it is named. A program that is there already stays; remove it to have it
# fetched again. Prints the versions.
#
#   bench/setup/peers.sh [restic] [borg] [rustic] [pgbackrest]
set -euo pipefail
umask 022
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."

readonly rustic_version=0.11.4
readonly tools=${STRONGROOM_TOOLS:-$(deploy/bootstrap --print-tools)}
readonly peers=$tools/peers
work=

say() { printf 'peers: %s\n' "$*"; }

fail() {
    printf 'peers: %s\n' "$*" >&2
    exit 1
}

by_hand() { # NAME WHY
    fail "$2: mend that and run this again, or put a program \`$1\` (or a link to one) into $peers/bin, or leave it out with --peers"
}

private_apt() { # SUITE COMMAND...
    local suite=$1 root=$work/apt-$1
    shift
    apt-get -q -o Dir::Etc="$root/etc" -o Dir::Etc::sourcelist=/dev/null \
        -o Dir::Etc::sourceparts="$root/etc/sources.list.d" -o Dir::State="$root/state" \
        -o Dir::State::status="$root/state/status" -o Dir::Cache="$root/cache" \
        -o APT::Sandbox::User=root -o Acquire::Languages=none "$@"
}

# Packages of a suite of Debian, unpacked into a folder. apt has lists of its own for it, takes them from where the
# machine has its own from, and checks what it downloads; nothing is installed.
unpack() { # SUITE FOLDER PACKAGE...
    local suite=$1 folder=$2 root=$work/apt-$1 mirror deb
    shift 2
    if [ ! -d "$root" ]; then
        # shellcheck disable=SC2016 # apt fills these in
        mirror=$(apt-get indextargets --no-release-info --format '$(REPO_URI) $(COMPONENT) $(CREATED_BY)' 2>/dev/null |
            sed -n 's|^\(.*/debian\)/\? main Packages$|\1|p' | head -n 1)
        [ -n "$mirror" ] || return 1
        mkdir -p "$root"/{etc/{apt.conf.d,preferences.d,trusted.gpg.d,sources.list.d},debs} \
            "$root"/{state/lists,cache/archives}/partial
        touch "$root/state/status"
        printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' "$mirror" "$suite" \
            /usr/share/keyrings/debian-archive-keyring.gpg >"$root/etc/sources.list.d/peers.sources"
        private_apt "$suite" -o APT::Update::Error-Mode=any update >"$work/log" 2>&1 || {
            cat "$work/log" >&2
            rm -rf "$root"
            return 1
        }
    fi
    rm -f "$root"/debs/*
    (cd "$root/debs" && private_apt "$suite" download "$@") >"$work/log" 2>&1 || {
        cat "$work/log" >&2
        return 1
    }
    for deb in "$root"/debs/*.deb; do
        say "unpacking $(basename "$deb")"
        dpkg-deb -x "$deb" "$folder" || return 1
    done
}

install_restic() {
    unpack sid "$work/restic" restic || by_hand restic "Debian's package of restic could not be fetched"
    "$work/restic/usr/bin/restic" version >/dev/null || by_hand restic "Debian's restic does not run on this system"
    install -m 755 "$work/restic/usr/bin/restic" "$peers/bin/restic"
}

# borg is made for the Python of its suite, so it has to be that of this system, or its backports.
install_borg() {
    local suite
    # shellcheck source=/dev/null
    suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    if ! unpack "$suite" "$work/borg" python3-msgpack python3-packaging libxxhash0 ||
        ! { unpack "$suite-backports" "$work/borg" borgbackup || unpack "$suite" "$work/borg" borgbackup; }; then
        by_hand borg "Debian's package of borg could not be fetched"
    fi
    rm -rf "$peers/borg"
    mv "$work/borg" "$peers/borg"
    /usr/bin/python3 -m compileall -q "$peers/borg/usr/lib/python3/dist-packages" >/dev/null || true
    cat >"$work/borg" <<END
#!/bin/sh
export PYTHONPATH='$peers/borg/usr/lib/python3/dist-packages'
export LD_LIBRARY_PATH='$(echo "$peers"/borg/usr/lib/*-linux-gnu)'
exec /usr/bin/python3 '$peers/borg/usr/bin/borg' "\$@"
END
    chmod 755 "$work/borg"
    "$work/borg" --version >/dev/null || by_hand borg "Debian's borg does not run on this system"
    mv "$work/borg" "$peers/bin/borg"
}

install_rustic() {
    PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    say "building rustic $rustic_version"
    CARGO_TARGET_DIR=$work/rustic nice -n 5 cargo install --locked --no-default-features --quiet \
        -j "${CARGO_BUILD_JOBS:-$(nproc)}" --root "$peers" rustic-rs --version "$rustic_version" ||
        by_hand rustic "rustic could not be built (the message above says why)"
}

# The suite whose pgBackRest runs with the libraries of Debian 12; libssh2, which few have, is taken from this system's.
install_pgbackrest() {
    local suite libraries
    unpack trixie "$work/pgbackrest" pgbackrest || by_hand pgbackrest "Debian's package of pgBackRest could not be fetched"
    if "$work/pgbackrest/usr/bin/pgbackrest" version >/dev/null 2>&1; then
        install -m 755 "$work/pgbackrest/usr/bin/pgbackrest" "$peers/bin/pgbackrest"
        return
    fi
    # shellcheck source=/dev/null
    suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    unpack "$suite" "$work/pgbackrest" libssh2-1 || unpack "$suite" "$work/pgbackrest" libssh2-1t64 ||
        by_hand pgbackrest "Debian's package of libssh2, which pgBackRest needs, could not be fetched"
    rm -rf "$peers/pgbackrest"
    mv "$work/pgbackrest" "$peers/pgbackrest"
    libraries=$(echo "$peers"/pgbackrest/usr/lib/*-linux-gnu)
    cat >"$work/wrapper" <<END
#!/bin/sh
export LD_LIBRARY_PATH='$libraries'
exec '$peers/pgbackrest/usr/bin/pgbackrest' "\$@"
END
    chmod 755 "$work/wrapper"
    "$work/wrapper" version >/dev/null || by_hand pgbackrest "Debian's pgBackRest does not run on this system"
    mv "$work/wrapper" "$peers/bin/pgbackrest"
}

mkdir -p "$peers/bin" || fail "$peers cannot be made: set STRONGROOM_TOOLS to a folder of yours"
exec 9>"$peers/.lock"
flock 9
if [ $# -eq 0 ]; then set -- restic borg rustic; fi
for peer in "$@"; do
    case $peer in
        restic | borg | rustic | pgbackrest) ;;
        *) fail "no peer $peer: there are restic, borg, rustic and pgbackrest" ;;
    esac
    if [ ! -x "$peers/bin/$peer" ]; then
        if [ -z "$work" ]; then
            work=$(mktemp -d)
            trap 'rm -rf "$work"' EXIT
        fi
        "install_$peer"
    fi
done
for peer in "$@"; do
    case $peer in
        restic | pgbackrest) "$peers/bin/$peer" version ;;
        *) "$peers/bin/$peer" --version ;;
    esac
done
