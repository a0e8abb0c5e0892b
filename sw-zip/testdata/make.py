"""Writes the archives of this folder with Python's zipfile, and beside each what that finds in it. Run again only to add one."""

import io
import json
import os
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))


class Unseekable(io.RawIOBase):
    """A pipe: zipfile then writes lengths behind each member, and the directory alone knows them at the front."""

    def __init__(self, file):
        self.file = file

    def writable(self):
        return True

    def write(self, data):
        return self.file.write(data)


def content(number, size):
    return bytes((number * 37 + at * 11 + (at >> 8)) & 0xFF for at in range(size))


def make(name, comment=b"", piped=False, zip64=False, method=zipfile.ZIP_STORED):
    path = os.path.join(HERE, name)
    with open(path, "wb") as file:
        target = Unseekable(file) if piped else file
        with zipfile.ZipFile(target, "w", method) as archive:
            archive.comment = comment
            for number, size in enumerate([0, 1, 300, 1000]):
                info = zipfile.ZipInfo(f"größe/{number}.bin" if number == 1 else f"data/{number}")
                info.compress_type = method
                info.comment = b"of a member" * number
                with archive.open(info, "w", force_zip64=zip64) as member:
                    member.write(content(number, size))
            archive.writestr("folder/", b"")
    found = []
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for info in archive.infolist():
            # zipfile keeps where the content is to itself: behind the header, whose two last fields say how long it is.
            file.seek(info.header_offset)
            header = file.read(30)
            offset = info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            found.append({
                "name": info.filename, "deflated": info.compress_type == zipfile.ZIP_DEFLATED, "offset": offset,
                "stored": info.compress_size, "len": info.file_size, "crc32": info.CRC,
            })
    with open(path + ".json", "w") as file:
        json.dump(found, file, indent=1)
        file.write("\n")


make("stored.zip")
make("deflated.zip", comment=b"a comment of the archive", method=zipfile.ZIP_DEFLATED)
make("zip64.zip", zip64=True)
make("piped.zip", piped=True, zip64=True)
make("bzip2.zip", method=zipfile.ZIP_BZIP2)
with zipfile.ZipFile(os.path.join(HERE, "empty.zip"), "w"):
    pass
