#!/bin/bash
# rootfs.sh NAME: a minimal Debian root file system with what NAME needs; kept as an archive with
# its checksum. Prints the archive's path.
. "$(dirname "$0")/env.sh"

# What the agent's image stands on, where the tests have no official Python image.
base="python3,nftables,iptables"
# What the test's pods run. busybox is the dynamic one: a static glibc resolves no names.
tools="busybox,iproute2,iputils-ping,curl,nginx-light,libnginx-mod-stream,iperf3"
# A node: systemd, the runtime, and what kubelet, kube-proxy and kubeadm call.
node="systemd,systemd-sysv,dbus,iproute2,iptables,nftables,containerd,runc,kmod,procps,socat"
node="$node,conntrack,ethtool,ca-certificates,iputils-ping,busybox"

case ${1:-} in base | tools | node) packages=${!1} ;; *) die "usage: rootfs.sh base|tools|node" ;; esac
# The mirror that this host itself is set up with.
mirror=${E2E_MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Component: main' "Codename: $SUITE" | head -1)}
# Of this script all counts but the lists of the other packages.
out=$WORK/rootfs/$1-$(key "$packages" "$SUITE" "$(grep -vE '^(base|tools|node)=' "$0")").tar

if [ -e "$out" ] && (cd "$WORK/rootfs" && sha256sum --quiet -c "$out.sha256") >&2; then echo "$out"; exit; fi
scratch
mkdir -p "$WORK/debs"
bootstrap() {
    debootstrap --variant=minbase --cache-dir="$WORK/debs" --include="$packages" "$SUITE" "$SCRATCH/root" "$mirror" \
        >"$WORK/debootstrap-$1.log" 2>&1 || { tail -20 "$WORK/debootstrap-$1.log" >&2; exit 1; }
}
timed "debootstrap $1" bootstrap "$1"

# Nothing here needs docs, translations, time zones, package lists or caches.
rm -rf "$SCRATCH"/root/usr/share/{doc,man,locale,info,lintian,zoneinfo} "$SCRATCH"/root/var/cache/apt/* \
    "$SCRATCH"/root/var/lib/apt/lists/* "$SCRATCH"/root/var/log/*.log "$SCRATCH"/root/dev/*
rm -f "$SCRATCH"/root/etc/{hostname,resolv.conf}
tar -C "$SCRATCH/root" --sort=name --numeric-owner --one-file-system --xattrs --xattrs-include='*' -cf "$SCRATCH/tar" .
rm -f "$WORK/rootfs/$1"-*
mv "$SCRATCH/tar" "$out.new"
(cd "$WORK/rootfs" && sha256sum "${out##*/}.new" | sed 's/\.new$//') >"$out.sha256"
mv "$out.new" "$out"
echo "$out"
