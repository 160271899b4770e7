"""Start the course from a pack, without a network: python3 start.py COMMAND, as with course.py.

The first call checks every file that this laptop needs against its sha256, and installs from the wheels beside this.
"""

from __future__ import annotations

# Only the standard library: it runs before anything is installed, on the laptop that got the pack.
import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKED = "checked.txt"
NAMES = {"Linux": "linux", "Darwin": "macos", "Windows": "windows"}


def main(arguments: list[str], here: Path = HERE) -> int:
    """Check the pack once, then hand over to course.py; return the exit status."""
    manifest = json.loads((here / "manifest.json").read_text(encoding="utf-8"))
    system = NAMES.get(platform.system(), platform.system())
    mine = ".".join(map(str, sys.version_info[:2]))
    if mine != manifest["python"] or system not in manifest["wheels"]:
        systems = ", ".join(manifest["wheels"])
        print(f"This pack is for Python {manifest['python']} on {systems}; here is Python {mine} on {system}.")
        return 1
    digest = hashlib.sha256((here / "manifest.json").read_bytes()).hexdigest()
    checked = here / CHECKED
    if not checked.exists() or checked.read_text(encoding="utf-8") != digest:
        wrong = damaged(here, manifest, system)
        if wrong:
            print("Damaged or missing, copy the pack again:", *wrong[:10], sep="\n  ")
            return 1
        checked.write_text(digest, encoding="utf-8")
    variables = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": (here / "wheels").as_uri(),  # pip parts the variable at spaces, which a path may have
        "COURSE_CACHE": str(here / "cache"),
        "COURSE_PROFILE": os.environ.get("COURSE_PROFILE", "embedded"),
        "HF_HUB_OFFLINE": "1",
    }
    course = [sys.executable, str(here / "course" / "course.py"), *arguments]
    return subprocess.call(course, env={**os.environ, **variables})


def damaged(here: Path, manifest: dict, system: str) -> list[str]:
    """The files that this system needs and that aren't as they were packed."""
    needed = [name for name in manifest["files"] if not name.startswith("wheels/")] + manifest["wheels"][system]
    wrong = []
    for number, name in enumerate(needed, 1):
        if sys.stdout.isatty():
            print(
                f"\rChecking the pack: {number} of {len(needed)} files",
                end="" if number < len(needed) else "\n",
                flush=True,
            )
        path = here / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != manifest["files"][name]["sha256"]:
            wrong.append(name)
    return wrong


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
