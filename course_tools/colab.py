"""Would installing the course on Colab change a package that Colab already has?

    python -m course_tools.colab [FREEZE] [--python-version 3.13]

Resolves what the lessons need by pyproject.toml with every version in FREEZE (the list of Colab's preinstalled
packages, `pip freeze` form; course_tools/colab_packages.txt is one) held fixed. A resolution exists: the install cell
only adds the packages printed here. None exists: it would swap one, and Colab asks for a restart; exit status 1.
Needs a package index.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.utils import canonicalize_name

from course_tools import requirements, resolver

ROOT = Path(__file__).resolve().parents[1]
FREEZE = ROOT / "course_tools" / "colab_packages.txt"
PYTHON = "3.13"  # of Colab's runtime when the list was made
# Colab's torch comes from PyTorch's own index and asks for other CUDA libraries than the one on the package index.
CUDA = re.compile(r"^(nvidia|cuda|triton|jax)|-cu1\d$")


def pins(freeze: str) -> dict[str, str]:
    """{canonical name: version} of the NAME==VERSION lines of a freeze; comments and other lines are left out."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", freeze, flags=re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def resolve(dependencies: list[str], colab: dict[str, str], python_version: str) -> dict[str, str]:
    """What installing `dependencies` beside `colab` would have installed, {name: version}.

    Raises RuntimeError with uv's explanation where no resolution keeps every version of `colab`.
    """
    command = resolver.compile_command(python=python_version, platform="x86_64-manylinux_2_28")
    held = [f"{name}=={version}" for name, version in colab.items() if not CUDA.search(name)]
    with tempfile.TemporaryDirectory() as folder:
        wanted, fixed = Path(folder, "wanted.in"), Path(folder, "fixed.txt")
        wanted.write_text("\n".join(dependencies), encoding="utf-8")
        fixed.write_text("\n".join(held), encoding="utf-8")
        done = subprocess.run([*command, "-c", str(fixed), str(wanted)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return pins(done.stdout)


def main(arguments: list[str] | None = None) -> int:
    """Resolve and tell; the exit status is 1 where a package of Colab's would change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("freeze", nargs="?", type=Path, default=FREEZE)
    parser.add_argument("--python-version", default=PYTHON)
    args = parser.parse_args(arguments)
    colab = pins(args.freeze.read_text(encoding="utf-8"))
    try:
        resolved = resolve(requirements.needed("lessons"), colab, args.python_version)
    except resolver.ResolverError as error:
        print(error)
        return 1
    except RuntimeError as error:
        print(f"The course cannot be installed beside these {len(colab)} packages without changing one:\n{error}")
        return 1
    added = {name: version for name, version in resolved.items() if name not in colab and not CUDA.search(name)}
    kept = sum(name in colab for name in resolved)
    print(f"Nothing changes: {kept} of the packages needed are there already, {len(added)} are added:")
    print("\n".join(f"  {name}=={version}" for name, version in added.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
