#!/bin/bash
# deploy/image.sh [TAG]: build pynet's image and say how large it is. With docker and a registry by default; with
# PYTHON_BASE, PLUGINS and WHEELS (see the Dockerfile) in the environment, from images that are already there. Where no
# docker daemon can be asked: as the end-to-end tests do, in a daemon of their own that needs no registry (root).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tag=${1:-pynet:dev}

if [ -z "${PYTHON_BASE:-}" ] && ! docker info >/dev/null 2>&1; then
    echo "no docker daemon here: building from packages, without a registry"
    node=tests/e2e/node
    was_up=$([ -e /run/pynet-e2e/pid ] && echo yes || true)
    trap '[ -n "$was_up" ] || $node/host.sh down' EXIT
    $node/host.sh up
    echo "the image pynet:e2e, as an archive: $($node/pod-images.sh agent)"
    exit
fi

arguments=()
for name in PYTHON_BASE PLUGINS WHEELS GOLANG; do
    [ -z "${!name:-}" ] || arguments+=(--build-arg "$name=${!name}")
done
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' agent/pynet/__init__.py)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
created=$(git log -1 --format=%cI 2>/dev/null || echo 1970-01-01T00:00:00Z)
DOCKER_BUILDKIT=1 docker build --progress "${BUILD_PROGRESS:-auto}" --tag "$tag" "${arguments[@]}" \
    --build-arg "VERSION=$version" --build-arg "REVISION=$revision" --build-arg "CREATED=$created" .

base=$(docker image inspect --format '{{index .Config.Labels "org.opencontainers.image.base.name"}}' "$tag")
size() { docker image inspect --format '{{.Size}}' "$1" 2>/dev/null || echo 0; }
awk -v tag="$tag" -v base="$base" -v all="$(size "$tag")" -v below="$(size "$base")" 'BEGIN {
    printf "%s: %.0f MB uncompressed", tag, all / 1e6
    if (below > 0) printf ", %.1f MB of it over %s", (all - below) / 1e6, base
    print ""
}'
