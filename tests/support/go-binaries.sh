#!/usr/bin/env bash
# Build programs of go-binaries.txt from their Go modules, once, into a cache outside the repository.
#
#   go-binaries.sh NAME...               prints the path of each, in the order asked
#   go-binaries.sh --into DIR NAME...    also links each into DIR under its name
#
# The cache is ${PYNET_CACHE:-${XDG_CACHE_HOME:-~/.cache}/pynet}/bin/NAME-HASH/, HASH being that of the recipe (this file and
# the program's row). The checksum is written last and checked at each use: what is half-written or damaged is built again.
# Progress goes to stderr. Needs Go >= 1.24 and a Go module proxy the first time, neither after that.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
self=$here/$(basename "${BASH_SOURCE[0]}")
table=${GO_BINARIES_TABLE:-$here/go-binaries.txt}
cache=${PYNET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pynet}
PATH=$PATH:/usr/local/go/bin

say() { printf '%s\n' "$*" >&2; }
die() { say "go-binaries: $*"; exit 1; }

# row NAME: sets source, package, cold, ldflags, tags from the table
row() {
    local line
    line=$(sed -E '/^[[:space:]]*(#|$)/d; s/[[:space:]]*\|[[:space:]]*/|/g; s/[[:space:]]+$//' "$table" | grep -m1 "^$1|") ||
        die "no program $1 in $table; it has: $(sed -nE 's/^([a-z][a-z0-9-]*) .*/\1/p' "$table" | tr '\n' ' ')"
    IFS='|' read -r _ source package cold ldflags tags <<<"$line"
}

# place NAME: sets directory, where the program is or will be; a folder's files belong to the recipe
place() {
    row "$1"
    directory=$cache/bin/$1-$({
        cat "$self"
        uname -m
        printf '%s|' "$1" "$source" "$package" "$ldflags" "$tags"
        case $source in ./*) (cd "$repo/$source" && find . -type f -print0 | sort -z | xargs -0 sha256sum) ;; esac
    } | sha256sum | cut -c1-16)
}

intact() { (cd "$directory" 2>/dev/null && sha256sum --check --status "$1.sha256" 2>/dev/null); }

need_go() {
    local found
    found=$(go env GOVERSION 2>/dev/null) || die "Go >= 1.24 is needed to build $1, and there is none (apt install golang, or https://go.dev/dl)"
    [ "$(printf '%s\n' go1.24 "$found" | sort -V | head -1)" = go1.24 ] ||
        die "Go >= 1.24 is needed to build $1, and this one is ${found#go} (https://go.dev/dl)"
}

# Modules with replace lines are refused by `go install m@v`: so make a module around each. Kubernetes' own replace lines name
# folders of its repository (staging/); here they become the releases of these modules.
wrap_module() {
    local module=${source%@*} version=${source#*@} gomod
    [ -e "$1/go.mod" ] && return
    gomod=$(cd / && { GOWORK=off go mod download -json "$source" || true; } | sed -nE 's/^[[:space:]]*"(GoMod|Error)": "(.*)",?$/\2/p')
    [ -f "$gomod" ] || die "no module $source from the Go module proxy: ${gomod:-no answer}"
    {
        printf 'module local\n\ngo 1.24.0\n\nrequire %s %s\n\nreplace (\n' "$module" "$version"
        sed -nE 's#^[[:space:]]*(k8s\.io/[a-z0-9-]+) => \./staging.*#\1#p' "$gomod" | sort -u | sed "s#.*#\t& => & v0${version#v1}#"
        printf ')\n'
    } >"$1/go.mod"
}

# link_flags: the row's, or Kubernetes' version stamp
link_flags() {
    local version=${source#*@} minor p
    if [ "$ldflags" != kube ]; then printf '%s' "${ldflags//VERSION/$version}"; return; fi
    minor=${version#v1.}
    for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        printf -- '-X %s.gitVersion=%s -X %s.gitMajor=1 -X %s.gitMinor=%s -X %s.gitTreeState=clean ' "$p" "$version" "$p" "$p" "${minor%%.*}" "$p"
        printf -- '-X %s.gitCommit=0000000000000000000000000000000000000000 -X %s.buildDate=2026-01-01T00:00:00Z ' "$p" "$p"
    done
}

# compile NAME WORK: go build in the background, so that a reader sees that it goes on
compile() {
    local seconds=0 flags
    flags=$(link_flags)
    (cd "$2" && exec env CGO_ENABLED=0 GOWORK=off GOFLAGS="${GOFLAGS:-} -buildvcs=false" \
        go build -mod=mod -trimpath -tags "$tags" -ldflags "-s -w $flags" -o "$directory/.new" "$package") >"$directory/log" 2>&1 9>&- &
    builder=$!
    while kill -0 "$builder" 2>/dev/null; do
        sleep 1
        seconds=$((seconds + 1))
        [ $((seconds % 30)) -ne 0 ] || say "  ... $1: $seconds s, still building"
    done
    if ! wait "$builder"; then
        say "go build of $1 failed; its last words (all of them in $directory/log):"
        tail -n 20 "$directory/log" >&2
        exit 1
    fi
    builder=
}

build() {
    local began=$SECONDS what=${source#*@} work
    need_go "$1"
    case $source in ./*) what=$source ;; esac
    say "building $1 $what (about $cold on 2 cores, once)"
    rm -rf "$directory"
    mkdir -p "$directory/work"
    work=$directory/work
    case $source in
    ./*) cp -r "$repo/$source/." "$work/" ;;
    *) wrap_module "$work" ;;
    esac
    compile "$1" "$work"
    # The checksum last, both renamed into place: a kill at any point leaves something that intact() refuses.
    (cd "$directory" && mv .new "$1" && sha256sum "$1" >.sum && mv .sum "$1.sha256")
    rm -rf "$work"
    say "  built $1 in $((SECONDS - began)) s"
}

into=
if [ "${1:-}" = --into ]; then into=${2:?--into needs a folder}; shift 2; fi
case ${1:-} in '' | -*) sed -n '2,9s/^# \{0,1\}//p' "$self" >&2; exit 64 ;; esac

builder=
trap '[ -z "$builder" ] || kill "$builder" 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM
mkdir -p "$cache/bin"
for name; do
    place "$name"
    if ! intact "$name"; then
        # One build at a time on this machine: two would share the cores, and mostly the same packages.
        exec 9>"$cache/bin/.lock"
        flock -n 9 || { say "waiting: another go-binaries.sh is building"; flock 9; }
        intact "$name" || build "$name"
        exec 9>&-
    fi
    [ -z "$into" ] || { mkdir -p "$into"; ln -sfn "$directory/$name" "$into/$name"; }
    printf '%s\n' "$directory/$name"
done
