#!/bin/bash
# Makes seeds/parallels: the smallest golden images. Run it by hand; the results are in the tree.
set -euo pipefail
cd "$(dirname "$0")"
out=$PWD/seeds/parallels
rm -rf "$out"
mkdir -p "$out"
for name in old-with-data-offset extended marked-empty refused-table-outside; do
    cp "../golden/parallels/$name/top.hds" "$out/$name"
done
sed 's/[a-z0-9.]*\.hds/b/' ../golden/parallels/split/top.xml >"$out/split-descriptor"
sed 's/\(root\|middle\|now\)\.hds/a/' ../golden/parallels/snapshots/top.xml >"$out/snapshots-descriptor"
cd "$out"
for file in *; do
    [[ $(stat -c %s "$file") -le 65536 ]] || echo "$file is large: $(stat -c %s "$file")"
done
