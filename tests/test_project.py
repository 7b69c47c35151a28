"""The files around the library agree with each other, and the set-up fails with a clear line when something is missing.

The set-up tests run the true script in a folder of their own. Where only its decisions matter, a stand-in for Python
makes the virtual environment and plays pip in no time; the test without network uses the real ones.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import csq_mini

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
ON_COLAB = "torch torchvision numpy pandas matplotlib seaborn altair scikit-learn ipywidgets tqdm".split()


# The lists of dependencies


def test_conda_environment_is_the_base_list_with_book_and_test():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert environment["name"] == PROJECT["name"]
    assert environment["channels"] == ["conda-forge"]
    assert conda == ["python" + PROJECT["requires-python"], "pip"]
    wanted = PROJECT["dependencies"] + EXTRAS["notebook"] + EXTRAS["book"] + EXTRAS["test"]
    wanted = set(wanted) - {"csq-mini[notebook]"}
    assert sorted(pip["pip"]) == sorted(wanted)
    names = [Requirement(line).name for line in pip["pip"]]
    assert len(names) == len(set(names)), "two extras ask for different versions of one package"


def test_jupyter_book_stays_below_its_second_version():
    [book] = [r for r in map(Requirement, EXTRAS["book"]) if r.name == "jupyter-book"]
    assert book.specifier.contains("1.0.4.post1")
    assert not book.specifier.contains("2.0.0") and not book.specifier.contains("2.1.0")


def test_what_colab_ships_has_no_upper_bound():
    lists = [PROJECT["dependencies"], *EXTRAS.values()]
    shipped = [r for lines in lists for r in map(Requirement, lines) if r.name in ON_COLAB]
    assert {r.name for r in shipped} == set(ON_COLAB)
    for requirement in shipped:
        assert {s.operator for s in requirement.specifier} <= {">=", ">", "!="}, requirement


def declared(*extras):
    """Names of the packages that pyproject.toml lists, with those of some extras."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return {normal(Requirement(line).name) for line in lines}


def normal(package):
    return re.sub(r"[-_.]+", "-", package).lower()


