# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0
#
# Sourced by the scripts beside it: where things lie, how to say what goes on.
#
# Everything that is not source lies in the cache. What depends on the project's
# directory (kernel tree, builds) has a directory of its own there, so that two
# clones do not disturb each other; downloads and ccache are shared.

set -euo pipefail

PINWB_TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
: "${PINWB_CACHE:=${XDG_CACHE_HOME:-$HOME/.cache}/pinwb}"
mkdir -p "$PINWB_CACHE/downloads"
PINWB_CACHE=$(cd "$PINWB_CACHE" && pwd -P)
PINWB_WORK=$PINWB_CACHE/$(printf '%s' "$PINWB_TOP" | sha256sum | cut -c1-12)
mkdir -p "$PINWB_WORK"
PINWB_TREE=$PINWB_WORK/linux
export PINWB_TOP PINWB_CACHE PINWB_WORK PINWB_TREE

# Kernel messages and git's are parsed here and there.
export LC_ALL=C
PATH=$PINWB_CACHE/cargo/bin:$PATH

say() { printf '== %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

elapsed() { printf '%d:%02d' $((SECONDS / 60)) $((SECONDS % 60)); }

# need_space GIB DIR: a full disk half-way gives errors that nobody understands.
need_space() {
	local free
	free=$(df --output=avail -k "$2" | tail -n1)
	[ "$free" -ge $(($1 * 1024 * 1024)) ] ||
		die "$2 has $((free / 1024)) MiB free, this step needs $1 GiB;" \
		    "make room, or set PINWB_CACHE to a larger disk"
}

# lock build: one kernel build at a time on this cache, and no tree that moves under it.
# lock tree: links and scratch worktrees; short. Who needs both takes build first.
# Scripts that call each other hold a lock once.
lock() {
	local file
	case " ${PINWB_LOCKS:-} " in *" $1 "*) return 0 ;; esac
	case $1 in
	build) file=$PINWB_CACHE/build.lock ;;
	tree) file=$PINWB_WORK/tree.lock ;;
	esac
	local fd
	exec {fd}>"$file"
	if ! flock -n "$fd"; then
		say "waiting for another $1 step (${file##*/})"
		flock "$fd"
	fi
	export PINWB_LOCKS="${PINWB_LOCKS:-} $1"
}

# version_ge HAVE WANT
version_ge() {
	[ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n1)" = "$2" ]
}

tree_git() { git -C "$PINWB_TREE" "$@"; }

# The hash of everything that decides what the tree's commits are.
series_hash() {
	(
		cd "$PINWB_TOP/fs-hooks" 2>/dev/null || exit 0
		series_patches | while read -r p; do sha256sum "$p"; done
	) | sha256sum | cut -c1-40
}

# The patches of fs-hooks/series in order, one path per line.
series_patches() {
	local s=$PINWB_TOP/fs-hooks/series
	[ ! -f "$s" ] || sed -e 's/[[:space:]]*#.*//' -e '/^[[:space:]]*$/d' "$s"
}
