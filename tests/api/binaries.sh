#!/usr/bin/env bash
# The API tests' and benchmarks' real API server: etcd and kube-apiserver, built once (about 5 minutes) into the cache.
# Prints their two paths, etcd's first.
exec "$(dirname "${BASH_SOURCE[0]}")/../support/go-binaries.sh" etcd kube-apiserver
