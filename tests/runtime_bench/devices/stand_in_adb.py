"""Stands in for `adb` with one device, whose shell is this machine's: what it is asked is carried out and written down.

As the real one: the words behind `shell` are joined by spaces and read by a shell; what adb itself has to say begins
with `adb: ` or `error: `.
"""

import json
import os
import shutil
import subprocess
import sys


def main(words: list[str]) -> int:
    with open(os.environ["STAND_IN_LOG"], "a", encoding="utf-8") as log:
        log.write(json.dumps(words) + "\n")
    if words == ["devices"]:
        print("List of devices attached\n" + os.environ["STAND_IN_DEVICES"].replace(" ", "\t"))
        return 0
    if words[:2] != ["-s", "SERIAL-1"]:
        print(f"adb: device '{words[1]}' not found", file=sys.stderr)
        return 1
    verb, *rest = words[2:]
    if verb == "shell":
        environment = os.environ | {"PATH": f"{os.environ['STAND_IN_COMMANDS']}:{os.environ['PATH']}"}
        return subprocess.run(["sh", "-c", " ".join(rest)], env=environment).returncode
    source, target = rest
    assert verb in ("push", "pull")
    shutil.copyfile(source, target)
    print(f"{source}: 1 file {verb}ed.")
    return 0


sys.exit(main(sys.argv[1:]))
