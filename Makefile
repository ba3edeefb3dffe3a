# SPDX-License-Identifier: GPL-2.0
#
# The targets; each is a script of scripts/ or a command of the test harness.

export PINWB_CACHE := $(or $(PINWB_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pinwb)
# One tree and one set of builds for each checkout.
work := $(PINWB_CACHE)/$(shell printf %s '$(realpath .)' | sha256sum | cut -c1-12)

export PINWB_TREE := $(work)/linux
export PINWB_BUILD := $(work)/build-x86
export PINWB_KERNEL := $(PINWB_BUILD)/arch/x86/boot/bzImage
kernel_debug := $(work)/build-x86-debug/arch/x86/boot/bzImage
kernel_kcsan := $(work)/build-x86-kcsan/arch/x86/boot/bzImage
export PINWB_KERNEL_NOPINWB := $(work)/build-x86-nopinwb/arch/x86/boot/bzImage
export PINWB_UML := $(work)/build-uml/linux
export PINWB_UML_NOPINWB := $(work)/build-uml-nopinwb/linux
export PINWB_UML_SMP := $(work)/build-uml-smp/linux
export PINWB_KUNIT_TAP := $(work)/kunit.ktap
export PINWB_MODELS_TAP := $(work)/models.tap
export CARGO_TARGET_DIR := $(work)/cargo-target
export KSRC FORCE

harness = cargo run --quiet --manifest-path selftests/Cargo.toml --release --locked \
	-p pinwb-harness --

.DEFAULT_GOAL := help
.NOTPARALLEL:

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
	@echo
	@echo '  KSRC=dir|tarball    another 7.2.y kernel than the distribution'\''s package'
	@echo '  PINWB_CACHE=dir     where trees, builds and downloads go (now $(PINWB_CACHE))'
	@echo '  ARGS=...            more arguments for the harness (see its --help)'

deps: ## install what is needed (as root), or print how
	@scripts/deps

tree: deps ## fetch and unpack the kernel, place our files, apply the series
	@scripts/tree

refresh: ## write the tree's commits back to fs-hooks/
	@scripts/refresh

series: tree ## write a complete series for your own kernel: OUT=dir
	@scripts/export-series '$(OUT)'

kernel: tree ## build the x86-64 kernel
	@scripts/build x86

uml: tree ## build the UML kernel
	@scripts/build uml

kernel-nopinwb: tree ## the same with CONFIG_PINWB=n, for benchmarks
	@scripts/build x86 nopinwb

kernel-debug: tree ## the same with lockdep, KASAN and kmemleak
	@scripts/build x86 debug

kernel-kcsan: tree ## the same with KCSAN
	@scripts/build x86 kcsan

uml-nopinwb: tree ## the same with CONFIG_PINWB=n, for benchmarks
	@scripts/build uml nopinwb

uml-smp: tree ## the same with two CPUs, for benchmarks
	@scripts/build uml smp

kunit: uml ## run the KUnit suites in UML: GLOB='pinwb*'
	@scripts/kunit '$(PINWB_UML)' '$(PINWB_KUNIT_TAP)' $(if $(GLOB),'$(GLOB)')

models: tree ## model checks on the host: loom, proptest, herd7; QUICK=1 for a short slice
	@scripts/models '$(PINWB_MODELS_TAP)' $(if $(QUICK),--quick)

lint: tree ## style and static checks, no kernel build
	@scripts/lint

clippy: tree ## clippy over the kernel's side
	@rm -f '$(work)'/build-uml-clippy/mm/pinwb/*.o '$(work)'/build-uml-clippy/rust/kernel.o
	@scripts/build uml clippy -- CLIPPY=1 prepare mm/pinwb/
	@! grep -A12 '^warning' '$(work)/build-uml-clippy/pinwb-build.log'

rustdoc: tree ## the kernel crate's documentation
	@scripts/build uml -- rustdoc

# What fails before the guest starts is in the harness's count as well: it reads
# the files with the results, so a failing suite must not end the run here.
check: deps tree lint uml ## everything: lint, KUnit, models, guest tests
	-@scripts/kunit '$(PINWB_UML)' '$(PINWB_KUNIT_TAP)' >/dev/null
	-@scripts/models '$(PINWB_MODELS_TAP)' --quick >/dev/null
	@$(MAKE) --no-print-directory kernel
	@$(harness) check --kernel '$(PINWB_KERNEL)' $(ARGS)

# Both kernels run, also after one has failed.
check-debug: kernel-debug kernel-kcsan ## the guest tests on the two debug kernels; hours
	@failed=; for kernel in '$(kernel_debug)' '$(kernel_kcsan)'; do \
		env -u PINWB_KUNIT_TAP -u PINWB_MODELS_TAP $(harness) check --kernel "$$kernel" --timeout-scale 8 \
			--skip unused $(ARGS) || \
			failed="$$failed $$kernel"; \
	done; [ -z "$$failed" ] || { echo "failed:$$failed"; exit 1; }

matrix: kernel ## the guest tests with every set of filesystem options; hours without KVM
	@$(harness) check --matrix --kernel '$(PINWB_KERNEL)' $(ARGS)

demo: kernel ## show what pinned writeback does
	@$(harness) demo --kernel '$(PINWB_KERNEL)' $(ARGS)

crash: kernel ## cut the power at many points: FS=ext4 MINUTES=10 SEED=
	@$(harness) crash --kernel '$(PINWB_KERNEL)' --fs '$(or $(FS),ext4)' \
		--mkfs-opts='$(MKFS_OPTS)' --mount-opts='$(MOUNT_OPTS)' \
		--minutes '$(or $(MINUTES),10)' $(if $(SEED),--seed '$(SEED)') $(ARGS)

soak: kernel ## a device that never stops, under syncs, scrubs and snapshots: FS=btrfs MINUTES=20
	@$(harness) soak --kernel '$(PINWB_KERNEL)' --fs '$(or $(FS),btrfs)' \
		--mkfs-opts='$(MKFS_OPTS)' --mount-opts='$(MOUNT_OPTS)' \
		--minutes '$(or $(MINUTES),20)' $(ARGS)

vm: kernel ## a shell in the guest
	@$(harness) vm --kernel '$(PINWB_KERNEL)' $(ARGS)

stress: kernel ## random histories: FS= MKFS_OPTS= MOUNT_OPTS= MINUTES= OPS= SEED= KNOCK_OUT= REPLAY=file
	@$(harness) stress --kernel '$(PINWB_KERNEL)' $(if $(FS),--fs '$(FS)') \
		$(if $(MKFS_OPTS),--mkfs-opts '$(MKFS_OPTS)') \
		$(if $(MOUNT_OPTS),--mount-opts '$(MOUNT_OPTS)') \
		$(if $(MINUTES),--minutes '$(MINUTES)') $(if $(OPS),--ops '$(OPS)') \
		$(if $(SEED),--seed '$(SEED)') $(if $(KNOCK_OUT),--knock-out '$(KNOCK_OUT)') \
		$(if $(REPLAY),--replay '$(REPLAY)') $(ARGS)

# Before a kernel is built for it.
xfstests-there:
	@[ -x '$(XFSTESTS)/ltp/fsx' ] || { \
		echo 'XFSTESTS=$(XFSTESTS): not a checkout of xfstests that was built with make' >&2; \
		exit 1; }

xfstests: xfstests-there kernel ## run XFSTESTS=dir, a built checkout: FS=ext4 TESTS="-g quick" PINSTORM=1
	@$(harness) xfstests --kernel '$(PINWB_KERNEL)' --checkout '$(abspath $(XFSTESTS))' \
		--fs '$(or $(FS),ext4)' --mkfs-opts '$(MKFS_OPTS)' --mount-opts '$(MOUNT_OPTS)' \
		--tests '$(or $(TESTS),@pinwb)' $(if $(filter-out 0,$(PINSTORM)),--pinstorm) \
		$(if $(filter-out 0,$(FRESH)),--fresh $(if $(filter all,$(FRESH)),all,run)) $(ARGS)

bench: uml uml-smp uml-nopinwb kernel kernel-nopinwb ## cost of pins, with and without the subsystem
	@$(harness) bench $(ARGS)

clean: ## delete this checkout's builds; the tree stays
	rm -rf '$(work)'/build-*

distclean: ## delete this checkout's builds and tree; downloads and ccache stay
	rm -rf '$(work)'

# Every target with a help text is a command, not a file.
.PHONY: $(shell sed -nE 's/^([a-z-]+):.*\#\# .*/\1/p' $(firstword $(MAKEFILE_LIST))) xfstests-there
