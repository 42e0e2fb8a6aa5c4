"""Reads the results of Autobahn|Testsuite, prints them by section, and writes them to a page.

usage: report.py INDEX_JSON PAGE

Exits with 1 if a case failed or is missing. Runs under Python 2.7, which the suite needs, and under Python 3.
"""

from __future__ import print_function

import io
import json
import sys

# Number of cases in each section that applies to a server without compression.
SECTIONS = [
    ("1", "Framing", 16),
    ("2", "Pings and pongs", 11),
    ("3", "Reserved bits", 7),
    ("4", "Opcodes", 10),
    ("5", "Fragmentation", 20),
    ("6", "UTF-8", 145),
    ("7", "Close handshake", 37),
    ("9", "Limits and performance", 54),
    ("10", "Fragment sizes", 1),
]
MAX_FAULTS = 20
PASSED = ["OK", "NON-STRICT", "INFORMATIONAL"]

PAGE = u"""# WebSocket conformance

This page shows the results of Autobahn|Testsuite 25.10.1 (`fuzzingclient`) against `examples/echo.rs`, which uses the
codec and the shards of the hub.
Sections 12 and 13 test compression, which the hub does not support; sections 8 and 11 do not exist.
`scripts/autobahn` runs the suite and writes this page.

{table}

{named}
"""


def order(case):
    return [int(part) for part in case.split(".")]


def verdict(result):
    """Returns the result of a case, which is that of the close if only the close failed."""
    behavior, close = result["behavior"], result["behaviorClose"]
    return behavior if behavior not in PASSED or close in PASSED else "CLOSE " + close


def count(results):
    """Returns the rows of the table, and a fault for each section with missing cases."""
    rows, faults = [], []
    for section, title, expected in SECTIONS:
        verdicts = [verdict(result) for case, result in results.items() if case.split(".")[0] == section]
        if len(verdicts) != expected:
            faults.append("section {}: {} cases ran, expected {}".format(section, len(verdicts), expected))
        passed = [verdicts.count(name) for name in PASSED]
        rows.append([section, title, expected] + passed + [expected - sum(passed)])
    rows.append(["", "All"] + [sum(row[i] for row in rows) for i in range(2, 7)])
    return rows, faults


def table(rows):
    head = ["Section", "", "Cases", "OK", "Non-strict", "Informational", "Failed"]
    cells = [head] + [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [u"| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in cells]
    lines.insert(1, u"|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def main(index, page):
    with io.open(index, encoding="utf-8") as file:
        (results,) = json.load(file).values()
    rows, faults = count(results)
    named = []
    for case in sorted(results, key=order):
        name = verdict(results[case])
        if name != "OK":
            named.append("- {}: {}".format(case, name.lower()))
        if name not in PASSED:
            faults.append("case {}: {}".format(case, name))
    named.insert(0, "The results of all cases are OK, except:\n" if named else "The results of all cases are OK.")
    print(table(rows))
    with io.open(page, "w", encoding="utf-8") as file:
        file.write(PAGE.format(table=table(rows), named="\n".join(named)))
    for fault in faults[:MAX_FAULTS]:
        print(fault, file=sys.stderr)
    if len(faults) > MAX_FAULTS:
        print("and {} more".format(len(faults) - MAX_FAULTS), file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
