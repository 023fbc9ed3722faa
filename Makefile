# make deps build    what a fresh Debian machine needs, then bin/
# make test          vet, format, every test (as root none is skipped), the demo,
#                    a minute of chaos
# make demo          a real cluster in network namespaces, one round of each fault
# make soak          chaos, rounds of what nobody may be fenced for, a real watchdog,
#                    and the demo again and again for SOAK seconds
# make bench         every figure that is promised, measured beside its target
# make check         race detector and linter
# make units-test    packages and units in machines of a real systemd
# make install       PREFIX=/usr DESTDIR=
# make deb           dist/pvc_VERSION_amd64.deb
GO      ?= go
PREFIX  ?= /usr
DESTDIR ?=
PROGRAMS = pvcnoded pvcapid pvc
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# Where programs are built to, and where packages are put.
BIN  ?= bin
DIST ?= dist
# The settings files as they are shipped.
ETC ?= etc

export CGO_ENABLED ?= 0
# For all alike, so that programs and tests share what is compiled.
export GOFLAGS += -trimpath

# Debian packages that the tests and the demo use; the daemons themselves need
# only a kernel, iproute2 and, for the gate, nftables in the kernel.
PACKAGES = zookeeper default-jre-headless nftables iproute2 ipmitool openipmi \
           procps ca-certificates curl iputils-ping debootstrap systemd-container python3-kazoo \
           resource-agents redis-server redis-tools redis-sentinel

.PHONY: all deps build test vet fmt-check demo soak bench check units-test install install-usr deb package clean

all: build

# What a package starts at its installation would run beside the tests: a
# machine's policy-rc.d is left as it is, and where there is none, one that
# refuses it stands for as long as that takes.
deps:
	@missing=""; for p in $(PACKAGES); do \
	  dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  [ "$$(id -u)" = 0 ] || { echo "make deps: run as root to install:$$missing" >&2; exit 1; }; \
	  echo "installing:$$missing"; \
	  log=$$(mktemp); policy=/usr/sbin/policy-rc.d; \
	  [ -e $$policy ] || { trap "rm -f $$policy" EXIT; trap 'exit 1' INT TERM; printf '#!/bin/sh\nexit 101\n' >$$policy; chmod 755 $$policy; }; \
	  { DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends $$missing; } \
	    >$$log 2>&1 || { cat $$log >&2; rm -f $$log; exit 1; }; \
	  rm -f $$log; \
	fi
	@$(GO) mod download

build:
	@mkdir -p $(BIN)
	$(GO) build -ldflags '-s -w -X main.version=$(VERSION)' -o $(BIN)/ $(addprefix ./cmd/,$(PROGRAMS))

vet:
	$(GO) vet ./...

fmt-check:
	@bad=$$(gofmt -l $$(find . -name '*.go' -not -path './bin/*' -not -path './tools/*')); \
	[ -z "$$bad" ] || { echo "not formatted, run gofmt -w on:"; echo "$$bad"; exit 1; } >&2

# The packages share two kinds of scarce things, processors and ports of the
# real ensemble, and several measure time: few at once.
TESTFLAGS ?= -count=1 -timeout=13m -p 3

test: deps build bin/nfpm vet fmt-check
	PVC_UNITS_TEST=1 $(GO) test $(TESTFLAGS) ./...
	bin/pvc sandbox demo
	bin/pvc sandbox chaos --minutes 1 --seed 1

demo: deps build
	bin/pvc sandbox demo --workloads

# Seconds; a round that has begun is finished.
SOAK ?= 1800
soak:
	@$(MAKE) --no-print-directory deps build PACKAGES="$(PACKAGES) qemu-system-x86 stress-ng"
	PVC_MODEL_ROUNDS=40000 $(GO) test -count=1 -timeout=20m -run Random ./agent/role
	PVC_BUBBLE_SEEDS=1500 $(GO) test -count=1 -timeout=20m -run 'Random|Storm' ./agent
	PVC_BUBBLE_ROUNDS=5000 $(GO) test -count=1 -timeout=30m -run NoRoundFences ./agent
	PVC_ACTIVITY_HOURS=10 $(GO) test -count=1 -timeout=30m -run TwoLeaders ./agent
	PVC_LEASE_HOURS=10000 $(GO) test -count=1 -timeout=30m -run TwoLeaders ./agent/lease
	PVC_SOAK=1 $(GO) test -count=1 -timeout=8m -run TestWatchdogOfAn ./fencing
	PVC_SOAK=1 $(GO) test -count=1 -timeout=60m -run 'TestDeadNodes|TestWatchdogs|TestTheTaker' ./acceptance
	PVC_SOAK=1 $(MAKE) --no-print-directory units-test
	bin/pvc sandbox chaos --minutes 20
	bin/pvc sandbox chaos --minutes 10 --hypervisors 2
	bin/pvc sandbox demo --rounds 30 --faults store-outage-20,sigstop-short,starve
	@end=$$(($$(date +%s) + $(SOAK))); round=0; \
	while [ $$(date +%s) -lt $$end ]; do \
	  round=$$((round + 1)); echo "== round $$round"; \
	  bin/pvc sandbox demo || { echo "round $$round failed" >&2; exit 1; }; \
	done; echo "$$round rounds"

