#!/bin/bash
# pod-images.sh: in the isolated docker, the images that pods run, as archives for `kind load image-archive`.
# Prints the archives' paths: the agent (pynet:e2e), the tests' tools, Prometheus.
. "$(dirname "$0")/env.sh"
PYTHON=3.11             # of the base, for which wheels are fetched
PLUGINS="bridge ptp loopback host-local portmap bandwidth"
mkdir -p "$WORK/images"

# load NAME KEY DIR [CONFIG]: DIR as the image pynet-e2e/NAME:KEY
load() {
    "$HERE/mkimage.sh" "pynet-e2e/$1:$2" "$3" "$SCRATCH/image.tar" "${4:-"{}"}"
    isolated_docker load -q -i "$SCRATCH/image.tar" >&2
    rm -rf "$SCRATCH/image.tar" "$3"
    drop_others "pynet-e2e/$1:$2"
}

base() { # what an official Python image is elsewhere
    local tar; tar=$("$HERE/rootfs.sh" base)
    IMAGE=pynet-e2e/base:$(key "$tar")
    has_image "$IMAGE" && return
    mkdir "$SCRATCH/base"; tar -C "$SCRATCH/base" -xf "$tar"
    load base "${IMAGE#*:}" "$SCRATCH/base"
}

plugins() {
    local p d=$SCRATCH/plugins; mkdir -p "$d/opt/cni/bin"
    for p in $PLUGINS; do install -m755 "$(binary "cni-$p")" "$d/opt/cni/bin/$p"; done
    IMAGE=pynet-e2e/plugins:$(cd "$d" && sha256sum opt/cni/bin/* | sha256sum | cut -c1-16)
    has_image "$IMAGE" || load plugins "${IMAGE#*:}" "$d"
}

wheels() {
    local list=$REPO/requirements/image.txt d=$SCRATCH/wheels
    IMAGE=pynet-e2e/wheels:$(key "$PYTHON" "$(sha256sum <"$list")")
    has_image "$IMAGE" && return
    "${E2E_PYTHON:-$REPO/.venv/bin/python}" -m pip download -q --no-deps --only-binary :all: --require-hashes --implementation cp \
        --python-version "$PYTHON" --abi "cp${PYTHON/./}" --abi abi3 --abi none \
        --platform "manylinux_2_28_$(uname -m)" --platform "manylinux_2_17_$(uname -m)" --platform "manylinux2014_$(uname -m)" \
        -d "$d/wheels" -r "$list" >&2
    load wheels "${IMAGE#*:}" "$d"
}

agent() {
    if [ -n "${E2E_OWN_DOCKER-yes}" ]; then # no registry: what the Dockerfile is made of, from packages and modules
        base; export PYTHON_BASE=$IMAGE
        plugins; export PLUGINS=$IMAGE
        wheels; export WHEELS=$IMAGE DOCKER_HOST=unix://$DOCKER_SOCKET
    fi
    BUILD_PROGRESS=plain "$REPO/deploy/image.sh" pynet:e2e >"$WORK/build.log" 2>&1 || { tail -30 "$WORK/build.log" >&2; exit 1; }
    tail -1 "$WORK/build.log" >&2
    local id; id=$(isolated_docker image inspect --format '{{.Id}}' pynet:e2e)
    archive agent "${id#sha256:}" || isolated_docker save -o "$OUT.new" pynet:e2e
    publish
}

tools() {
    local tar; tar=$("$HERE/rootfs.sh" tools)
    archive tools "$(key "$tar" "$(sha256sum <"$0")")" || {
        mkdir "$SCRATCH/tools"; tar -C "$SCRATCH/tools" -xf "$tar"
        local applet
        for applet in $(chroot "$SCRATCH/tools" busybox --list); do # those that have no program of their own
            [ -n "$(find "$SCRATCH"/tools/{,usr/}{,s}bin/ -name "$applet" -print -quit)" ] || ln -s /bin/busybox "$SCRATCH/tools/usr/bin/$applet"
        done
        "$HERE/mkimage.sh" pynet-e2e/tools:1 "$SCRATCH/tools" "$OUT.new" '{"Cmd": ["sleep", "infinity"]}'
        rm -rf "$SCRATCH/tools"
    }
    publish
}

prometheus() {
    local program; program=$(binary prometheus)
    archive prometheus "$(cut -c1-16 "$program.sha256")" || {
        mkdir -p "$SCRATCH/prometheus"/{bin,data,etc/prometheus,tmp}
        cp "$program" "$SCRATCH/prometheus/bin/"
        "$HERE/mkimage.sh" pynet-e2e/prometheus:1 "$SCRATCH/prometheus" "$OUT.new" \
            '{"Entrypoint": ["/bin/prometheus", "--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/data"]}'
        rm -rf "$SCRATCH/prometheus"
    }
    publish
}

# archive NAME KEY: where it is kept; true if it is there and whole
archive() {
    OUT=$WORK/images/$1-${2:0:16}.tar NAME=$1
    (cd "$WORK/images" && sha256sum --quiet --status -c "$OUT.sha256" 2>/dev/null)
}
publish() {
    if [ -e "$OUT.new" ]; then
        find "$WORK/images" -name "$NAME-*" ! -name "${OUT##*/}.new" -delete
        (cd "$WORK/images" && sha256sum "${OUT##*/}.new" | sed 's/\.new$//') >"$OUT.sha256"
        mv "$OUT.new" "$OUT"
    fi
    echo "$OUT"
}

scratch
for image in "${@:-agent}"; do timed "image $image" "$image"; done
