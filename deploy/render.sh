#!/bin/bash
# deploy/render.sh: write deploy/pynet.yaml and deploy/uninstall/job.yaml, the chart rendered for those without Helm; with --check, say
# whether they are up to date. Needs helm: $HELM, or the one on the PATH.
set -euo pipefail
command -v "${HELM:-helm}" >/dev/null || { echo "deploy/render.sh: needs helm" >&2; exit 1; }
cd "$(dirname "${BASH_SOURCE[0]}")/.."
chart() { "${HELM:-helm}" template pynet helm/pynet --namespace pynet-system --kube-version 1.34.0 "$@"; }
pynet() {
    echo "# The chart helm/pynet with its defaults, for those without Helm: kubectl apply -f deploy/pynet.yaml"
    echo "# Made by deploy/render.sh; do not edit. How to take it away again: docs/guides/install.md."
    echo "apiVersion: v1"
    echo "kind: Namespace"
    echo "metadata:"
    echo "  name: pynet-system"
    echo "  labels: {pod-security.kubernetes.io/enforce: privileged}  # host networking and host paths; no container is privileged"
    chart --no-hooks --set uninstall.enabled=false
}
uninstall() {
    echo "# What helm uninstall runs first, for those without Helm: a Job that removes the agents and cleans every node."
    echo "# Made by deploy/render.sh; do not edit. How to use it: docs/guides/install.md, Without Helm."
    chart --show-only templates/uninstall.yaml | sed '/^ *helm\.sh\/hook/d; /^  annotations:$/d'
}
check() {
    diff -u "deploy/$1" <("$2") || { echo "deploy/$1 is not what the chart renders: run deploy/render.sh" >&2; exit 1; }
}
write() {
    "$2" >"deploy/$1.new"
    mv "deploy/$1.new" "deploy/$1"
}
if [ "${1:-}" = --check ]; then action=check; else action=write; fi
"$action" pynet.yaml pynet
"$action" uninstall/job.yaml uninstall