# Somewhat over an hour; BENCHFLAGS="--quick", "--only switch,loss", "--runs 20", ….
# What single functions cost: go test -run '^$$' -bench . ./...
BENCHFLAGS ?=
bench:
	@$(MAKE) --no-print-directory deps build PACKAGES="$(PACKAGES) keepalived stress-ng wrk"
	bin/pvc sandbox bench $(BENCHFLAGS)

# The linter is built from a module of its own: it drags in a thousand others.
bin/golangci-lint: tools/go.mod
	cd tools && $(GO) build -trimpath -o ../bin/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint

check: deps build bin/golangci-lint
	@command -v gcc >/dev/null || { echo "make check: the race detector needs gcc: apt-get install gcc libc6-dev" >&2; exit 1; }
	GOLANGCI_LINT_CACHE=$(CURDIR)/bin/.lint-cache bin/golangci-lint run --max-same-issues 0 --max-issues-per-linter 0 ./...
	CGO_ENABLED=1 $(GO) test -race -count=1 -timeout=20m -p 2 ./...

# Machines of a real systemd; as root. PVC_SOAK=1 repeats what is measured.
units-test: deps build bin/nfpm
	PVC_UNITS_TEST=1 $(GO) test -count=1 -v -run 'TestUnits$$' -timeout=15m .

SBIN = $(DESTDIR)$(PREFIX)/sbin
SYSTEMD = $(DESTDIR)$(PREFIX)/lib
DOCS = $(DESTDIR)$(PREFIX)/share/doc/pvc

# After it, on a machine that runs: systemd-sysusers, systemd-tmpfiles --create,
# systemctl daemon-reload. The package does that by itself.
install: install-usr
	install -d $(DESTDIR)/etc/pvc
	for f in pvcnoded.yaml pvcapid.yaml; do \
	  [ -e $(DESTDIR)/etc/pvc/$$f ] || install -m 640 $(ETC)/$$f $(DESTDIR)/etc/pvc/$$f || exit 1; done

install-usr:
	install -D -m 755 -t $(SBIN) $(BIN)/pvcnoded $(BIN)/pvcapid
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin $(BIN)/pvc
	install -d $(SYSTEMD)/systemd/system
	for u in systemd/*.service systemd/*.slice systemd/*.target; do \
	  sed 's,/usr/sbin/,$(PREFIX)/sbin/,; s,/usr/share/doc/,$(PREFIX)/share/doc/,' $$u >$(SYSTEMD)/systemd/system/$${u##*/} && \
	  chmod 644 $(SYSTEMD)/systemd/system/$${u##*/} || exit 1; done
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/pvc $(ETC)/pvcnoded.yaml $(ETC)/pvcapid.yaml
	install -D -m 644 systemd/pvc.tmpfiles.conf $(SYSTEMD)/tmpfiles.d/pvc.conf
	install -D -m 644 systemd/pvc.sysusers.conf $(SYSTEMD)/sysusers.d/pvc.conf
	install -D -m 644 -t $(DOCS) README.md DESIGN.md CHANGELOG.md LICENSE docs/operator-guide.md docs/runbook.md

# The packager is built from the linter's module, in a quarter of a minute.
bin/nfpm: tools/go.mod
	cd tools && $(GO) build -ldflags '-s -w' -o ../bin/nfpm github.com/goreleaser/nfpm/v2/cmd/nfpm

# A version that dpkg takes and sorts: 1.2.3 for the tag v1.2.3, 1.2.3+4.gabcdef0
# for the fourth commit after it, and without any tag 0~ and the commit's date.
GIT_TAG := $(shell git describe --tags --match 'v[0-9]*' --dirty 2>/dev/null)
ifneq ($(GIT_TAG),)
DEB_VERSION ?= $(shell echo '$(GIT_TAG)' | sed -E 's/^v//; s/-([0-9]+)-g/+\1.g/; s/-dirty$$/+dirty/; s/-/~/g')
else
DEB_VERSION ?= 0~$(shell TZ=UTC git log -1 --format=%cd --date=format-local:%Y%m%d%H%M%S 2>/dev/null || echo 0).$(VERSION:-dirty=+dirty)
endif
DEB_ARCH = $(shell $(GO) env GOARCH)

deb: build package

# Packs what has been built.
package: bin/nfpm
	@rm -rf $(DIST)/stage
	@$(MAKE) --no-print-directory -s install-usr DESTDIR=$(DIST)/stage PREFIX=/usr BIN=$(BIN) ETC=$(ETC)
	STAGE=$(DIST)/stage DEB_VERSION='$(DEB_VERSION)' DEB_ARCH=$(DEB_ARCH) bin/nfpm package -f packaging/nfpm.yaml -p deb -t $(DIST)/
	@rm -rf $(DIST)/stage

clean:
	rm -rf bin dist
