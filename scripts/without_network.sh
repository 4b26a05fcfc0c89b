#!/usr/bin/env bash
# Does a command work where there is no network at all? The kernel gives it one of its own, with nothing but itself in it.
#   scripts/without_network.sh make test          scripts/without_network.sh make demo
# Linux with util-linux (unshare) and iproute2 (ip), where users may make namespaces. What the command needs (environment,
# embedded model) is fetched before: by running it once with a network.
set -euo pipefail

if [[ $# -eq 0 ]]; then
    echo "usage: scripts/without_network.sh COMMAND [ARGUMENT...]" >&2
    exit 2
fi
# shellcheck disable=SC2016  # $@ is of the inner shell
exec unshare --map-root-user --net bash -c '
    ip link set lo up
    if timeout 5 bash -c "exec 3<>/dev/tcp/192.0.2.1/80" 2>/dev/null; then
        echo "without_network: there is a network here after all" >&2
        exit 3
    fi
    exec "$@"' without_network "$@"
