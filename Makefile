# make build    the programs, into bin/
# make run      build, and serve the demo page on http://127.0.0.1:7311/ without systemd; its chart shows what vmstat says
# make test     install what the tests need (Debian, apt) and run all of them
# make check    formatting and static analysis
# make bench    measure against a C program, a plain Go server and others; writes doc/performance.md (more: BENCH='-help')
# make install  everything a package has, below DESTDIR
# make deb      a package for Debian and Ubuntu, into bin/ (doc/packaging.md)
# make rpm      a package for Fedora and Enterprise Linux, into bin/
# make fuzz     every fuzz test for TIME each
# make soak     restarts, kills, slow clients and a crowd for TIME, on a booted systemd; draws doc/soak-*.svg

VERSION = 0.1.0
GO ?= go

PREFIX = /usr/local
SBINDIR = $(PREFIX)/sbin
BINDIR = $(PREFIX)/bin
DATADIR = $(PREFIX)/share
DOCDIR = $(DATADIR)/doc/wscast
MANDIR = $(DATADIR)/man
SYSCONFDIR = /etc
UNITDIR = $(PREFIX)/lib/systemd/system
SYSUSERSDIR = $(PREFIX)/lib/sysusers.d
SOCKET = /run/wscast/publish.sock
ZSHDIR = $(DATADIR)/zsh/site-functions
# nginx's directory: the files for nginx go to where its configuration includes them, too. Empty: they do not.
NGINXDIR =

# Static programs: they run on any distribution. -trimpath: the same bytes from any directory.
GOBUILD = CGO_ENABLED=0 $(GO) build -trimpath
LDFLAGS = -s -w -X main.version=$(VERSION)

# Tools of check, which are no dependency of anything that is built.
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK = golang.org/x/vuln/cmd/govulncheck@v1.9.0

TIME = 60s

.PHONY: build run test check bench fuzz soak install deb rpm clean

build:
	$(GOBUILD) -ldflags '$(LDFLAGS) -X wscast/daemon.DefaultPublishSocket=$(SOCKET)' -o bin/wscastd ./cmd/wscastd
	$(GOBUILD) -ldflags '$(LDFLAGS) -X main.defaultSocket=$(SOCKET)' -o bin/wscast ./cmd/wscast

run: build
	@(sleep 1; vmstat -n 1 | bin/wscast publish --socket bin/publish.sock --lines demo/vmstat) >/dev/null 2>&1 & \
	exec bin/wscastd --demo --publish bin/publish.sock

test:
	test/install-deps
	$(GO) test -race ./...
	cd test && $(GO) test -race ./...

check:
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "gofmt -w $$unformatted"; exit 1; }
	$(GO) mod verify
	$(GO) mod tidy -diff
	$(GO) vet ./... && $(GO) vet -tags failpoints ./daemon/...
	cd test && $(GO) mod tidy -diff && $(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	cd test && $(GO) run $(STATICCHECK) ./...
	@.ci/govulncheck $(GO) run $(GOVULNCHECK) ./...

bench: build
	$(GO) run ./bench -wscastd bin/wscastd -doc doc $(BENCH)

fuzz:
	@for module in . test; do (cd $$module && for package in $$($(GO) list ./...); do \
		for test in $$($(GO) test -list '^Fuzz' $$package | grep '^Fuzz'); do \
			echo "$$package $$test"; \
			$(GO) test -run '^$$' -fuzz "^$$test\$$" -fuzztime $(TIME) -fuzzminimizetime 20x $$package || exit 1; \
		done; \
	done) || exit 1; done

soak:
	cd test && WSCAST_SOAK_TIME=$(TIME) WSCAST_SOAK_FIGURES=$(CURDIR)/doc $(GO) test -v -timeout 0 ./booted -run '^TestSoak$$'

# The one list of installed files.
install: build
	install -D -m 755 bin/wscastd $(DESTDIR)$(SBINDIR)/wscastd
	install -D -m 755 bin/wscast $(DESTDIR)$(BINDIR)/wscast
	install -D -m 644 etc/wscast.toml $(DESTDIR)$(SYSCONFDIR)/wscast/wscast.toml
	install -d $(DESTDIR)$(UNITDIR)
	sed 's|/usr/sbin/|$(SBINDIR)/|; s|/etc/wscast/|$(SYSCONFDIR)/wscast/|' systemd/wscast.service >$(DESTDIR)$(UNITDIR)/wscast.service
	chmod 644 $(DESTDIR)$(UNITDIR)/wscast.service
	sed 's|/run/wscast/publish\.sock|$(SOCKET)|' systemd/wscast-publish.socket >$(DESTDIR)$(UNITDIR)/wscast-publish.socket
	chmod 644 $(DESTDIR)$(UNITDIR)/wscast-publish.socket
	install -m 644 systemd/wscast.socket $(DESTDIR)$(UNITDIR)
	install -D -m 644 systemd/wscast.sysusers $(DESTDIR)$(SYSUSERSDIR)/wscast.conf
	install -D -m 644 packaging/completions/wscast.bash $(DESTDIR)$(DATADIR)/bash-completion/completions/wscast
	install -D -m 644 packaging/completions/wscast.zsh $(DESTDIR)$(ZSHDIR)/_wscast
	install -D -m 644 packaging/completions/wscast.fish $(DESTDIR)$(DATADIR)/fish/vendor_completions.d/wscast.fish
	install -D -m 644 etc/nginx/wscast.conf $(DESTDIR)$(DATADIR)/wscast/nginx/wscast.conf
	install -D -m 644 etc/nginx/wscast-http.conf $(DESTDIR)$(DATADIR)/wscast/nginx/wscast-http.conf
	install -d $(DESTDIR)$(DATADIR)/wscast/web
	install -m 644 web/wscast.js web/wscast.mjs web/wscast.d.ts $(DESTDIR)$(DATADIR)/wscast/web
ifneq ($(NGINXDIR),)
	install -D -m 644 etc/nginx/wscast-http.conf $(DESTDIR)$(NGINXDIR)/conf.d/wscast.conf
	install -D -m 644 etc/nginx/wscast.conf $(DESTDIR)$(NGINXDIR)/snippets/wscast.conf
endif
	for page in wscast.1 wscast.toml.5 wscast.7 wscastd.8; do \
		dir=$(DESTDIR)$(MANDIR)/man$${page##*.}; \
		install -d $$dir && \
		sed 's|/usr/share/|$(DATADIR)/|; s|/etc/wscast/|$(SYSCONFDIR)/wscast/|; s|/run/wscast/publish\.sock|$(SOCKET)|' doc/$$page >$$dir/$$page && \
		chmod 644 $$dir/$$page || exit 1; \
	done
	install -D -m 644 README.md $(DESTDIR)$(DOCDIR)/README.md
	install -m 644 CHANGELOG.md doc/protocol.txt $(DESTDIR)$(DOCDIR)

deb rpm:
	GO="$(GO)" packaging/build $@ $(VERSION)

clean:
	rm -rf bin test/node/node_modules
