# pynet's image. One file for two worlds:
#   with a registry and a network:  docker build --tag pynet:dev .
#   without:                        PYTHON_BASE, PLUGINS and WHEELS name images that are already there (deploy/image.sh)
# Needs BuildKit, which builds only the stages that are used; nothing else of it, so that old daemons do.

# Any Debian with python3 (>= 3.11).
ARG PYTHON_BASE=python:3.11-slim-bookworm
# An image that has the CNI plugins in /opt/cni/bin, and one that has the wheels of requirements/image.txt in /wheels.
ARG PLUGINS=plugins-from-source
ARG WHEELS=wheels-from-index
ARG GOLANG=golang:1.24-bookworm

FROM ${GOLANG} AS plugins-from-source
ARG CNI_PLUGINS_VERSION=v1.9.1
RUN for plugin in main/bridge main/ptp main/loopback ipam/host-local meta/portmap meta/bandwidth; do \
        CGO_ENABLED=0 GOBIN=/opt/cni/bin go install -trimpath -ldflags "-s -w" \
            "github.com/containernetworking/plugins/plugins/$plugin@${CNI_PLUGINS_VERSION}" || exit 1; \
    done

FROM ${PYTHON_BASE} AS wheels-from-index
COPY requirements/image.txt /
RUN python3 -m pip download --no-cache-dir --no-deps --only-binary :all: --require-hashes --dest /wheels --requirement /image.txt

FROM ${PLUGINS} AS plugins
FROM ${WHEELS} AS wheels

# /opt/pynet: the dependencies and the agent, with the .pyc files of the level that the agent runs at.
FROM ${PYTHON_BASE} AS app
ARG PYTHONOPTIMIZE=0
COPY requirements/image.txt /
COPY --from=wheels /wheels /wheels
# pip comes as a wheel too (a base need not have it), runs from there, and stays behind.
RUN python3 "$(echo /wheels/pip-*.whl)/pip" --disable-pip-version-check install --no-index --find-links /wheels --no-deps --no-compile \
        --require-hashes --target /opt/pynet --requirement /image.txt && \
    rm -rf /opt/pynet/bin /opt/pynet/pip /opt/pynet/pip-*.dist-info && \
    find /opt/pynet -name '*.pyi' -delete
COPY agent/pynet /opt/pynet/pynet
RUN printf '#!/usr/bin/env python3\nimport sys\n\nfrom pynet.__main__ import main\n\nsys.exit(main())\n' >/opt/pynet/pynet.console && \
    chmod 755 /opt/pynet/pynet.console && \
    find /opt/pynet -type d -exec chmod 755 {} + && find /opt/pynet -type f ! -name pynet.console -exec chmod 644 {} + && \
    python3 -m compileall -q --invalidation-mode unchecked-hash /opt/pynet

FROM ${PYTHON_BASE}
ARG PYTHONOPTIMIZE=0
# PYTHONSAFEPATH: nothing is imported from the current folder. MALLOC_TRIM_THRESHOLD_: give large API answers back.
ENV PYTHONPATH=/opt/pynet PYTHONOPTIMIZE=${PYTHONOPTIMIZE} PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    MALLOC_TRIM_THRESHOLD_=65536
# nft, iptables-nft and iptables-legacy, unless the base has them.
RUN if ! command -v nft || ! command -v iptables-legacy; then \
        apt-get update && apt-get install --yes --no-install-recommends nftables iptables && \
        rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log; \
    fi
COPY --from=plugins /opt/cni/bin /opt/cni/bin
COPY --from=app /opt/pynet /opt/pynet
COPY LICENSE /usr/share/doc/pynet/LICENSE
# Python writes the .pyc files of what the agent imports of the standard library (official images come without).
RUN ln -s /opt/pynet/pynet.console /usr/local/bin/pynet && env -u PYTHONDONTWRITEBYTECODE pynet version

ARG VERSION=dev
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
ARG PYTHON_BASE
LABEL org.opencontainers.image.title="pynet" \
      org.opencontainers.image.description="A per-node Kubernetes network agent: one kernel route per peer, kept right" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="${PYTHON_BASE}"
USER 0:0
WORKDIR /
ENTRYPOINT ["python3", "-m", "pynet"]
CMD ["agent"]
