# What the shell tests share. Source it, define functions test_NAME, call run_tests last.
#
# Each test runs in a shell of its own (set -e) and a fresh directory, with the server that it started stopped after
# it in good order; it prints "ok NAME" or "not ok NAME", and what it and the server said when it failed.
set -uo pipefail

: "${COWNBD:?the program under test}"
program=$(basename "$0" .sh)
top=$(mktemp -d "${TMPDIR:-/tmp}/cownbd-$program.XXXXXX")
trap 'rm -rf "$top"' EXIT
servers=()

# serve OPTION... IMAGE...: starts a server on ./socket (and what -l adds), waits until it is ready.
serve() {
    serve_only -l unix:socket "$@"
}

# The same without a listener of its own.
serve_only() {
    local number=${#servers[@]} tries=0
    rm -f "server$number.out" # of one that was stopped
    "$COWNBD" serve --control none "$@" >"server$number.out" 2>"server$number.err" </dev/null &
    servers+=($!)
    until grep -q '^listening on ' "server$number.out"; do
        if ! kill -0 $! 2>/dev/null || [[ $((tries += 1)) -gt 1200 ]]; then
            echo "the server did not start: $*"
            cat "server$number.err"
            return 1
        fi
        sleep 0.05
    done
}

# Stops every server; each must leave in good order.
stop() {
    local pid bad=0
    for pid in "${servers[@]}"; do
        kill -TERM "$pid" 2>/dev/null || true
    done
    for pid in "${servers[@]}"; do
        wait "$pid" || bad=$?
    done
    servers=()
    if grep -s 'sandbox: denied' server*.err; then
        bad=denied
    fi
    if [[ $bad != 0 ]]; then
        echo "a server ended with status $bad"
        return 1
    fi
}

# uri [EXPORT]: of ./socket.
uri() {
    echo "nbd+unix:///${1:-}?socket=$PWD/socket"
}

# A TCP port that nobody uses, of address 127.0.0.1 and ::1.
free_port() {
    /usr/bin/python3 -c 'import socket
s = socket.create_server(("127.0.0.1", 0))
print(s.getsockname()[1])'
}

# make_data FILE MIB: that much data, a quarter of it zeroes, the same each time.
make_data() {
    /usr/bin/python3 - "$1" "$2" <<'PY'
import random, sys
random.seed(7)
with open(sys.argv[1], "wb") as out:
    for i in range(int(sys.argv[2]) * 16):
        out.write(bytes(65536) if i % 4 == 3 else random.randbytes(65536))
PY
}

# equal FILE FILE: the same bytes.
equal() {
    cmp "$1" "$2"
}

# fails COMMAND...: which must fail; its output goes to ./failure.
fails() {
    if "$@" >failure 2>&1; then
        echo "did not fail: $*"
        return 1
    fi
}

# after_test DIR: for what a test leaves that is no file; also after one that failed.
after_test() {
    :
}

run_one() {
    set -e
    mkdir "$top/$1"
    cd "$top/$1"
    trap 'kill -KILL "${servers[@]}" 2>/dev/null || true' EXIT
    "$1"
    stop
}

run_tests() {
    local name status bad=0
    for name in $(declare -F | sed -n 's/^declare -f \(test_.*\)/\1/p'); do
        # Not in a condition: there set -e would be off.
        (run_one "$name") >"$top/$name.log" 2>&1
        status=$?
        after_test "$top/$name" >>"$top/$name.log" 2>&1
        if [[ $status == 0 ]]; then
            echo "ok ${name#test_}"
        else
            bad=1
            echo "not ok ${name#test_}"
            cat "$top/$name.log" "$top/$name"/server*.err 2>/dev/null | sed 's/^/    /'
        fi
        rm -rf "${top:?}/$name"
    done
    exit $bad
}
