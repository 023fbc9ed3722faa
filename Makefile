# make deps build    what a fresh Debian machine needs, then bin/
# make test          vet, format, every test (as root none is skipped), the demo,
#                    a minute of chaos
# make demo          a real cluster in network namespaces, one round of each fault
# make soak          chaos, rounds of what nobody may be fenced for, a real watchdog,
#                    and the demo again and again for SOAK seconds
# make bench         every figure that is promised, measured beside its target
# make check         race detector and linter
# make units-test    the systemd units in a real systemd
# make install       PREFIX=/usr DESTDIR=
GO      ?= go
PREFIX  ?= /usr
DESTDIR ?=
PROGRAMS = pvcnoded pvcapid pvc
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

export CGO_ENABLED ?= 0
# For all alike, so that programs and tests share what is compiled.
export GOFLAGS += -trimpath

# Debian packages that the tests and the demo use; the daemons themselves need
# only a kernel, iproute2 and, for the gate, nftables in the kernel.
PACKAGES = zookeeper default-jre-headless nftables iproute2 ipmitool openipmi \
           procps ca-certificates curl iputils-ping debootstrap systemd-container python3-kazoo

.PHONY: all deps build test vet fmt-check demo soak bench check units-test install clean

all: build

deps:
	@missing=""; for p in $(PACKAGES); do \
	  dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  [ "$$(id -u)" = 0 ] || { echo "make deps: run as root to install:$$missing" >&2; exit 1; }; \
	  echo "installing:$$missing"; \
	  log=$$(mktemp); \
	  { DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends $$missing; } \
	    >$$log 2>&1 || { cat $$log >&2; rm -f $$log; exit 1; }; \
	  rm -f $$log; \
	fi
	@$(GO) mod download

build:
	@mkdir -p bin
	$(GO) build -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ $(addprefix ./cmd/,$(PROGRAMS))

vet:
	$(GO) vet ./...

fmt-check:
	@bad=$$(gofmt -l $$(find . -name '*.go' -not -path './bin/*' -not -path './tools/*')); \
	[ -z "$$bad" ] || { echo "not formatted, run gofmt -w on:"; echo "$$bad"; exit 1; } >&2

# The packages share two kinds of scarce things, processors and ports of the
# real ensemble, and several measure time: few at once.
TESTFLAGS ?= -count=1 -timeout=10m -p 3

test: deps build vet fmt-check
	PVC_UNITS_TEST=1 $(GO) test $(TESTFLAGS) ./...
	bin/pvc sandbox demo
	bin/pvc sandbox chaos --minutes 1 --seed 1

demo: deps build
	bin/pvc sandbox demo

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
	bin/pvc sandbox chaos --minutes 20
	bin/pvc sandbox chaos --minutes 10 --hypervisors 2
	bin/pvc sandbox demo --rounds 30 --faults store-outage-20,sigstop-short,starve
	@end=$$(($$(date +%s) + $(SOAK))); round=0; \
	while [ $$(date +%s) -lt $$end ]; do \
	  round=$$((round + 1)); echo "== round $$round"; \
	  bin/pvc sandbox demo || { echo "round $$round failed" >&2; exit 1; }; \
	done; echo "$$round rounds"

# About 35 minutes; BENCHFLAGS="--quick", "--only switch,loss", "--runs 20", ….
# What single functions cost: go test -run '^$$' -bench . ./...
BENCHFLAGS ?=
bench:
	@$(MAKE) --no-print-directory deps build PACKAGES="$(PACKAGES) keepalived stress-ng"
	bin/pvc sandbox bench $(BENCHFLAGS)

# The linter is built from a module of its own: it drags in a thousand others.
bin/golangci-lint: tools/go.mod
	cd tools && $(GO) build -trimpath -o ../bin/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint

check: deps build bin/golangci-lint
	@command -v gcc >/dev/null || { echo "make check: the race detector needs gcc: apt-get install gcc libc6-dev" >&2; exit 1; }
	GOLANGCI_LINT_CACHE=$(CURDIR)/bin/.lint-cache bin/golangci-lint run --max-same-issues 0 --max-issues-per-linter 0 ./...
	CGO_ENABLED=1 $(GO) test -race -count=1 -timeout=20m -p 2 ./...

units-test: deps build
	PVC_UNITS_TEST=1 $(GO) test -count=1 -v -run 'TestUnits' -timeout=5m .

SBIN = $(DESTDIR)$(PREFIX)/sbin
UNITS = $(DESTDIR)$(PREFIX)/lib/systemd/system
DOCS = $(DESTDIR)$(PREFIX)/share/doc/pvc

install:
	install -D -m 755 -t $(SBIN) bin/pvcnoded bin/pvcapid
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin bin/pvc
	install -d $(UNITS) $(DESTDIR)/etc/pvc
	for u in systemd/*.service systemd/*.slice; do \
	  sed 's,/usr/sbin/,$(PREFIX)/sbin/,; s,/usr/share/doc/,$(PREFIX)/share/doc/,' $$u >$(UNITS)/$${u##*/} && chmod 644 $(UNITS)/$${u##*/} || exit 1; done
	install -D -m 644 systemd/pvc.tmpfiles.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/pvc.conf
	for f in pvcnoded.yaml pvcapid.yaml; do \
	  [ -e $(DESTDIR)/etc/pvc/$$f ] || install -m 640 etc/$$f $(DESTDIR)/etc/pvc/$$f || exit 1; done
	install -D -m 644 -t $(DOCS) README.md DESIGN.md CHANGELOG.md LICENSE docs/operator-guide.md

clean:
	rm -rf bin dist
