"""What a page's outputs depend on beside its own code: modules of ours, and files of the book that the code names."""

import ast
import hashlib
from functools import lru_cache

PLACES = {"csq_mini": "csq_mini", "csq_book": "book/csq_book"}


def digest(code, root):
    """One short hash of all that the code uses; another one means that its outputs may be out of date."""
    found = hashlib.sha256()
    for file in sorted(files_of(code, root)):
        found.update(f"{file.relative_to(root).as_posix()}\n".encode() + file.read_bytes())
    return found.hexdigest()[:16]


def files_of(code, root):
    """Files that the code imports or names, and those that they import or name in turn."""
    found, waiting = set(), [(code, ())]
    while waiting:
        code, package = waiting.pop()
        for file in used(code, package, root) - found:
            found.add(file)
            if file.suffix == ".py":
                waiting.append((file.read_text("utf8"), package_of(file, root)))
    return found


def package_of(file, root):
    """The dotted name of the package that a file lies in, as a tuple."""
    for name, place in PLACES.items():
        if file.is_relative_to(root / place):
            return (name, *file.relative_to(root / place).parts[:-1])
    return ()


@lru_cache(maxsize=1000)
def used(code, package, root):
    """The files that some code imports or names itself."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found |= modules(alias.name.split("."), root)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            base = [*above, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                found |= modules([*base, alias.name], root) or modules(base, root)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("book/"):
            found |= inside(root / node.value)
    return found


def modules(name, root):
    """The file of a module. A package counts with all that lies in it: some import their modules by name."""
    if name[0] not in PLACES:
        return set()
    place = (root / PLACES[name[0]]).joinpath(*name[1:])
    file = place.with_suffix(".py")
    return {file} if file.is_file() else inside(place)


def inside(place):
    """A file, or all that lies in a folder; nothing if there is neither."""
    files = [place] if place.is_file() else place.rglob("*")
    return {file for file in files if file.is_file() and "__pycache__" not in file.parts}
