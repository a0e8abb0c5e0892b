"""Writes stand-ins for the NVIDIA libraries that torch is linked to, so that a CPU-only peer needs no 3 GB of them.

    make_stubs.py OUT_DIR LIBRARY...

For every library that LIBRARY... need and that neither the loader nor their own folders have, OUT_DIR gets a shared
library of that name. It exports each symbol that is wanted from it, under the version that is wanted. A function in it
returns 35 ("CUDA driver version is insufficient"), one that promises text returns an empty string. Nothing computes.

Needs readelf, nm and cc. Works on x86-64 and aarch64 with GNU tools.
"""

import ctypes
import platform
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

RETURN = {
    "x86_64": ("mov $35, %eax\n ret", "lea sw_empty_text(%rip), %rax\n ret"),
    "aarch64": ("mov w0, #35\n ret", "adrp x0, sw_empty_text\n add x0, x0, :lo12:sw_empty_text\n ret"),
}


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def needed(library):
    return re.findall(r"\(NEEDED\).*\[(.+?)\]", output("readelf", "-dW", library))


def version_owners(library):
    """Version name -> name of the library that the version is wanted from."""
    owners, owner = {}, None
    section = output("readelf", "-VW", library).partition("Version needs section")[2]
    for line in section.splitlines():
        if found := re.search(r"File: (\S+)", line):
            owner = found[1]
        elif found := re.search(r"Name: (\S+)\s+Flags", line):
            owners[found[1]] = owner
    return owners


def undefined(library):
    """(symbol, version or None) of what the library wants."""
    for line in output("nm", "-D", "--undefined-only", library).splitlines():
        symbol, _, version = line.split()[-1].partition("@")
        yield symbol, version.lstrip("@") or None


def defined(library):
    lines = output("nm", "-D", "--defined-only", library).splitlines()
    return {line.split()[-1].partition("@")[0] for line in lines}


def loadable(name):
    try:
        ctypes.CDLL(name)
        return True
    except OSError:
        return False


def write_stub(folder, name, symbols):
    """`symbols`: version or None -> set of names."""
    number, text = RETURN[platform.machine()]
    source = [".section .rodata", "sw_empty_text: .byte 0", ".text", f"sw_number: {number}", f"sw_text: {text}"]
    script = []
    for version, names in symbols.items():
        for symbol in sorted(names):
            target = "sw_text" if re.search(r"(String|ErrorName|GetName)$", symbol) else "sw_number"
            source += [f".globl {symbol}", f".type {symbol}, %function", f".set {symbol}, {target}"]
        if version:
            script.append(f"{version} {{ global: {'; '.join(sorted(names))}; }};")
    assembly = folder / f"{name}.s"
    assembly.write_text("\n".join([*source, '.section .note.GNU-stack,"",%progbits', ""]))
    command = ["cc", "-shared", "-nostdlib", f"-Wl,-soname,{name}", "-o", str(folder / name), str(assembly)]
    if script:
        versions = folder / f"{name}.map"
        versions.write_text("\n".join(script) + "\n")
        command.append(f"-Wl,--version-script={versions}")
    subprocess.run(command, check=True)


def main():
    folder, libraries = Path(sys.argv[1]), sys.argv[2:]
    folder.mkdir(parents=True, exist_ok=True)
    present = {Path(library).name for library in libraries}
    wanted = {name for library in libraries for name in needed(library)}
    missing = {name for name in wanted - present if not loadable(name)}
    ours = set().union(*(defined(library) for library in libraries))
    stubs = {name: defaultdict(set) for name in missing}
    # A symbol without a version is found in any loaded library: it goes to every stub that its user needs directly.
    for library in libraries:
        owners, direct = version_owners(library), missing.intersection(needed(library))
        for symbol, version in undefined(library):
            if version:
                if owners.get(version) in missing:
                    stubs[owners[version]][version].add(symbol)
            elif symbol not in ours and direct:
                stubs[min(direct)][None].add(symbol)
    for name, symbols in stubs.items():
        write_stub(folder, name, symbols)
    print(f"{len(stubs)} stand-ins in {folder}: {' '.join(sorted(stubs))}")


if __name__ == "__main__":
    main()
