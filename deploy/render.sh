#!/bin/bash
# deploy/render.sh: write deploy/pynet.yaml and deploy/uninstall.yaml, the chart rendered for those without Helm; with --check, say
# whether they are up to date. Needs helm: $HELM, or the one on the PATH.
set -euo pipefail
command -v "${HELM:-helm}" >/dev/null || { echo "deploy/render.sh: needs helm" >&2; exit 1; }
cd "$(dirname "${BASH_SOURCE[0]}")/.."
chart() { "${HELM:-helm}" template pynet helm/pynet --namespace pynet-system --kube-version 1.34.0 "$@"; }
pynet() {
    echo "# The chart helm/pynet with its defaults, for those without Helm: kubectl apply -f deploy/pynet.yaml"
    echo "# Made by deploy/render.sh; do not edit. How to take it away again: deploy/uninstall.yaml."
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
for file in pynet uninstall; do
    if [ "${1:-}" != --check ]; then
        "$file" >"deploy/$file.yaml.new" && mv "deploy/$file.yaml.new" "deploy/$file.yaml"
    elif ! diff -u "deploy/$file.yaml" <("$file"); then
        echo "deploy/$file.yaml is not what the chart renders: run deploy/render.sh" >&2
        exit 1
    fi
done
