"""Compiles the CUDA sources beside it to PTX, with the compiler library of a wheel, through its C interface.

    compile.py LIBRARY OUT_DIR

LIBRARY is a libnvrtc.so.12; its companions lie beside it. Each cuda/NAME.cu becomes OUT_DIR/NAME.ptx, and code for a device on the way,
which shows that a driver can make some of it. Prints nothing unless something fails.
"""

import ctypes
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
# Every device since Volta. The options are a part of what makes the committed files.
OPTIONS = ["--std=c++17", "--gpu-architecture=sm_70"]


class Compiler:
    def __init__(self, library: str) -> None:
        self.lib = ctypes.CDLL(library)
        self.lib.nvrtcGetErrorString.restype = ctypes.c_char_p

    def check(self, code: int, call: str) -> None:
        if code != 0:
            sys.exit(f"{call}: {self.lib.nvrtcGetErrorString(code).decode()}")

    def text(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self.check(getattr(self.lib, f"nvrtcGet{what}Size")(program, ctypes.byref(size)), what)
        out = ctypes.create_string_buffer(size.value)
        self.check(getattr(self.lib, f"nvrtcGet{what}")(program, out), what)
        return out.raw.rstrip(b"\0")

    def compile(self, source: pathlib.Path) -> bytes:
        program = ctypes.c_void_p()
        text = source.read_bytes()
        # The name, without a folder: it may be told in the result, which must not depend on where the tree is.
        name = source.name.encode()
        self.check(self.lib.nvrtcCreateProgram(ctypes.byref(program), text, name, 0, None, None), "nvrtcCreateProgram")
        options = [*OPTIONS, f"-I{source.parent}"]
        words = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        code = self.lib.nvrtcCompileProgram(program, len(options), words)
        if code != 0:
            sys.exit(f"{source.name}: {self.text(program, 'ProgramLog').decode()}")
        if not self.text(program, "CUBIN"):
            sys.exit(f"{source.name}: no code for a device")
        result = self.text(program, "PTX")
        self.lib.nvrtcDestroyProgram(ctypes.byref(program))
        return result


def brief(ptx: bytes) -> bytes:
    """Without the two comments around each inline instruction, which are a half of the file, and without empty lines."""
    marks = (b"", b"// begin inline asm", b"// end inline asm")
    return b"\n".join(line for line in ptx.splitlines() if line.strip() not in marks) + b"\n"


def main() -> None:
    library, out = sys.argv[1:]
    compiler = Compiler(library)
    for source in sorted((HERE / "cuda").glob("*.cu")):
        (pathlib.Path(out) / source.with_suffix(".ptx").name).write_bytes(brief(compiler.compile(source)))


main()
