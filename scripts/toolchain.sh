# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0
#
# Sourced after lib.sh: finds the compilers and fills KMAKE, the arguments that
# every make in the kernel tree gets.

# The newest LLVM >= 17 that is here whole; sets LLVM and LIBCLANG_PATH.
find_llvm() {
	local n dir
	for n in $(seq 30 -1 17); do
		dir=/usr/lib/llvm-$n/lib
		if command -v "clang-$n" "ld.lld-$n" "llvm-nm-$n" >/dev/null &&
		   compgen -G "$dir/libclang*.so*" >/dev/null; then
			LLVM=-$n CLANG=clang-$n
			export LIBCLANG_PATH=$dir
			return
		fi
	done
	return 1
}

# The Rust standard library's source, of exactly rustc's version.
find_rust_src() {
	local v lib
	RUST_LIB_SRC=$(rustc --print sysroot)/lib/rustlib/src/rust/library
	[ ! -f "$RUST_LIB_SRC/core/src/lib.rs" ] || return 0
	v=$(rustc --version | awk '{ print $2 }')
	for lib in "$PINWB_CACHE/rust-src-$v" /; do
		RUST_LIB_SRC=${lib%/}/usr/src/rustc-$v/library
		[ ! -f "$RUST_LIB_SRC/core/src/lib.rs" ] || return 0
	done
	return 1
}

# shellcheck disable=SC2034 # KMAKE is for who sources this
setup_toolchain() {
	find_llvm || die "no LLVM >= 17 with libclang found; run: make deps"
	command -v rustc >/dev/null || die "no rustc found; run: make deps"
	find_rust_src || die "no source of the Rust library for $(rustc --version); run: make deps"
	command -v bindgen >/dev/null || die "no bindgen found; run: make deps"
	export RUST_LIB_SRC

	# Same flags, same paths relative to the build directory, same names in
	# every build: what ccache needs to answer for another clone.
	export CCACHE_DIR=${CCACHE_DIR:-$PINWB_CACHE/ccache}
	export CCACHE_BASEDIR=$PINWB_WORK CCACHE_NOHASHDIR=1
	# It makes paths relative; __FILE__ must be the kernel's own all the same.
	export KCPPFLAGS=-fmacro-prefix-map=../linux/=
	export CCACHE_MAXSIZE=${CCACHE_MAXSIZE:-5G}
	export KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 1970'
	export KBUILD_BUILD_USER=pinwb KBUILD_BUILD_HOST=pinwb

	KMAKE=(make -C "$PINWB_TREE" "-j${PINWB_JOBS:-$(nproc)}"
	       "LLVM=$LLVM" LOCALVERSION= "RUST_LIB_SRC=$RUST_LIB_SRC")
	# Under the compiler's own name: the kernel hands HOSTCC to rustc as the
	# linker, where "ccache clang" would be one word too many.
	if command -v ccache >/dev/null; then
		mkdir -p "$PINWB_CACHE/ccache-bin"
		ln -sfn "$(command -v ccache)" "$PINWB_CACHE/ccache-bin/$CLANG"
		PATH=$PINWB_CACHE/ccache-bin:$PATH
	fi
}
