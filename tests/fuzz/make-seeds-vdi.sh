#!/bin/bash
# Makes seeds/vdi: the smallest golden images. Run it by hand; the results are in the tree.
set -euo pipefail
cd "$(dirname "$0")"
out=$PWD/seeds/vdi
rm -rf "$out"
mkdir -p "$out"
for name in data-at-0x220 zero-blocks extra-bytes-before-blocks fixed differencing refused-table-in-header; do
    cp "../golden/vdi/$name/top.vdi" "$out/$name"
done
cp ../golden/vdi/differencing/Base.VDI "$out/base"
cd "$out"
head -c 600 data-at-0x220 >start-only
for file in *; do
    [[ $(stat -c %s "$file") -le 65536 ]] || echo "$file is large: $(stat -c %s "$file")"
done
