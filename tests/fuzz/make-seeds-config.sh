#!/bin/bash
# Makes seeds/config: small configurations, one that is right and some that are not. Run it by hand; the results are in
# the tree.
set -euo pipefail
cd "$(dirname "$0")"
rm -rf seeds/config
mkdir -p seeds/config
cd seeds/config
cat >right <<'END'
# a comment
[server]
listen=127.0.0.1:10809;unix:/run/nbd.sock
threads=4
once=true
allow-paths=/srv/images
[export vm1]
image=vm1.qcow2
format=qcow2
description=the \s first
[export vm2]
node=disk
read-only=true
[node disk]
driver=image
file=/srv/vm2.img
[directory all]
path=/srv
formats=qcow2;raw
END
printf '[node a]\ndriver=x\nchild=b\n[node b]\nchildren=a;c\n' >cycle
printf '[export a]\nimage=x\n[export b]\nimage=x\n[export a]\n' >twice
printf '[server]\nthreads=x\nonce=2\nlisten=;\ncontrol=\\x\n[\nx\n' >values
printf '[server]\nonce=\0\n' >zero
