#!/bin/bash
# host.sh up|down: a docker daemon of our own in a network namespace that has no uplink, so that
# nothing in the clusters can reach an outside network. `down` stops what `up` started.
. "$(dirname "$0")/env.sh"

packages() {
    local need="" p
    for p in docker.io containerd runc debootstrap iproute2 iptables jq util-linux procps; do
        dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q ' installed$' || need="$need $p"
    done
    # The build needs BuildKit; newer clients have it as a plug-in with a package of its own.
    if [ -n "$need" ] && apt-cache show docker-buildx >/dev/null 2>&1; then need="$need docker-cli docker-buildx"; fi
    [ -n "$need" ] || return 0
    [ "$(id -u)" = 0 ] || die "as root: apt-get update && apt-get install -y --no-install-recommends$need"
    # Keep the packages from starting a daemon of their own.
    local policy=/usr/sbin/policy-rc.d
    if [ -e $policy ]; then policy=; else printf '#!/bin/sh\nexit 101\n' >$policy; chmod +x $policy; fi
    # shellcheck disable=SC2086
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends $need; } >"$WORK/apt.log" 2>&1 || { tail "$WORK/apt.log"; exit 1; }
    [ -z "$policy" ] || rm -f "$policy"
}

# cgroup v1: containers of systemd want name=systemd; mount what a bare host may lack.
cgroups() {
    [ ! -e /sys/fs/cgroup/cgroup.controllers ] && ! mountpoint -q /sys/fs/cgroup/systemd || return 0
    mkdir -p /sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd systemd /sys/fs/cgroup/systemd
}

up() {
    [ "$(id -u)" = 0 ] || die "needs root: a network namespace and a docker daemon of its own"
    timed packages packages
    # Debian's client, whatever else is called docker here: it speaks BuildKit without a plug-in or has it.
    ln -sfn /usr/bin/docker "$WORK/bin/docker"
    [ -e "/run/netns/$NETNS" ] || ip netns add "$NETNS"
    ip -n "$NETNS" link set lo up
    if isolated_docker info >/dev/null 2>&1; then return; fi
    cgroups
    mkdir -p "$RUN_DIR/bin" "$WORK/docker"
    # In front of runc for all that dockerd starts, BuildKit's steps too; see src/nores.
    install -m755 "$(binary nores)" "$RUN_DIR/bin/runc"
    # nsenter, not `ip netns exec`: that one mounts a fresh /sys without the cgroups.
    # --dns: a TEST-NET address that nothing answers; only container names resolve.
    PATH=$RUN_DIR/bin:$PATH setsid nsenter --net="/run/netns/$NETNS" dockerd \
        --data-root "$WORK/docker" --exec-root "$RUN_DIR/exec" --pidfile "$RUN_DIR/pid" \
        -H "unix://$DOCKER_SOCKET" --exec-opt native.cgroupdriver=cgroupfs --dns 192.0.2.1 --log-level warn \
        </dev/null >"$WORK/dockerd.log" 2>&1 &
    for _ in $(seq 120); do
        isolated_docker info >/dev/null 2>&1 && return
        sleep 0.25
    done
    tail -20 "$WORK/dockerd.log" >&2
    die "dockerd did not come up; its log is $WORK/dockerd.log"
}

down() {
    local pid
    pid=$(cat "$RUN_DIR/pid" 2>/dev/null || true)
    if [ -n "$pid" ] && grep -q dockerd "/proc/$pid/cmdline" 2>/dev/null; then
        isolated_docker ps -q | xargs -r env DOCKER_HOST="unix://$DOCKER_SOCKET" docker rm -fv >/dev/null
        isolated_docker volume prune -f >/dev/null
        # What earlier builds left: the cache must not grow for ever.
        isolated_docker image prune -f >/dev/null
        isolated_docker builder prune -f --keep-storage 1GB >/dev/null
        kill "$pid"
        for _ in $(seq 80); do kill -0 "$pid" 2>/dev/null || break; sleep 0.25; done
        ! kill -0 "$pid" 2>/dev/null || die "dockerd ($pid) does not stop"
    fi
    [ ! -e "/run/netns/$NETNS" ] || ip netns del "$NETNS"
    rm -rf "$RUN_DIR"
}

case ${1:-} in
up) timed "docker daemon" up ;;
down) down ;;
*) die "usage: host.sh up|down" ;;
esac
