#!/bin/bash
# Makes seeds/dmg: the golden images. Run it by hand; the results are in the tree.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p seeds/dmg
for folder in ../golden/dmg/*/; do
    cp "$folder/top.dmg" "seeds/dmg/$(basename "$folder")"
done
