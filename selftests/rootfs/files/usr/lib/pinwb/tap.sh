# SPDX-License-Identifier: GPL-2.0
#
# For the guest's shell tests: TAP, and what this kernel is to do with a pin of a file page.

number=0
failed=0

plan() { echo "TAP version 13"; echo "1..$1"; }
diag() { sed 's/^/# /'; }
pass() { number=$((number + 1)); echo "ok $number - $1"; }
fail() { number=$((number + 1)); failed=1; echo "not ok $number - $1"; }

# verdict NAME STATUS: passes if STATUS is 0
verdict() { if [ "$2" = 0 ]; then pass "$1"; else fail "$1"; fi; }

# What this kernel is to do with a pin: "works" or "refused".
pins() {
	if grep -qw pinwb=off /proc/cmdline; then
		echo refused
	else
		echo works
	fi
}
