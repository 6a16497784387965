#!/bin/bash
# node-image.sh: the image that kind's nodes run, from Debian packages and Go modules, in the isolated
# docker; nothing is pulled. Prints its name. A stock image may be named instead: E2E_NODE_IMAGE.
. "$(dirname "$0")/env.sh"

programs="kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubeadm kubectl etcd pause nores crictl coredns"
# What kind's own image has, too: the rest has to come from pynet.
plugins="loopback host-local ptp portmap"
declare -A bin
for p in $programs; do bin[$p]=$(binary "$p"); done
for p in $plugins; do bin[cni-$p]=$(binary "cni-$p"); done
rootfs=$("$HERE/rootfs.sh" node)
image=pynet-e2e/node:$(key "$KUBE" "$rootfs" "$(key_of files node-image.sh mkimage.sh)" "$(cat "${bin[@]/%/.sha256}" | sort)")
if has_image "$image"; then echo "$image"; exit; fi

scratch
NODE=$SCRATCH/node IMAGES=$SCRATCH/images
mkdir -p "$NODE" "$IMAGES"
tagof() { "${bin[kubeadm]}" config images list --kubernetes-version "$KUBE" 2>/dev/null | grep "/$1:"; }

# --- the images kubeadm names ------------------------------------------------
static() { # static NAME: an image of one static program
    mkdir -p "$SCRATCH/$1/usr/local/bin" "$SCRATCH/$1/tmp" "$SCRATCH/$1/etc"
    cp "${bin[$1]}" "$SCRATCH/$1/usr/local/bin/$1"
    "$HERE/mkimage.sh" "$(tagof "$1")" "$SCRATCH/$1" "$IMAGES/$1.tar" "{\"Entrypoint\": [\"/usr/local/bin/$1\"]}"
}

# kube-proxy also wants iptables, nft and conntrack: from the node's root file system, with what they
# link to. Without libm, which the plug-in `statistic` needs, Services silently do nothing.
proxy() {
    local d=$SCRATCH/proxy f l
    mkdir -p "$d/usr/local/bin" "$d/run" "$d/tmp" "$d/etc/alternatives"
    ln -s usr/lib "$d/lib"; ln -s usr/lib64 "$d/lib64"; ln -s usr/sbin "$d/sbin"; ln -s usr/bin "$d/bin"
    cp "${bin[kube-proxy]}" "$d/usr/local/bin/kube-proxy"
    (cd "$NODE" && cp -a --parents usr/sbin/xtables-*-multi usr/sbin/ip*tables* usr/sbin/nft usr/sbin/conntrack \
        usr/lib/*-linux-gnu/xtables etc/alternatives/ip*tables* etc/services "$d/")
    for f in "$d"/usr/sbin/*-multi "$d"/usr/sbin/nft "$d"/usr/sbin/conntrack "$d"/usr/lib/*/xtables/*.so; do
        [ -L "$f" ] || chroot "$NODE" ldd "${f#"$d"}"
    done | grep -oE '/(usr/)?lib[^ ]*' | sort -u | while read -r l; do
        l=${l#/}; l=usr/${l#usr/}
        mkdir -p "$d/$(dirname "$l")"; cp -L "$NODE/$l" "$d/$l"
    done
    "$HERE/mkimage.sh" "$(tagof kube-proxy)" "$d" "$IMAGES/kube-proxy.tar" '{"Entrypoint": ["/usr/local/bin/kube-proxy"]}'
}

components() {
    local c
    for c in kube-apiserver kube-controller-manager kube-scheduler etcd pause coredns; do static $c; done
    proxy
}

# --- the node -----------------------------------------------------------------
compose() {
    local p w=$NODE/etc/systemd/system u
    cp -a --no-preserve=ownership "$HERE/files/." "$NODE/"
    install -m755 "${bin[nores]}" "$NODE/usr/local/sbin/nores"
    for p in kubelet kubeadm kubectl crictl; do install -m755 "${bin[$p]}" "$NODE/usr/local/bin/$p"; done
    mkdir -p "$NODE/opt/cni/bin" "$NODE/etc/cni/net.d"
    for p in $plugins; do install -m755 "${bin[cni-$p]}" "$NODE/opt/cni/bin/$p"; done
    sed -i "s#@PAUSE@#$(tagof pause)#" "$NODE/etc/containerd/config.toml"
    echo "$KUBE" >"$NODE/kind/version"
    : >"$NODE/etc/machine-id"; rm -f "$NODE/var/lib/dbus/machine-id"
    mkdir -p "$w/multi-user.target.wants"
    rm -rf "$w/timers.target.wants" "$w/getty.target.wants"
    for u in containerd kubelet node-dns-udp node-dns-tcp; do
        ln -sf "/etc/systemd/system/$u.service" "$w/multi-user.target.wants/$u.service"
    done
    ln -sf /lib/systemd/system/multi-user.target "$w/default.target"
    for u in getty.target console-getty.service systemd-logind.service nftables.service systemd-binfmt.service \
        proc-sys-fs-binfmt_misc.automount dev-hugepages.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
        sys-fs-fuse-connections.mount systemd-ask-password-wall.path systemd-ask-password-console.path \
        systemd-remount-fs.service systemd-firstboot.service e2scrub_reap.service systemd-journald-audit.socket; do
        ln -sf /dev/null "$w/$u"
    done
}

# Fill containerd's store with the node's own containerd, in a chroot. Layers stay packed: a node unpacks
# only what it runs. (/var is a volume; docker copies it into each node.)
preload() {
    unshare --mount --pid --fork --kill-child bash -eu -c '
        n=$1 img=$2
        mount -t proc proc "$n/proc"; mount -t tmpfs tmpfs "$n/run"; mount -t tmpfs tmpfs "$n/tmp"
        mkdir "$n/tmp/images"; mount --bind "$img" "$n/tmp/images"
        printf "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n" >"$n/run/c.toml"
        chroot "$n" containerd -c /run/c.toml >"$n/run/log" 2>&1 & pid=$!
        for _ in $(seq 100); do chroot "$n" ctr version >/dev/null 2>&1 && break; sleep 0.1; done
        for t in "$n"/tmp/images/*.tar; do
            chroot "$n" ctr -n k8s.io images import --no-unpack "/tmp/images/${t##*/}" >/dev/null || { cat "$n/run/log"; exit 1; }
        done
        kill $pid; wait $pid || true' - "$NODE" "$IMAGES" >&2
}

build() {
    tar -C "$NODE" -xf "$rootfs"
    compose
    components
    preload
    "$HERE/mkimage.sh" "$image" "$NODE" "$SCRATCH/node.tar" '{
        "Entrypoint": ["/usr/local/sbin/entrypoint"], "StopSignal": "SIGRTMIN+3",
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "container=docker"]}'
    isolated_docker load -q -i "$SCRATCH/node.tar" >&2
}
timed "node image" build
drop_others "$image"
echo "$image"
