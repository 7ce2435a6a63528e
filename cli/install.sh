#!/bin/sh
# Installs strongroom, the name data-backup-manager for it, and shell completions.
#
#   cli/install.sh [--bin-dir DIR] [--update-path] [PATH-TO-STRONGROOM]
#   cli/install.sh --uninstall [--bin-dir DIR]
#
# Without a path it takes target/release/strongroom of this repository. It goes into DIR, or PREFIX/bin, or ~/.local/bin;
# completions for bash, zsh and fish go into ../share beside it. Where ~/.vrooli exists, ~/.vrooli/bin gets links to both
# names. Where the folder is not on PATH, the line to add is printed; --update-path adds it to ~/.profile.
set -eu

usage() {
    sed -n '2,9s/^# \{0,1\}//p' "$0"
}

fail() {
    printf 'install.sh: %s\n' "$1" >&2
    exit 1
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
home=${HOME:?HOME is not set}
bin_dir="${PREFIX:-$home/.local}/bin"
program="$here/target/release/strongroom"
uninstall=no
update_path=no
while [ $# -gt 0 ]; do
    case $1 in
        --bin-dir)
            [ $# -ge 2 ] || fail '--bin-dir needs a folder'
            bin_dir=$2
            shift 2
            ;;
        --uninstall)
            uninstall=yes
            shift
            ;;
        --update-path)
            update_path=yes
            shift
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        -*) fail "unknown option $1; see --help" ;;
        *)
            program=$1
            shift
            ;;
    esac
done
case $bin_dir in
    /*) ;;
    *) bin_dir=$PWD/$bin_dir ;;
esac
share=$(dirname -- "$bin_dir")/share
bash_file=$share/bash-completion/completions/strongroom
zsh_file=$share/zsh/site-functions/_strongroom
fish_file=$share/fish/vendor_completions.d/strongroom.fish
vrooli_dir=$home/.vrooli/bin
names='strongroom data-backup-manager'
# shellcheck disable=SC2016  # the line is for the shell that reads ~/.profile
path_line="export PATH=\"$bin_dir:"'$PATH"'

# Removes a link only if it points to what this script installs.
remove_link() { # LINK
    if [ -L "$1" ] && [ "$(readlink -- "$1")" = "$bin_dir/${1##*/}" ]; then rm -f -- "$1"; fi
}

if [ "$uninstall" = yes ]; then
    for name in $names; do
        rm -f -- "$bin_dir/$name"
        remove_link "$vrooli_dir/$name"
    done
    rm -f -- "$bash_file" "$zsh_file" "$fish_file"
    echo "removed $bin_dir/strongroom, $bin_dir/data-backup-manager and the completions"
    if [ -f "$home/.profile" ] && grep -Fqx -- "$path_line" "$home/.profile"; then
        echo "your ~/.profile still holds:  $path_line"
    fi
    exit 0
fi

[ -x "$program" ] || fail "there is no program $program: build it with \`cargo build --release -p strongroom\`"

mkdir -p -- "$bin_dir"
new="$bin_dir/.strongroom.new.$$"
trap 'rm -f -- "$new"' EXIT

# Replaces a file in one step, so that a running strongroom keeps its own. What is written comes from the input.
put() { # FILE MODE
    mkdir -p -- "$(dirname -- "$1")"
    cat >"$new"
    chmod "$2" "$new"
    mv -f -- "$new" "$1"
}

put "$bin_dir/strongroom" 755 <"$program"
ln -sf strongroom "$bin_dir/data-backup-manager"
echo "installed $bin_dir/strongroom and $bin_dir/data-backup-manager"

for shell in bash zsh fish; do
    case $shell in
        bash) file=$bash_file ;;
        zsh) file=$zsh_file ;;
        *) file=$fish_file ;;
    esac
    script=$("$bin_dir/strongroom" completions "$shell")
    printf '%s\n' "$script" | put "$file" 644
done
echo "installed completions for bash, zsh and fish into $share"

if [ -d "$home/.vrooli" ]; then
    mkdir -p -- "$vrooli_dir"
    for name in $names; do
        # A program that somebody else put there is left alone.
        if [ -e "$vrooli_dir/$name" ] && [ ! -L "$vrooli_dir/$name" ]; then
            echo "left $vrooli_dir/$name as it is: it is not a link"
        else
            ln -sfn -- "$bin_dir/$name" "$vrooli_dir/$name"
            echo "linked $vrooli_dir/$name"
        fi
    done
fi

case ":${PATH:-}:" in
    *":$bin_dir:"*) ;;
    *)
        if [ "$update_path" = no ]; then
            echo "add it to your PATH:  $path_line"
        elif [ -f "$home/.profile" ] && grep -Fqx -- "$path_line" "$home/.profile"; then
            echo "your ~/.profile adds it to PATH already: log in again"
        else
            printf '\n# strongroom\n%s\n' "$path_line" >>"$home/.profile"
            echo "added it to PATH in ~/.profile: log in again"
        fi
        ;;
esac
