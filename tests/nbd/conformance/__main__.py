"""NBD conformance: which rules of the protocol document a server keeps.

Speaks the protocol byte by byte to a running server and tries one rule after another, each on a connection of its own.
Needs nothing but Python 3.9 and its standard library. Rules that write are tried only with --write, which overwrites
the first MiB of the export (and zeroes 1 to 6 GiB of one that is so large).
"""
import argparse
import fnmatch
import json
import sys

import handshake_rules  # noqa: F401  each file of rules registers its own, in the order of the table
import tls_rules  # noqa: F401
import transmission_rules  # noqa: F401
import status_rules  # noqa: F401
import extended_rules  # noqa: F401
from rules import RULES, Missing, Untried, Wrong
from wire import Probe, Target

RIGHT, WRONG, MISSING, UNTRIED = "right", "wrong", "missing", "untried"


def options():
    parser = argparse.ArgumentParser(
        prog="conformance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit status: 0 no wrong row; 1 a wrong row; 2 the server cannot be reached or has no such export")
    parser.add_argument("uri", nargs="?", help="nbd://HOST:PORT/NAME, nbd+unix:///NAME?socket=PATH or "
                                               "nbd+vsock://CID:PORT/NAME; nbds for TLS, with "
                                               "tls-certificates=DIR for a client's certificate")
    parser.add_argument("--write", action="store_true", help="try rules that overwrite the export")
    parser.add_argument("--only", metavar="GLOB", default="*", help="only rules whose name matches")
    parser.add_argument("--must", action="store_true", help="a broken \"should\" is not wrong for the exit status")
    parser.add_argument("--wrong", action="store_true", help="print only what is wrong")
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--timeout", type=float, default=5, metavar="S", help="seconds to wait for an answer (5)")
    parser.add_argument("--list", action="store_true", help="print the rules and try nothing")
    return parser


def outcome(rule, probe):
    """How a rule fared: (status, text)."""
    try:
        rule.function(probe)
    except Wrong as wrong:
        return WRONG, str(wrong)
    except Missing as missing:
        return MISSING, str(missing)
    except Untried as untried:
        return UNTRIED, str(untried)
    except OSError as error:
        return WRONG, f"{type(error).__name__}: {error}"
    return RIGHT, ""


def line(status, rule, text):
    return f"{status:8}{rule.level:8}{rule.name:32}{rule.sentence}" + (f"\n{'':16}-> {text}" if text else "")


def run(arguments, rules):
    probe = Probe(Target(arguments.uri), arguments.timeout, arguments.write)
    rows = []
    for rule in rules:
        status, text = outcome(rule, probe)
        rows.append({"rule": rule.name, "level": rule.level, "status": status, "sentence": rule.sentence, "text": text})
        if not arguments.json and (status == WRONG or not arguments.wrong):
            print(line(status, rule, text), flush=True)
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        counts = {status: sum(row["status"] == status for row in rows) for status in (RIGHT, WRONG, MISSING, UNTRIED)}
        print(", ".join(f"{number} {status}" for status, number in counts.items()))
    return any(row["status"] == WRONG and not (arguments.must and row["level"] != "must") for row in rows)


def main():
    parser = options()
    arguments = parser.parse_args()
    rules = [rule for rule in RULES if fnmatch.fnmatch(rule.name, arguments.only)]
    if arguments.list:
        print("\n".join(f"{rule.level:8}{rule.name:32}{rule.sentence}" for rule in rules))
        return 0
    if arguments.uri is None:
        parser.error("no URI given")
    try:
        return int(run(arguments, rules))
    except (OSError, ValueError, Wrong) as error:
        print(f"conformance: {arguments.uri}: {error}", file=sys.stderr)
        return 2


sys.exit(main())
