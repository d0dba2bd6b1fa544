# SPDX-License-Identifier: GPL-2.0-only
# What a person types. Kbuild has the module's objects, userspace/Makefile the
# programs; this file only sends each word to whoever knows how to do it.

KDIR ?= /lib/modules/$(shell uname -r)/build
SUITE ?= bookworm
SUITES := bullseye bookworm trixie trixie-backports

all: modules userspace

# W=1, C=2, CF=.. and V=1 given on the command line reach kbuild by themselves.
modules:
	$(MAKE) -C $(KDIR) M=$(CURDIR) modules

modules_install:
	$(MAKE) -C $(KDIR) M=$(CURDIR) modules_install

# Only what the module is made of, and as root's: root makes it again for each later kernel.
DKMS_MODULE = dm-fleece/$(shell sed -n 's/^PACKAGE_VERSION="\(.*\)"$$/\1/p' dkms.conf)
DKMS_SOURCES = /usr/src/$(subst /,-,$(DKMS_MODULE))

dkms:
	if [ -n "$$(dkms status $(DKMS_MODULE))" ]; then dkms remove $(DKMS_MODULE) --all; fi
	rm -rf $(DKMS_SOURCES)
	mkdir $(DKMS_SOURCES)
	tar -c --exclude='.*' --exclude='*.o' --exclude=compat-config.h \
		Kbuild Makefile dkms.conf LICENSES drivers | \
		tar -x -C $(DKMS_SOURCES) --no-same-owner --no-same-permissions
	dkms add $(DKMS_MODULE)
	@status=0; kernel=; for build in /lib/modules/*/build/; do \
		if [ -d "$$build" ]; then \
			kernel=$${build%/build/}; \
			dkms install $(DKMS_MODULE) -k "$${kernel##*/}" || status=1; \
		fi; \
	done; \
	if [ -z "$$kernel" ]; then \
		echo "*** no kernel has its headers here, so the module is made for none" >&2; \
		status=1; \
	elif [ ! -d /lib/modules/$$(uname -r)/build/ ]; then \
		echo "*** the running kernel has no headers here, so it does not get the module" >&2; \
	fi; \
	exit $$status

dkms_remove:
	dkms remove $(DKMS_MODULE) --all
	rm -rf $(DKMS_SOURCES)

userspace:
	$(MAKE) -C userspace

install: userspace
	$(MAKE) -C userspace install

uninstall:
	$(MAKE) -C userspace uninstall

demo:
	selftests/demo/run

check:
	.ci/run

fuzz-metadata:
	$(MAKE) -C selftests/cli fuzz

unit model style:
	selftests/run-check $@

vm-test:
	selftests/run-check build:$(SUITE) vm:$(SUITE)

full:
	selftests/run-check $(SUITES:%=full:%)

soak:
	for suite in $(SUITES); do selftests/run-check soak:$$suite || exit 1; done
	selftests/run-check boot:900 dracut:300

# SECONDS=86400 for a day.
fuzz:
	$(MAKE) -C selftests/nbd fuzz

debug:
	selftests/run-check debug:debug debug:kcsan

bench:
	selftests/bench/run

# Needs no VM, but other servers: see README.md.
bench-serve:
	$(MAKE) -C userspace
	$(MAKE) -C selftests/nbd build/plain/testserver build/plain/roundtrip
	selftests/bench/serve

# The kernel's own clean rule wants its headers; without them there is nothing of it.
clean:
	if [ -d $(KDIR) ]; then $(MAKE) -C $(KDIR) M=$(CURDIR) clean; fi
	$(MAKE) -C userspace clean
	$(MAKE) -C selftests clean
	rm -rf build

help:
	@echo 'dm-fleece: point-in-time snapshots and change tracking for backups'
	@echo
	@echo '  make                     the module for the running kernel, and the programs'
	@echo '  make modules             only the module; KDIR=/path for another kernel'"'"'s headers'
	@echo '  make userspace           only the programs fleece and fleeced'
	@echo '  make modules_install     install the module, then run depmod'
	@echo '  make dkms                give DKMS the module, and have it make that for each kernel'
	@echo '  make dkms_remove         take it away from DKMS, and from all kernels'
	@echo '  make install             install the programs; PREFIX=/usr/local DESTDIR='
	@echo '  make uninstall           remove what make install has installed'
	@echo '  make clean               remove all of that, and what the tests built'
	@echo
	@echo '  make demo                watch it back up a live database, in a VM; NATIVE=1: here'
	@echo '  make check               all tests: unit, style, and four kernels in VMs; installs what they miss'
	@echo '  make unit                only the tests that need no kernel'
	@echo '  make model               only the copy protocol and its ordering, checked exhaustively'
	@echo '  make fuzz-metadata       damage metadata for longer than make check; FUZZ_RUNS= FUZZ_SEED='
	@echo '  make style               only checkpatch, sparse, shellcheck'
	@echo '  make vm-test SUITE=...   the kernel tests on one of $(SUITES)'
	@echo '  make full                all kernel tests on all four kernels'
	@echo '  make soak                the stress tests for about an hour on each kernel, and power cuts'
	@echo '  make fuzz                fleeced'"'"'s protocol with a fuzzer, for SECONDS=3600'
	@echo '  make debug               the kernel tests with KASAN, lockdep, kmemleak and KCSAN'
	@echo '  make bench               the cost, with dm-linear, dm-era and dm-snapshot beside it'
	@echo '  make bench-serve         the cost of serving, with nbdkit, qemu-nbd and nbd-server beside it'
	@echo
	@echo 'Roots of the VMs are kept in $${FLEECE_CACHE:-/var/cache/dm-fleece}.'
	@echo 'selftests/vm/run --help tells how to run one command, or a shell, in a VM.'

.PHONY: all modules modules_install dkms dkms_remove userspace install uninstall demo check unit model style fuzz-metadata vm-test full soak fuzz debug bench bench-serve clean help
