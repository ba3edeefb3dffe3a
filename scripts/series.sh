# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0
#
# Sourced after lib.sh: apply the series beside the tree, not in it.
#
# A sparse worktree holds only the files that the patches touch. So the tree moves
# once, when all of them apply, and only files that really differ get a new mtime:
# make rebuilds no more than it must.

# patched_files: the files that the series names, as sparse-checkout patterns
patched_files() {
	series_patches | while read -r p; do
		sed -nE 's,^(---|\+\+\+) [ab](/[^\t]+).*,\2,p' "$PINWB_TOP/fs-hooks/$p"
	done | sort -u
}

# scratch_open DIR COMMIT
scratch_open() {
	scratch_close "$1"
	tree_git worktree add -q --detach --no-checkout "$1" "$2"
	{ echo /COPYING; patched_files; } |
		git -C "$1" sparse-checkout set --no-cone --stdin
	git -C "$1" checkout -q "$2"
}

scratch_close() {
	[ ! -e "$1" ] || rm -rf "$1"
	tree_git worktree prune
}

# apply_series DIR: one commit a patch, in the scratch worktree DIR
apply_series() {
	local p log=$PINWB_WORK/am.log
	series_patches | while read -r p; do
		[ -f "$PINWB_TOP/fs-hooks/$p" ] ||
			die "fs-hooks/series names $p, which does not exist"
		GIT_COMMITTER_NAME=pinwb GIT_COMMITTER_EMAIL=pinwb@localhost \
		git -C "$1" -c core.hooksPath=/dev/null -c commit.gpgSign=false am -q --no-3way \
			--keep-non-patch --committer-date-is-author-date \
			"$PINWB_TOP/fs-hooks/$p" >"$log" 2>&1 || {
				cat "$log" >&2
				die "fs-hooks/$p does not apply to the tree's base;" \
				    "the half-applied state is in $1 (git am --show-current-patch)"
			}
	done
}
