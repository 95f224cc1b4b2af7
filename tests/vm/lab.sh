#!/bin/bash
# scripts/vm-run itself: what a guest sees, and how it ends.
. "$(dirname "$0")/../nbd/lib.sh"

# guest WANTED-STATUS [OPTION...]: runs the script that comes in; what it says goes to ./said.
guest() {
    local wanted=$1 status=0
    shift
    cat >script
    "$COWNBD_SOURCE/scripts/vm-run" "$@" script one 'two words' >said 2>&1 || status=$?
    cat said
    [[ $status == "$wanted" ]]
}

test_status_arguments_and_files() {
    mkdir job
    echo outside >file
    COWNBD_MARK='a "b"' guest 7 --job job <<SCRIPT
set -e
[ "\$#" = 2 ] && [ "\$2" = "two words" ] && [ "\$COWNBD_MARK" = 'a "b"' ]
[ "\$PWD" = /job ] && [ "\$(id -u)" = 0 ]
[ "\$(cat "$PWD/file")" = outside ]
echo inside >"$PWD/file"
[ "\$(cat "$PWD/file")" = inside ]
echo left >/job/result
exit 7
SCRIPT
    [[ $(<file) == outside && $(<job/result) == left ]]
}

test_a_complaint_of_the_kernel_fails() {
    guest 70 <<<'echo "<4>WARNING: CPU: 0 PID: 1 at nowhere" >/dev/kmsg'
    grep -q 'the kernel complained' said
    guest 3 <<<'echo "<4>WARNING: CPU: 0 PID: 1 at nowhere" >/dev/kmsg; exit 3'
}

test_time_limit() {
    guest 124 --limit 2 <<<'sleep 77'
    grep -q 'did not end in 2 s' said
    grep -q 'sleep 77' said
}

test_death_of_the_kernel() {
    guest 125 <<<'echo c >/proc/sysrq-trigger; sleep 60'
    grep -q 'the guest died' said
}

test_wrong_calls() {
    guest 126 --limit never <<<true
    guest 126 --nonsense <<<true
    "$COWNBD_SOURCE/scripts/vm-run" no-such-script >said 2>&1 && return 1
    grep -q 'no-such-script' said
}

run_tests
