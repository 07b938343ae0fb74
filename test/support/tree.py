"""Trees of files for tests: `make SEED FOLDER` fills a folder at random, `list FOLDER` tells all that a container would see of it, as JSON."""

import hashlib
import json
import os
import random
import stat
import sys

SIZES = [0, 1, 100, 4031, 4032, 4033, 4095, 4096, 4097, 8192, 12345, 70000]


def name(source: random.Random, taken: set) -> bytes:
    while True:
        length = source.choice([1, 2, 8, 8, 8, 60, 255])
        chosen = bytes(source.choice(b"abcXYZ019 -.,!\n\xc3\xff~") for _ in range(length))
        if chosen not in taken | {b".", b".."} and not chosen.startswith(b".wh."):
            taken.add(chosen)
            return chosen


def attributes(source: random.Random, path: bytes, link: bool) -> None:
    os.chown(path, source.choice([0, 1000, 70000, 4294967290]), source.choice([0, 1001, 65536]), follow_symlinks=False)
    if not link:
        os.chmod(path, source.choice([0o644, 0o755, 0o4755, 0o2750, 0o1777, 0o000, 0o7777]))
    when = source.choice([0, 1, -5_500_000_000, 1_700_000_000_123_456_789, 5_000_000_000_000_000_001])
    os.utime(path, ns=(when, when), follow_symlinks=False)


def extend(source: random.Random, path: bytes, kind: str) -> None:
    if kind == "file" and source.random() < 0.2:
        os.setxattr(path, "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    if kind in ("file", "folder"):
        for _ in range(source.choice([0, 0, 0, 1, 3])):
            os.setxattr(path, f"user.{source.randrange(1000)}", source.randbytes(source.choice([1, 30, 700])))


def sparse(source: random.Random, path: bytes) -> None:
    size = source.choice([10_000, 5_000_000, (1 << 32) + 12_345])
    with open(path, "wb") as file:
        file.truncate(size)
        for _ in range(source.randrange(4)):
            file.seek(source.randrange(size))
            file.write(source.randbytes(min(5000, size - file.tell())))


def fill(source: random.Random, folder: bytes, depth: int, files: list) -> None:
    taken: set = set()
    for _ in range(source.choice([0, 2, 6, 12]) if depth else 40):
        path = os.path.join(folder, name(source, taken))
        kind = source.choice(["file"] * 8 + ["folder"] * 3 + ["link"] * 2 + ["hard", "fifo", "device", "sparse"])
        if kind == "folder":
            os.mkdir(path)
            if depth < 3:
                fill(source, path, depth + 1, files)
        elif kind == "link":
            os.symlink(source.randbytes(source.choice([1, 20, 300, 1000])).replace(b"\0", b"/"), path)
        elif kind == "hard" and files:
            os.link(source.choice(files), path)
            continue
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "device":
            os.mknod(path, source.choice([stat.S_IFCHR, stat.S_IFBLK]) | 0o600, os.makedev(source.randrange(1, 4096), source.randrange(1 << 20)))
        elif kind == "sparse":
            sparse(source, path)
            files.append(path)
        else:
            kind = "file"
            with open(path, "wb") as file:
                file.write(source.randbytes(source.choice(SIZES)))
            files.append(path)
        extend(source, path, kind)
        attributes(source, path, kind == "link")


def digest(path: bytes) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        # Of a huge one only what is no hole, as far as this file system knows, and always the end.
        places = [(0, size)] if size < 1 << 28 else [(0, 1 << 20), (size - (1 << 20), 1 << 20)]
        for start, length in places:
            file.seek(start)
            found.update(file.read(length))
    return found.hexdigest()


def entry(path: bytes) -> dict:
    stats = os.lstat(path)
    kind = stat.S_IFMT(stats.st_mode)
    told = {"mode": oct(stats.st_mode), "uid": stats.st_uid, "gid": stats.st_gid, "mtime": stats.st_mtime_ns, "links": stats.st_nlink}
    if kind == stat.S_IFREG:
        told |= {"size": stats.st_size, "digest": digest(path)}
    elif kind == stat.S_IFLNK:
        told["target"] = os.readlink(path).hex()
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        told["device"] = stats.st_rdev
    names = [key for key in os.listxattr(path, follow_symlinks=False) if not key.startswith("security.selinux")]
    told["xattrs"] = {key: os.getxattr(path, key, follow_symlinks=False).hex() for key in sorted(names)}
    return told


def listing(root: bytes) -> dict:
    found = {}
    for folder, folders, files in os.walk(root):
        for child in folders + files:
            path = os.path.join(folder, child)
            found[os.path.relpath(path, root).hex()] = entry(path)
    return found


if __name__ == "__main__":
    if sys.argv[1] == "make":
        fill(random.Random(int(sys.argv[2])), os.fsencode(sys.argv[3]), 0, [])
    else:
        print(json.dumps(listing(os.fsencode(sys.argv[2])), sort_keys=True))
