#!/usr/bin/env bash
# The environment that `make demo` and, with --tests, `make test` need: system packages (Debian, as root) and a virtual
# environment in .venv. Says what it does, does nothing twice, and is quick when nothing is to do.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'environment: %s\n' "$*"; }
fail() { printf 'environment: %s\n' "$*" >&2; exit 1; }

# What the agent and the lab call, and the Debian package that brings it; then what only tests call.
declare -A package_of=(
  [nft]=nftables [ip]=iproute2 [iptables]=iptables [nsenter]=util-linux [ping]=iputils-ping
)
case ${1:-} in
  '') tests= ;;
  --tests)
    tests=1
    package_of+=([openssl]=openssl [setpriv]=util-linux [mount]=mount [ps]=procps)
    ;;
  *) fail "usage: scripts/bootstrap.sh [--tests]" ;;
esac

has() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1; }

missing_packages() {
  local command
  for command in "${!package_of[@]}"; do
    has "$command" || echo "${package_of[$command]}"
  done
  [[ -x /usr/lib/cni/bridge || -x /opt/cni/bin/bridge ]] || echo containernetworking-plugins
  [[ -x .venv/bin/python ]] || find_python >/dev/null || echo python3-venv
  if [[ -n $tests ]] && ! new_enough "$(go_version)" && new_enough "$(debian_go)"; then echo golang; fi
}

# Go builds helm (unit tests) and etcd, kube-apiserver and kubectl (api tests), once: tests/support/go-binaries.sh.
new_enough() { [[ -n $1 && $(printf '%s\n' 1.24 "$1" | sort -V | head -n 1) == 1.24 ]]; }
go_version() { PATH="$PATH:/usr/local/go/bin" go env GOVERSION 2>/dev/null | sed 's/^go//' || true; }
debian_go() { # what apt-get would install: "2:1.24~2" without epoch and revision
  apt-cache policy golang 2>/dev/null | sed -nE 's/^ *Candidate: ([0-9]+:)?([0-9.]+).*/\2/p' || true
}

# No failure: what was built before needs no Go, and a test that does need it says so itself.
mention_go() {
  local found
  found=$(go_version)
  new_enough "$found" ||
    say "Go 1.24 or newer is not there (${found:-none}): only unit, api and e2e tests and benchmarks need it, to build helm," \
      "kube-apiserver and the like once (Debian 13: golang; else https://go.dev/dl)"
}

# The first Python that is new enough and can make a virtual environment. A pyenv shim can be there for a version that is
# not, so each is asked rather than looked up.
find_python() {
  local name
  for name in python3.11 python3.12 python3.13 python3; do
    if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      "$name" -c 'import sys; print(sys.executable)'
      return 0
    fi
  done
  return 1
}

install_packages() {
  local -a packages
  mapfile -t packages < <(missing_packages | sort -u)
  ((${#packages[@]})) || return 0
  if ! has apt-get; then
    say "missing: ${packages[*]} (Debian's names); install them with this system's package tool"
  elif ((EUID != 0)); then
    say "missing: ${packages[*]}; run this once:  sudo apt-get install --yes ${packages[*]}"
  else
    say "installing ${packages[*]} with apt-get"
    export DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes
    apt-get update -qq </dev/null || fail "apt-get update failed (its words are above)"
    apt-get install -qq --yes --no-install-recommends "${packages[@]}" </dev/null >/dev/null ||
      fail "apt-get could not install ${packages[*]} (its words are above)"
    return 0
  fi
  [[ -z "${CI:-}" ]] || fail "in CI everything must be there"
}

stamp() { # changes when what is installed would change
  { cat requirements/dev.txt pyproject.toml scripts/bootstrap.sh; echo "$PWD"; } | sha256sum | cut -d ' ' -f 1
}

install_environment() {
  local python
  if [[ ! -x .venv/bin/python ]] || ! .venv/bin/python -c '' 2>/dev/null; then
    python=$(find_python) || fail "no Python 3.11 or newer with venv and ensurepip found (Debian 12: apt-get install python3 python3-venv)"
    say "making .venv with $("$python" --version) ($python)"
    rm -rf .venv
    "$python" -m venv .venv
  fi
  say "installing the pinned packages of requirements/dev.txt (about a minute from an empty cache)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt ||
    fail "pip could not install requirements/dev.txt (its words are above)"
  say "installing pynet itself, editable"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . ||
    fail "pip could not install pynet (its words are above)"
  stamp >.venv/.stamp
  say "ready: .venv/bin/pynet"
}

install_packages
[[ -z $tests ]] || mention_go
if [[ "$(cat .venv/.stamp 2>/dev/null)" != "$(stamp)" || ! -x .venv/bin/pynet ]]; then
  install_environment
fi
