#!/bin/bash
# Makes seeds/qed: the smallest golden images. Run it by hand; the results are in the tree.
set -euo pipefail
cd "$(dirname "$0")"
out=$PWD/seeds/qed
rm -rf "$out"
mkdir -p "$out"
for name in on-raw-by-qemu table-size-1 raw-not-probed refused-l1-outside refused-feature; do
    cp "../golden/qed/$name/top.qed" "$out/$name"
done
cd "$out"
for file in *; do
    [[ $(stat -c %s "$file") -le 65536 ]] || echo "$file is large: $(stat -c %s "$file")"
done
