# Two commands do everything: make run, make test. See README.md.

PREFIX  ?= /usr/local
DESTDIR ?=
GO      := scripts/go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

export CGO_ENABLED = 0
BUILD   := $(GO) build -trimpath
LDFLAGS := -s -w -X manis/version.Version=$(VERSION)

.PHONY: run test build binaries guest kernel initramfs install setup setup-test \
	check unit e2e validation podman docker bench bench-startup bench-gate bench-accept soak fuzz docs clean

# A first container in a VM, on a fresh machine, with no registry at hand.
run: setup build
	@scripts/first-run

setup:
	@scripts/setup run

setup-test:
	@scripts/setup test

build: binaries guest

binaries:
	@mkdir -p bin
	$(BUILD) -ldflags "$(LDFLAGS)" -o bin/ ./cmd/manis ./cmd/manisd

# The guest image: kernel (minutes, once) and initramfs, where bin/manis finds them.
guest: kernel initramfs

kernel:
	@guest/kernel/build

initramfs:
	@mkdir -p build guest/image
	$(BUILD) -ldflags "-s -w -X manis/version.Version=$(VERSION)" -o build/manis-agent ./cmd/manis-agent
	@$(GO) run ./guest/initramfs/mkinitramfs -o guest/image/initramfs build/manis-agent

install:
	install -D -m 755 bin/manis $(DESTDIR)$(PREFIX)/bin/manis
	install -D -m 755 bin/manisd $(DESTDIR)$(PREFIX)/bin/manisd
	@for kind in system user; do \
		install -d $(DESTDIR)$(PREFIX)/lib/systemd/$$kind && \
		for unit in manisd.service manisd.socket; do \
			sed 's|@PREFIX@|$(PREFIX)|' deploy/systemd/$$kind/$$unit >$(DESTDIR)$(PREFIX)/lib/systemd/$$kind/$$unit || exit 1; \
		done; \
	done
	install -D -m 644 deploy/manisd.json $(DESTDIR)$(PREFIX)/share/doc/manis/manisd.json
	install -D -m 644 guest/image/vmlinuz $(DESTDIR)$(PREFIX)/lib/manis/vmlinuz
	install -D -m 644 guest/image/initramfs $(DESTDIR)$(PREFIX)/lib/manis/initramfs

# Everything needed to trust a change.
test: setup-test build check unit e2e

# Reports and changes nothing; files that git ignores are nobody's business.
check:
	@unformatted=$$(git ls-files -z -c -o --exclude-standard '*.go' | \
		xargs -0 sh -c 'for f; do [ ! -e "$$f" ] || printf "%s\0" "$$f"; done' - | \
		xargs -0 "$$($(GO) env GOROOT)/bin/gofmt" -l) && test -z "$$unformatted" || \
		{ echo "not formatted (gofmt -w does it):"; echo "$$unformatted"; exit 1; } >&2
	$(GO) vet ./...

# Rooms by themselves; those that need one boot a VM.
unit:
	$(GO) test -count=1 -timeout 20m $$($(GO) list ./... | grep -v '^manis/test/')

# The whole product, as its users run it.
e2e:
	$(GO) test -count=1 -timeout 30m $$($(GO) list ./test/... | grep -v -e '^manis/test/podman$$' -e '^manis/test/docker$$')

# Engines with Manis as their runtime. They need root, and are given namespaces of their own.
podman:
	@scripts/setup podman
	@$(MAKE) -s build
	$(GO) test -count=1 -parallel 2 -timeout 20m ./test/podman

docker:
	@scripts/setup docker
	@$(MAKE) -s build
	$(GO) test -count=1 -parallel 2 -timeout 20m ./test/docker

# The OCI validation suite, whose results are docs/VALIDATION.md. Needs root.
validation: setup-test build
	$(GO) run ./test/validation/cmd

bench: setup-test build
	$(GO) run ./bench

# Where starts spend their time, beside the peers, and how that has changed: ROUNDS in turn.
ROUNDS ?= 20
bench-startup: setup-test build
	$(GO) run ./bench -only start -rounds $(ROUNDS) -data 1

# Fails when starts have become slower than bench/accepted.json, in starts of runc and runsc.
bench-gate: setup-test build
	$(GO) run ./bench -gate -rounds 5

# Makes the starts of now the accepted ones. On an idle machine.
bench-accept: setup-test build
	$(GO) run ./bench -accept -rounds $(ROUNDS)

# SOAK containers started and ended in all ways, and nothing may be left.
SOAK ?= 1000
soak: setup-test build
	$(GO) run ./test/soak/cmd -n $(SOAK)

# FUZZTIME per target.
FUZZTIME ?= 20s
fuzz:
	@scripts/fuzz $(FUZZTIME)

docs: binaries
	bin/manis docs docs

clean:
	rm -rf bin build guest/image
