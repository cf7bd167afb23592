# Every target installs what it needs: Debian packages through scripts/setup.sh
# where they are missing, Go modules through go itself.

GO        ?= go
GOLANGCI  ?= v2.15.0
PARALLEL  ?= 8
FUZZTIME  ?= 20s
COUNT     ?= 1

# Process tests wait far more than they compute.
TESTFLAGS ?= -race -shuffle=on -count=$(COUNT) -parallel $(PARALLEL) -timeout 25m

.PHONY: help demo test managers race soak lint fuzz bench cover cross setup

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: ## the main job: upgrades under load, prints what was lost
	scripts/demo.sh

test: setup bin/h2spec ## all tests but those of make managers
	HANDOVER_NOSKIP=1 $(GO) test $(TESTFLAGS) $$($(GO) list ./... | grep -v /internal/managers)
	cd examples && $(GO) test $(TESTFLAGS) ./...
	cd cmd/upgradectl && $(GO) test $(TESTFLAGS) ./...

managers: ## the tests under real process managers
	scripts/setup.sh managers
	HANDOVER_NOSKIP=1 $(GO) test $(TESTFLAGS) ./internal/managers/

race: setup ## what touches processes, 20 times over
	$(GO) test -race -shuffle=on -count=20 -parallel $(PARALLEL) -timeout 120m -skip '^Test(Real|H2spec|Modes)' ./upgrader/ ./upgradertest/ ./httpgrace/ ./internal/supervise/ .

soak: setup ## 1,000 upgrades and 1,000 failed ones; 100 with each mode and real client; 4 GiB of state
	HANDOVER_SOAK=1000 $(GO) test -count=1 -timeout 60m -run 'Soak' -v ./upgrader/
	HANDOVER_SOAK=100 HANDOVER_NOSKIP=1 $(GO) test -count=1 -timeout 60m -run '^Test(Modes|Real)' -v .
	HANDOVER_STATE_GIB=4 $(GO) test -count=1 -run ManyGiB -v ./upgrader/

lint: setup bin/golangci-lint-$(GOLANGCI) ## golangci-lint, shellcheck, tidy
	bin/golangci-lint-$(GOLANGCI) run ./...
	cd examples && ../bin/golangci-lint-$(GOLANGCI) run ./...
	cd cmd/upgradectl && ../../bin/golangci-lint-$(GOLANGCI) run ./...
	shellcheck scripts/*.sh .ci/run contrib/*/run contrib/systemd/app-start
	$(GO) mod tidy -diff
	cd examples && $(GO) mod tidy -diff
	cd cmd/upgradectl && $(GO) mod tidy -diff
	$(GO) -C internal/tools mod tidy -diff

# It is pinned, with all that it imports, in a module of its own.
bin/h2spec: internal/tools/go.mod internal/tools/go.sum
	$(GO) build -C internal/tools -o $(CURDIR)/$@ github.com/summerwind/h2spec/cmd/h2spec

bin/golangci-lint-$(GOLANGCI):
	@echo "building golangci-lint $(GOLANGCI): some minutes, once"
	GOBIN=$(CURDIR)/bin $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI)
	mv bin/golangci-lint $@

fuzz: ## each fuzz target for FUZZTIME
	@grep -rnoE --include='*_test.go' 'func Fuzz[A-Za-z]+' . | sed -E 's/^(.*)\/[^/]*:[0-9]+:func (.*)/\1 \2/' | \
	while read -r dir target; do \
		echo "$$dir $$target"; $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$dir" || exit 1; \
	done

bench: setup ## the figures of docs/benchmarks.md
	$(GO) test -run '^$$' -bench . -benchmem ./upgrader/ ./httpgrace/
	scripts/bench.sh

cover: setup bin/h2spec ## coverage of the unit tests
	$(GO) test -coverprofile=cover.out -coverpkg=./upgrader/...,./httpgrace/...,./internal/wire/...,./internal/fd/... ./...
	$(GO) tool cover -func=cover.out | tail -1

cross: ## vet and build for the other systems
	for os in darwin freebsd openbsd netbsd windows; do \
		for dir in . examples cmd/upgradectl; do \
			echo "vet $$os $$dir"; (cd $$dir && GOOS=$$os CGO_ENABLED=0 $(GO) vet ./...) || exit 1; \
		done; \
	done

setup:
	@scripts/setup.sh
