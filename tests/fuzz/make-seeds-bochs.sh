#!/bin/bash
# Makes seeds/bochs: the golden images. Run it by hand; the results are in the tree.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p seeds/bochs
for folder in ../golden/bochs/*/; do
    cp "$folder/top.bochs" "seeds/bochs/$(basename "$folder")"
done
