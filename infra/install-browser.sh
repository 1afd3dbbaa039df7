#!/bin/sh
# Chromium for tests/pipeline/test_page.py, on Debian and Ubuntu. Does nothing where there is one.
set -eu
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then
        echo "$name: $("$name" --version 2>/dev/null || echo found)"
        exit 0
    fi
done
command -v apt-get >/dev/null || {
    echo "apt-get: not found, expected Debian or Ubuntu; install Chromium by hand" >&2
    exit 5
}
as_root=""
[ "$(id -u)" -eq 0 ] || as_root="sudo"
$as_root apt-get update -qq
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y --no-install-recommends chromium
chromium --version
