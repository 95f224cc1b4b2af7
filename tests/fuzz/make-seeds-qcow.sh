#!/bin/bash
# Makes seeds/qcow: the smallest golden images. Run it by hand; the results are in the tree.
set -euo pipefail
cd "$(dirname "$0")"
out=$PWD/seeds/qcow
rm -rf "$out"
mkdir -p "$out"
for name in on-raw-by-qemu xen-big-endian xen-little-endian xen-overlapping refused-l1-outside refused-outside; do
    cp "../golden/qcow/$name/top.qcow" "$out/$name"
done
cd "$out"
for file in *; do
    [[ $(stat -c %s "$file") -le 65536 ]] || echo "$file is large: $(stat -c %s "$file")"
done
