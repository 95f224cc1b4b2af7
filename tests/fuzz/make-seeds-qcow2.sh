#!/bin/bash
# Makes seeds/qcow2: small images of every kind that qemu-img can make. Run it by hand; the results are in the tree.
set -euo pipefail
cd "$(dirname "$0")"
out=$PWD/seeds/qcow2
rm -rf "$out"
mkdir -p "$out"
cd "$out"

# some FILE: a guest's data of 12 sectors in a disk of 40, some of it zeroes, some of it easy to compress.
some() {
    qemu-io -f qcow2 -c 'write -P 1 0 1k' -c 'write -P 2 3k 2k' -c 'write -z 6k 1k' -c 'write -P 3 15k 512' "$1" >/dev/null
}

make() {
    local name=$1
    shift
    qemu-img create -q -f qcow2 -o "cluster_size=512,$1" "${@:2}" "$name" 20k
}

make v3 compat=1.1
some v3
make v2 compat=0.10
some v2
make empty compat=1.1
make lazy lazy_refcounts=on
some lazy
for bits in 1 2 8 64; do
    make "refcount-$bits" "refcount_bits=$bits"
    some "refcount-$bits"
done
qemu-img create -q -f qcow2 -o cluster_size=512,preallocation=metadata preallocated 8k
make snapshots compat=1.1
some snapshots
qemu-img snapshot -c one snapshots
qemu-io -f qcow2 -c 'write -P 9 512 512' snapshots >/dev/null
qemu-img snapshot -c two snapshots
make zero-allocated compat=1.1
qemu-io -f qcow2 -c 'write -P 1 0 4k' -c 'write -z 1k 1k' zero-allocated >/dev/null
make bitmap compat=1.1
qemu-img bitmap --add bitmap bits
make backing compat=1.1 -u -b base.raw -F raw
# The smallest that there is, with six clusters of 16 KiB.
qemu-img create -q -f qcow2 -o cluster_size=16k,extended_l2=on extended 40k
qemu-io -f qcow2 -c 'write -P 1 0 1k' -c 'write -z 1k 1k' -c 'write -P 2 3k 512' extended >/dev/null
for options in data_file=data data_file=data,data_file_raw=on; do
    name=${options//[=,]/-}
    make "$name" "$options"
    [[ $options == *raw* ]] || some "$name"
    rm data
done
for kind in zlib zstd; do
    qemu-img convert -c -f qcow2 -O qcow2 -o "cluster_size=512,compression_type=$kind" v3 "compressed-$kind"
done
cp v3 leaking
qemu-io -f qcow2 -c 'discard 0 1k' leaking >/dev/null
printf '\0\1' | dd of=leaking bs=1 seek=$((512 * 2 + 30)) conv=notrunc status=none
cp v3 corrupt-flag
printf '\2' | dd of=corrupt-flag bs=1 seek=79 conv=notrunc status=none
for file in *; do
    [[ $file == extended || $(stat -c %s "$file") -le 16384 ]] || echo "$file is large: $(stat -c %s "$file")"
done
