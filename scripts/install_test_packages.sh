#!/usr/bin/env bash
# Installs the Debian packages that some slow tests need: a browser, and Slurm. Without them these tests are skipped.
set -euo pipefail
missing=()
command -v chromium >/dev/null || missing+=(chromium)
command -v slurmctld >/dev/null || missing+=(slurm-wlm)
command -v munged >/dev/null || missing+=(munge)
[ ${#missing[@]} -eq 0 ] && exit 0
apt-get --quiet update
apt-get --quiet install --yes --no-install-recommends "${missing[@]}"
