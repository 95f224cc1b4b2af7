#!/bin/bash
# Makes seeds/vmdk: the smallest golden images, and descriptors that need no other file. Run it by hand; the results
# are in the tree.
set -euo pipefail
cd "$(dirname "$0")"
out=$PWD/seeds/vmdk
rm -rf "$out"
mkdir -p "$out"
for name in crlf-and-tabs large-embedded-descriptor many-tables refused-cowd refused-outside stream-with-footer \
    zero-grains parent-of-another-system cowd-alone refused-cowd-child; do
    cp "../golden/vmdk/$name/top.vmdk" "$out/$name"
done
head -c 49152 ../golden/vmdk/sesparse/top-sesparse.vmdk >"$out/sesparse-extent"
cp ../golden/vmdk/refused-sesparse/top-sesparse.vmdk "$out/sesparse-journal"
cd "$out"
printf '# Disk DescriptorFile\nversion=1\nCID=1\ncreateType="custom"\nRW 8 ZERO\nRDONLY 1 ZERO\n' >zero
printf '# Disk DescriptorFile\r\nversion=1\r\nCID=1\r\ncreateType="vmfs"\r\nNOACCESS 9 VMFS "a b" 0\r\nRW 1 ZERO\r\n' >no-access
printf '# Disk DescriptorFile\nversion=1\nCID=2\nparentCID=1\ncreateType="custom"\nparentFileNameHint="/a/b.vmdk"\nRW 8 ZERO\n' >parent
for file in *; do
    [[ $(stat -c %s "$file") -le 65536 ]] || echo "$file is large: $(stat -c %s "$file")"
done