def imported(code):
    """The first part of each absolute import, wherever it stands."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def code_of(pattern):
    """Python files by name, and the code of pages."""
    for file in ROOT.glob(pattern):
        text = file.read_text("utf8")
        cells = re.findall(r"^```\{code-cell\}[^\n]*\n(?:---\n.*?^---\n|(?::[^\n]*\n)*)(.*?)^```$", text, re.S | re.M)
        yield file, "\n".join(cells) if file.suffix == ".md" else text


@pytest.mark.parametrize(
    ("pattern", "extras"),
    [
        ("csq_mini/**/*.py", ["notebook", "export"]),
        ("data_scripts/*.py", []),
        ("book/csq_book/**/*.py", ["notebook", "book"]),
        ("book/**/*.md", ["notebook", "export"]),  # so that Colab has it, or the first cell fetches it
        ("book/_ext/*.py", ["notebook", "book"]),
        ("book/scripts/*.py", ["notebook", "book", "dev"]),
        ("tests/**/*.py", ["notebook", "book", "test", "export", "dev"]),
    ],
)
def test_whatever_is_imported_is_declared(pattern, extras):
    ours = {file.stem for pattern in ("book/*/*.py", "tests/**/*.py") for file in ROOT.glob(pattern)}
    ours |= {"csq_mini", "csq_book"} | sys.stdlib_module_names
    brings = {name: set(map(normal, packages)) for name, packages in packages_distributions().items()}
    listed = declared(*extras)
    assert not {f"{file.relative_to(ROOT)} imports {name}" for file, code in code_of(pattern)
                for name in set(imported(code)) - ours if not brings.get(name, {name}) & listed}  # fmt: skip


def test_every_folder_with_modules_is_a_package():
    """Otherwise setuptools would leave it out of the wheel."""
    for package in ("csq_mini", "book/csq_book"):
        folders = {file.parent for file in (ROOT / package).glob("**/*.py")}
        assert folders and not [folder for folder in folders if not (folder / "__init__.py").exists()]


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert citation["version"] == csq_mini.__version__
    assert re.search(r"^## \[(.+?)\]", changelog, re.MULTILINE).group(1) == csq_mini.__version__


# make


def make(*arguments):
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_make_alone_explains_every_target():
    [phony] = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    explained = dict(re.findall(r"^  (\w+) +(\S.*)$", make(), re.MULTILINE))
    assert set(explained) == set(phony.split())
    assert make("help") == make()


STUB = """#!/bin/sh
printf '%s\\0' "$0" "$@" >>"$LOG"
for name in FROM_MAKE START JOBS PORT PYTHON; do eval "printf '%s=%s\\0' $name \\"\\${$name-}\\"" >>"$LOG"; done
"""
HOSTILE = [
    "a;touch pwned", "my (1).pt", "it's.pt", 'a"b', "a&touch pwned", "a|touch pwned", "a>pwned", "a<b", "a\nb", "a\\",
    "$(x)", "$(shell touch pwned)", "${shell touch pwned}", "$$(touch pwned)", "$x", "$", "`touch pwned`", "*", "~",
    "-n", "a#b", "!!", "%", "x,y) $(touch pwned)", "$(error no)", "$(eval BIN=touch pwned;)", "é",
]  # fmt: skip


@pytest.fixture
def stubbed(tmp_path):
    """A folder with the true Makefile and stand-ins that note their words; what they noted after make has run."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in (".ci/setup", ".venv/bin/python", ".venv/bin/jupyter-book"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(STUB)
        (tmp_path / name).chmod(0o755)
    before = {file for file in tmp_path.glob("**/*")}

    def run(*words, **variables):
        environment = {"PATH": os.environ["PATH"], "LOG": os.fspath(tmp_path / "log"), **variables}
        (tmp_path / "log").write_text("")
        make = subprocess.run(["make", *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert {file for file in tmp_path.glob("**/*")} == before | {tmp_path / "log"}, "something was written"
        return make.returncode, (tmp_path / "log").read_text().split("\0")

    return run


@pytest.mark.parametrize("text", HOSTILE)
def test_make_passes_words_and_no_shell(stubbed, text):
    status, noted = stubbed("reproduce", f"START={text}", "SEEDS=0", f"PYTHON={text}")
    assert status == 0 and noted.count(f"START={text}") == noted.count(f"PYTHON={text}") == 2  # set-up and program
    [names] = {note for note in noted if note.startswith("FROM_MAKE=")}
    assert set(names.removeprefix("FROM_MAKE=").split()) == {"START", "SEEDS", "PYTHON"}
    for target, name, flag in (("colab", "JOBS", "--jobs"), ("test", "JOBS", "-n"), ("serve", "PORT", "http.server")):
        for words, variables in ([target, f"{name}={text}"], {}), ([target], {name: text}):  # typed, or inherited
            status, noted = stubbed(*words, **variables)
            assert status == 0 and noted[noted.index(flag) + 1] == text


@pytest.mark.parametrize("name", ["BIN", "ONE_THREAD", "PYTEST", "SHELL", "MAKE", "CURDIR", "FROM_MAKE", "name"])
def test_make_keeps_its_own_variables(stubbed, name):
    for target in ("reproduce", "test", "book", "serve"):
        assert stubbed(target, f"{name}=touch pwned;")[0] == 0


def test_make_refuses_a_variable_whose_name_is_code(stubbed):
    assert stubbed("reproduce", "$$(shell touch pwned)=1")[0] != 0


def test_no_recipe_writes_a_variable_into_the_shell():
    makefile = (ROOT / "Makefile").read_text()
    recipes = "".join(re.findall(r"^\t.*\n", makefile, re.MULTILINE))
    assert set(re.findall(r"(?<!\$)\$[({]?(\w+)", recipes)) == {"BIN", "ONE_THREAD", "PYTEST"}
    for name in ("BIN", "ONE_THREAD", "PYTEST"):
        assert re.search(rf"^override {name} := ", makefile, re.MULTILINE)


# The set-up

# Python for whoever asks, but "-m venv" and "-m pip" are only noted, and importing torch takes no time.
STAND_IN = """#!/bin/sh
case "$*" in
"-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; echo "command = $*" >"$3/pyvenv.cfg"; echo venv >>"$LOG" ;;
"-m pip install --require-hashes "*) echo locked >>"$LOG"; exit "${PIP_EXIT:-0}" ;;
"-m pip install --no-index "*" -e "*) echo checked >>"$LOG" ;;
"-m pip install -e "*) echo newest >>"$LOG" ;;
*"import torch"*) ;;
*) exec "$REAL" "$@" ;;
esac
"""
OLD = """#!/bin/sh
shift
exec "$REAL" -c 'import sys; sys.version_info = (3, 10, 4, "final", 0); exec(sys.argv.pop(1))' "$@"
"""
NO_VENV = """#!/bin/sh
case "$*" in *"import venv"*) exit 1 ;; esac
exec "$REAL" "$@"
"""
INSTALLED = ["locked", "locked", "checked"]  # setuptools, all packages, and the library, which finds that none lacks


class SetUp:
    """A folder with the set-up script, a PATH of the few tools it needs, and a log of what its stand-in Python did."""

    def __init__(self, parent):
        self.root = parent / "a folder"
        self.tools = parent / "tools"
        self.log = parent / "log"
        (self.root / ".ci").mkdir(parents=True)
        for name in ("setup", "requirements.txt"):
            shutil.copy(ROOT / ".ci" / name, self.root / ".ci")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        self.tools.mkdir()
        for tool in "sh dirname sed cut cat cksum du rm mkdir cp".split():
            (self.tools / tool).symlink_to(shutil.which(tool))

    def add_python(self, script, name="python3"):
        (self.tools / name).write_text(script)
        (self.tools / name).chmod(0o755)
        return self

    def run(self, **variables):
        """Exit status, all that was printed, and the stand-in's calls. Nothing of the caller's environment gets in."""
        self.log.write_text("")
        environment = {"PATH": str(self.tools), "HOME": str(self.tools), "LOG": str(self.log), "REAL": sys.executable}
        run = subprocess.run(
            [self.tools / "sh", self.root / ".ci" / "setup"],
            env=environment | {"NEED_GB": "0"} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return run.returncode, run.stdout, self.log.read_text().split()


@pytest.fixture
def setup(tmp_path):
    return SetUp(tmp_path)


def test_set_up_runs_once_and_again_when_the_dependencies_change(setup):
    setup.add_python(STAND_IN)
    status, printed, calls = setup.run()
    assert (status, calls) == (0, ["venv", *INSTALLED]) and "minutes" in printed
    assert setup.run() == (0, ".venv is up to date\n", [])
    pyproject = setup.root / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace("line-length = 120", "line-length = 100"))
    assert setup.run() == (0, ".venv is up to date\n", [])
    for old, new in (('"tqdm"', '"tqdm>=4"'), ('csq_book = "book/csq_book"', 'csq_book = "elsewhere"')):
        pyproject.write_text(pyproject.read_text().replace(old, new))
        assert setup.run()[::2] == (0, INSTALLED)
    (setup.root / ".ci/requirements.txt").write_text("# For Python 2.7\n")
    status, printed, calls = setup.run()
    assert (status, calls) == (0, ["newest"]) and "not among those of .ci/requirements.txt" in printed


def test_set_up_without_the_lock(setup):
    setup.add_python(STAND_IN)
    assert setup.run(LOCK="no")[::2] == (0, ["venv", "newest"])
    assert setup.run() == (0, ".venv is up to date\n", [])


def test_set_up_goes_on_after_an_interrupted_one(setup):
    setup.add_python(STAND_IN)
    status, printed, _ = setup.run(PIP_EXIT="2")
    assert status != 0 and "nothing is lost" in printed
    assert setup.run()[::2] == (0, INSTALLED)
    assert not (setup.root / ".venv" / "tmp").exists()


@pytest.mark.parametrize("damage", ["its Python is gone", "the folder was moved"])
def test_set_up_replaces_a_venv_that_cannot_work(setup, damage):
    setup.add_python(STAND_IN).run()
    if damage == "its Python is gone":
        (setup.root / ".venv" / "bin" / "python").unlink()
    else:
        setup.root = setup.root.rename(setup.root.with_name("another folder"))
    status, printed, calls = setup.run()
    assert (status, calls) == (0, ["venv", *INSTALLED]) and "Removing .venv" in printed


def test_set_up_takes_a_newer_python_beside_an_old_one(setup):
    setup.add_python(OLD).add_python(STAND_IN, "python3.12")
    assert setup.run()[::2] == (0, ["venv", *INSTALLED])


def refusal(setup, **variables):
    """The line the set-up ends with; it must have left nothing behind."""
    status, printed, calls = setup.run(**variables)
    assert status != 0 and calls == []
    assert not (setup.root / ".venv").exists()
    line = printed.strip().splitlines()[-1]
    assert line.startswith("Set-up stopped: ")
    return line


def test_set_up_without_python(setup):
    line = refusal(setup)
    assert "Python 3.11 or newer is needed" in line and "PYTHON=" in line


def test_set_up_with_an_old_python(setup):
    line = refusal(setup.add_python(OLD))
    assert "Python 3.11 or newer is needed" in line and "python3 is Python 3.10" in line


def test_set_up_with_a_python_that_does_not_exist(setup):
    assert "tried: /no/such/python" in refusal(setup.add_python(STAND_IN), PYTHON="/no/such/python")


def test_set_up_without_the_venv_module(setup):
    assert "python3-venv" in refusal(setup.add_python(NO_VENV))


def test_set_up_on_a_full_disk(setup):
    line = refusal(setup.add_python(STAND_IN), NEED_GB="1000000")
    assert "disk is too full" in line and "1000000 GB" in line and "NEED_GB=" in line


@pytest.mark.parametrize(("name", "value"), [("NEED_GB", "a[$(touch pwned)]"), ("NEED_GB", "2.5"), ("LOCK", "maybe")])
@pytest.mark.parametrize("shell", ["sh", "bash"])  # bash runs what stands in a number
def test_set_up_with_a_bad_variable(setup, name, value, shell):
    (setup.tools / "sh").unlink()
    (setup.tools / "sh").symlink_to(shutil.which(shell))
    before = set(setup.root.glob("**/*"))
    line = refusal(setup.add_python(STAND_IN), **{name: value})
    assert f"{name} must be" in line and f"got {value}" in line and set(setup.root.glob("**/*")) == before


def test_set_up_without_network(setup):
    status, printed, _ = setup.run(
        PYTHON=sys.executable,
        PATH=os.environ["PATH"],
        PIP_CONFIG_FILE=os.devnull,
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_RETRIES="0",
    )
    assert status != 0
    line = printed.strip().splitlines()[-1]
    assert line.startswith("Set-up stopped: ") and "network" in line and "nothing is lost" in line
    assert not (setup.root / ".venv" / "set-up").exists()


def test_the_rules_name_test_files_that_there_are():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "CONTRIBUTING.md").read_text()))
    assert len(named) > 20 and all((ROOT / "tests" / f"{name}.py").exists() for name in named)
