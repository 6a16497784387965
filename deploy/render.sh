#!/bin/bash
# deploy/render.sh: write deploy/pynet.yaml, the chart rendered for those without Helm; with --check, say whether it is up to date.
# Needs helm: $HELM, or the one on the PATH.
set -euo pipefail
command -v "${HELM:-helm}" >/dev/null || { echo "deploy/render.sh: needs helm" >&2; exit 1; }
cd "$(dirname "${BASH_SOURCE[0]}")/.."
render() {
    echo "# The chart helm/pynet with its defaults, for those without Helm: kubectl apply -f deploy/pynet.yaml"
    echo "# Made by deploy/render.sh; do not edit. To take pynet off the nodes, run \`pynet cleanup\` on each afterwards."
    echo "apiVersion: v1"
    echo "kind: Namespace"
    echo "metadata:"
    echo "  name: pynet-system"
    echo "  labels: {pod-security.kubernetes.io/enforce: privileged}  # host networking and host paths; no container is privileged"
    "${HELM:-helm}" template pynet helm/pynet --namespace pynet-system --kube-version 1.34.0 --no-hooks --set uninstall.enabled=false
}
if [ "${1:-}" = --check ]; then
    diff -u deploy/pynet.yaml <(render) && echo "deploy/pynet.yaml is up to date" && exit
    echo "deploy/pynet.yaml is not what the chart renders: run deploy/render.sh" >&2
    exit 1
fi
render >deploy/pynet.yaml.new && mv deploy/pynet.yaml.new deploy/pynet.yaml
