"""pynet: a per-node Kubernetes network agent in the manner of flannel's host-gw backend."""

__version__ = "0.1.0"
