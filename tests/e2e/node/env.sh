# Settings and small tools shared by the scripts of this folder. Source it; do not run it.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(cd "$HERE/../../.." && pwd)

# --- versions -------------------------------------------------------------
KUBE=v1.34.4            # newest minor whose kubelet still accepts cgroup v1
SUITE=bookworm

# --- products: everything below is safe to delete while no daemon of ours runs
CACHE=${PYNET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pynet}
WORK=$CACHE/e2e

# --- the isolated docker --------------------------------------------------
NETNS=${E2E_NETNS:-pynet-e2e}              # a network namespace without an uplink
RUN_DIR=/run/$NETNS
DOCKER_SOCKET=$RUN_DIR/docker.sock

mkdir -p "$WORK/bin" "$WORK/rootfs"
# Programs of ours first: the host's kubectl or docker client may be of another age.
PATH=$WORK/bin:$PATH:/usr/local/go/bin:/usr/sbin:/sbin

say() { printf 'e2e: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# binary NAME: build it if need be, print its path.
binary() { "$REPO/tests/support/go-binaries.sh" "$1"; }

# key TEXT... : short content hash of the words; key_of FILE...: of files and folders (names and contents)
key() { printf '%s\n' "$@" | sha256sum | cut -c1-16; }
key_of() { (cd "$HERE" && find "$@" -type f -print0 | sort -z | xargs -0 sha256sum) | sha256sum | cut -c1-16; }

# timed NAME CMD...: run it and say how long it took. (Not `CMD || ...`: that would switch off -e inside a function.)
timed() {
    local t_name=$1 t_start; shift
    t_start=$(date +%s.%N)
    "$@"
    printf 'e2e: %-26s %6.1f s\n' "$t_name" "$(awk -v a="$t_start" -v b="$(date +%s.%N)" 'BEGIN {print b - a}')" >&2
}

# scratch: a temporary folder in the cache, removed when the script ends.
scratch() {
    local d; d=$(mktemp -d "$WORK/tmp.XXXXXX")
    trap 'rm -rf '"$d" EXIT
    SCRATCH=$d
}

# The daemon of ours; with kind's stock node image (E2E_OWN_DOCKER is empty then) whichever is here.
isolated_docker() {
    if [ -n "${E2E_OWN_DOCKER-yes}" ]; then local -x DOCKER_HOST=unix://$DOCKER_SOCKET; fi
    docker "$@"
}
has_image() { isolated_docker image inspect "$1" >/dev/null 2>&1; }

# drop_others NAME:TAG: remove the image's earlier versions; one that is in use stays.
drop_others() {
    isolated_docker image ls --format '{{.Repository}}:{{.Tag}}' "${1%:*}" | grep -vxF "$1" |
        while read -r old; do isolated_docker image rm "$old" >/dev/null 2>&1; done || true
}
