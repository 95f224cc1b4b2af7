#!/bin/bash
# Makes seeds/cloop: the golden images. Run it by hand; the results are in the tree.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p seeds/cloop
for folder in ../golden/cloop/*/; do
    cp "$folder/top.cloop" "seeds/cloop/$(basename "$folder")"
done
