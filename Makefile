# Two commands do everything: make run, make test. See README.md.

PREFIX  ?= /usr/local
DESTDIR ?=
GO      := scripts/go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

export CGO_ENABLED = 0
BUILD   := $(GO) build -trimpath
LDFLAGS := -s -w -X manis/version.Version=$(VERSION)

.PHONY: run test build binaries guest kernel initramfs install node-image setup setup-test \
	check unit e2e validation podman docker containerd critest kubernetes kubernetes-ground kubernetes-many kubernetes-scale kubernetes-ready kubernetes-e2e bench bench-startup bench-gate bench-accept soak fuzz breakout docs clean

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
	$(BUILD) -ldflags "$(LDFLAGS)" -o bin/ ./cmd/manis ./cmd/manis-trust ./cmd/manisd ./cmd/containerd-shim-manis-v2 ./cmd/manis-node

# The guest image: kernel (minutes, once) and initramfs, where bin/manis finds them.
guest: kernel initramfs

kernel:
	@guest/kernel/build

initramfs:
	@mkdir -p build guest/image
	$(BUILD) -ldflags "-s -w -X manis/version.Version=$(VERSION)" -o build/manis-agent ./cmd/manis-agent
	@$(GO) run ./guest/initramfs/mkinitramfs -o guest/image/initramfs build/manis-agent
	$(BUILD) -ldflags "-s -w" -o build/manis-agent-confidential ./cmd/manis-agent-confidential
	@$(GO) run ./guest/initramfs/mkinitramfs -o guest/image/initramfs-confidential build/manis-agent-confidential

install:
	install -D -m 755 bin/manis $(DESTDIR)$(PREFIX)/bin/manis
	install -D -m 755 bin/manis-trust $(DESTDIR)$(PREFIX)/bin/manis-trust
	install -D -m 755 bin/manisd $(DESTDIR)$(PREFIX)/bin/manisd
	install -D -m 755 bin/containerd-shim-manis-v2 $(DESTDIR)$(PREFIX)/bin/containerd-shim-manis-v2
	install -D -m 755 bin/manis-node $(DESTDIR)$(PREFIX)/bin/manis-node
	@for kind in system user; do \
		install -d $(DESTDIR)$(PREFIX)/lib/systemd/$$kind && \
		for unit in manisd.service manisd.socket; do \
			sed 's|@PREFIX@|$(PREFIX)|' deploy/systemd/$$kind/$$unit >$(DESTDIR)$(PREFIX)/lib/systemd/$$kind/$$unit || exit 1; \
		done; \
	done
	install -D -m 644 deploy/manisd.json $(DESTDIR)$(PREFIX)/share/doc/manis/manisd.json
	install -D -m 644 guest/image/vmlinuz $(DESTDIR)$(PREFIX)/lib/manis/vmlinuz
	install -D -m 644 guest/image/initramfs $(DESTDIR)$(PREFIX)/lib/manis/initramfs
	install -D -m 644 guest/image/bzImage $(DESTDIR)$(PREFIX)/lib/manis/bzImage
	install -D -m 644 guest/image/initramfs-confidential $(DESTDIR)$(PREFIX)/lib/manis/initramfs-confidential

# The image of the DaemonSet that installs Manis on nodes: an OCI layout, and the same packed.
node-image: build
	@$(GO) run ./deploy/image -o build/manis-node -tag "$(VERSION)"
	@tar -C build/manis-node -cf build/manis-node.tar .
	@echo "build/manis-node.tar is docker.io/library/manis-node:$(VERSION)"

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
	$(GO) test -count=1 -timeout 30m $$($(GO) list ./test/... | grep -v -e '^manis/test/podman$$' -e '^manis/test/docker$$' -e '^manis/test/containerd$$' -e '^manis/test/kubernetes$$' -e '^manis/test/helm$$')

# Engines with Manis as their runtime. They need root, and are given namespaces of their own.
podman:
	@scripts/setup podman
	@$(MAKE) -s build
	$(GO) test -count=1 -parallel 2 -timeout 20m ./test/podman

docker:
	@scripts/setup docker
	@$(MAKE) -s build
	$(GO) test -count=1 -parallel 2 -timeout 20m ./test/docker

# containerd and its CRI with Manis as their runtime: built from the module proxy, once.
containerd:
	@scripts/setup containerd
	@$(MAKE) -s build
	$(GO) test -count=1 -timeout 40m ./test/containerd

# The community's validation suite of CRI, which is not part of this repository: make critest CRITEST=/path/to/critest
critest:
	@test -x "$(CRITEST)" || { echo "make critest CRITEST=/path/to/critest (of the project cri-tools)" >&2; exit 1; }
	@scripts/setup containerd
	@$(MAKE) -s build
	MANIS_CRITEST="$(abspath $(CRITEST))" MANIS_CRITEST_RESULTS="$(CURDIR)/test/containerd/results" \
		$(GO) test -count=1 -timeout 60m -run TestCommunity -v ./test/containerd

# A Kubernetes of one node with Manis as a RuntimeClass, and the chart with Helm: built from the module proxy, once, in some ten minutes.
kubernetes:
	@scripts/setup kubernetes
	@$(MAKE) -s build
	$(GO) test -count=1 -timeout 90m ./test/kubernetes ./test/helm

# Long forms of it, whose results are in test/kubernetes/results: PODS together and STARTS in a row; a deployment that grows to REPLICAS; the time to
# ready in ROUNDS, beside runc; and Kubernetes' own tests (test/kubernetes/conformance.txt) for each of E2E_RUNTIMES and
# E2E_PARTS, FOCUS being other ones of a part's.
PODS ?= 110
STARTS ?= 500
REPLICAS ?= 8
E2E_RUNTIMES ?= runc manis
E2E_PARTS ?= node storage network apps
FOCUS ?=
KUBERNETES_LONG = MANIS_KUBERNETES_RESULTS="$(CURDIR)/test/kubernetes/results" $(GO) test -count=1 -timeout 8h -v ./test/kubernetes

kubernetes-many kubernetes-scale kubernetes-ready kubernetes-e2e: kubernetes-ground
kubernetes-ground:
	@scripts/setup kubernetes
	@$(MAKE) -s build

kubernetes-many:
	MANIS_PODS=$(PODS) MANIS_STARTS=$(STARTS) $(KUBERNETES_LONG) -run 'TestMany|TestInARow'

kubernetes-scale:
	MANIS_REPLICAS=$(REPLICAS) $(KUBERNETES_LONG) -run TestScale

kubernetes-ready:
	MANIS_READY_ROUNDS=$(ROUNDS) $(KUBERNETES_LONG) -run TestReadyTime

kubernetes-e2e:
	@failed=; for r in $(E2E_RUNTIMES); do for p in $(E2E_PARTS); do \
		MANIS_E2E_RUNTIME=$$r MANIS_E2E_PART=$$p MANIS_E2E_FOCUS='$(FOCUS)' $(KUBERNETES_LONG) -run TestUpstream || failed=1; \
	done; done; test -z "$$failed"

# What a hostile container and a replaced agent try against the host. A part of e2e.
breakout: setup-test build
	$(GO) test -count=1 -timeout 20m -run 'TestBreakOut|TestOutputFlood|TestForkBomb|TestMemoryHog|TestTerminalEscapes' ./test/e2e

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

# Every fuzz target in turn, FUZZTIME each.
FUZZTIME ?= 10m
fuzz:
	@scripts/fuzz $(FUZZTIME)

docs: binaries
	bin/manis docs docs

clean:
	rm -rf bin build guest/image
