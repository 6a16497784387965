#!/bin/bash
# mkimage.sh NAME DIR OUT [CONFIG]
# Pack DIR as a one-layer image archive that both `docker load` and
# `ctr images import` take. CONFIG is the JSON of the image's "config".
set -euo pipefail
name=$1 dir=$2 out=$3 config=${4:-"{}"}
tmp=$(mktemp -d "$(dirname "$out")/mkimage.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
tar -C "$dir" --sort=name --numeric-owner --one-file-system \
    --xattrs --xattrs-include='*' -cf "$tmp/layer.tar" .
sum=$(sha256sum "$tmp/layer.tar" | cut -d' ' -f1)
jq -n --arg d "sha256:$sum" --argjson c "$config" '{
    architecture: "amd64", os: "linux", created: "2026-01-01T00:00:00Z",
    config: ({Env: ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]} + $c),
    rootfs: {type: "layers", diff_ids: [$d]}, history: [{created_by: "mkimage.sh"}]
}' >"$tmp/config.json"
jq -n --arg n "$name" '[{Config: "config.json", RepoTags: [$n], Layers: ["layer.tar"]}]' \
    >"$tmp/manifest.json"
tar -C "$tmp" --numeric-owner -cf "$out" manifest.json config.json layer.tar
