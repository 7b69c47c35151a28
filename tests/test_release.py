"""What goes out: the lock that CI and the book are built with, the wheel, and the workflows that publish."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import csq_mini

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / ".ci" / "requirements.txt").read_text()
PYTHONS = re.match(r"# For Python (.+)\n", LOCK)[1].split()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


# The lock


def pins():
    """Requirements of the lock by name; a package may have one for each Python."""
    found = defaultdict(list)
    for line in re.findall(r"^([\w.-]+==[^\\\n]*[^\\\s])", LOCK, re.MULTILINE):
        requirement = Requirement(line)
        found[canonicalize_name(requirement.name)].append(requirement)
    return found


def asked_for():
    """All that pyproject.toml names: what the library needs, what the extras add, and what builds it."""
    project = PYPROJECT["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values(), PYPROJECT["build-system"]["requires"]]
    return {line for lines in lists for line in lines if not line.startswith("csq-mini[")}


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_covers_what_pyproject_asks_for(python):
    locked = pins()
    machine = default_environment() | {"python_version": python, "python_full_version": f"{python}.0"}
    for line in asked_for():
        asked = Requirement(line)
        here = [pin for pin in locked[canonicalize_name(asked.name)] if not pin.marker or pin.marker.evaluate(machine)]
        wanted = not asked.marker or asked.marker.evaluate(machine)
        assert len(here) == wanted, f"{line} in Python {python}: run make lock"
        if not wanted:
            continue
        [version] = here[0].specifier
        assert version.operator == "==" and asked.specifier.contains(version.version, prereleases=True), (line, python)


def test_the_lock_has_a_hash_for_every_package_and_names_no_address():
    lines = LOCK.splitlines()
    line_of_it = re.compile(r"#.*|[\w.-]+==\S+( ; [^\\]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?")
    assert all(map(line_of_it.fullmatch, lines))
    for line, following in zip(lines, lines[1:]):
        if "==" in line:
            assert following.startswith("    --hash=sha256:"), line
    assert "://" not in LOCK


def test_the_lock_is_for_every_python_that_ci_tests():
    oldest = PYPROJECT["project"]["requires-python"].removeprefix(">=")
    used = {oldest}
    for file in WORKFLOWS:
        for job in read_workflow(file)["jobs"].values():
            used |= set(job.get("strategy", {}).get("matrix", {}).get("python", []))
            used |= {step["with"]["python-version"] for step in job["steps"] if "setup-python" in step.get("uses", "")}
    assert used - {"${{ matrix.python }}"} <= set(PYTHONS) and PYTHONS[0] == oldest


# The wheel


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, the wheel that is built from it (as in .ci/dist), one of a clone, and one for an editable install."""
    folder = tmp_path_factory.mktemp("release")
    for name in ("csq_mini", "book/csq_book", "tests"):
        shutil.copytree(ROOT / name, folder / "clone" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "MANIFEST.in", "README.md", "CHANGELOG.md", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, folder / "clone")
    run_hook(folder / "clone", "build_sdist", folder)
    [sdist] = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    run_hook(folder / sdist.name[:-7], "build_wheel", folder / "released")
    run_hook(folder / "clone", "build_wheel", folder / "direct")
    run_hook(folder / "clone", "build_editable", folder / "editable")
    wheels = [zipfile.ZipFile(*folder.glob(f"{name}/*.whl")) for name in ("released", "direct", "editable")]
    return sdist, *wheels


def run_hook(folder, hook, target):
    """A step of the build, as build and pip have setuptools take it."""
    code = "import sys, setuptools.build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"
    target.mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-c", code, hook, target], cwd=folder, check=True, capture_output=True)


def library():
    """The files of csq_mini."""
    return {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "csq_mini").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_the_wheel_is_the_library_and_nothing_else(built):
    _, wheel, direct, _ = built
    about = f"csq_mini-{csq_mini.__version__}.dist-info/"
    assert {name for name in wheel.namelist() if not name.startswith(about)} == library()
    assert set(direct.namelist()) == set(wheel.namelist())
    assert wheel.read(about + "top_level.txt") == b"csq_mini\n"
    assert about + "licenses/LICENSE" in wheel.namelist()
    assert os.path.getsize(wheel.filename) < 1e6
    metadata = wheel.read(about + "METADATA").decode()
    assert f"\nVersion: {csq_mini.__version__}\n" in metadata
    needs = {Requirement(line) for line in re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE)}
    assert {r for r in needs if not r.marker} == set(map(Requirement, PYPROJECT["project"]["dependencies"]))


def test_an_editable_install_has_the_book_s_package_too(built):
    *_, wheel = built
    [finder] = [name for name in wheel.namelist() if name.endswith("_finder.py")]
    [mapping] = re.findall(r"^MAPPING[^=]*= (.+)$", wheel.read(finder).decode(), re.MULTILINE)
    assert set(ast.literal_eval(mapping)) == {"csq_book", "csq_mini"}


def test_the_sdist_has_what_builds_the_library_and_nothing_else(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    extra = {name for name in names - library() if not name.startswith("csq_mini.egg-info/")}
    assert library() <= names
    assert extra == {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg", "setup.py"}


def test_the_wheel_works_without_the_repository(built, tmp_path):
    built[1].extractall(tmp_path)
    code = "import csq_mini as csq; csq.pretrained('resnet20-cifar10-2bit'); print(csq.__file__)"
    run = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": os.fspath(tmp_path)}
    printed = subprocess.run(run, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    assert printed.strip() == os.fspath(tmp_path / "csq_mini" / "__init__.py")


# The notes of a release


@pytest.fixture
def notes(tmp_path):
    """What .ci/notes says of a tag, given a changelog."""
    for name in (".ci/notes", "csq_mini/files.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())

    def run(tag, changelog):
        (tmp_path / "CHANGELOG.md").write_text(changelog)
        run = subprocess.run(["sh", tmp_path / ".ci/notes", tag], capture_output=True, text=True)
        assert (run.returncode == 0) == (run.stderr == "")
        return run.stdout.strip() or run.stderr

    return run


def test_the_notes_of_a_release_are_its_section_of_the_changelog(notes):
    version = csq_mini.__version__
    changelog = f"""# Changelog
## [9.9.9] - Unreleased
more
## [{version}] - 2026-11-27
### Added
- all
## [0.0.1] - 2026-01-01
old
"""
    assert notes(f"v{version}", changelog) == "### Added\n- all"


@pytest.mark.parametrize("tag", ["v9.9.9", csq_mini.__version__, "", "v$(touch pwned)", f"v{csq_mini.__version__}rc1"])
def test_a_tag_that_is_not_the_version_is_no_release(notes, tag):
    assert f"the tag is '{tag}', but the version in csq_mini/files.py is {csq_mini.__version__}" in notes(tag, "")


@pytest.mark.parametrize("day", ["Unreleased", "2026-1-1", "soon 2026-01-01"])
def test_a_section_without_a_day_is_no_release(notes, day):
    version = csq_mini.__version__
    assert "with the day of the release" in notes(f"v{version}", f"## [{version}] - {day}\n\n- all\n")


# Workflows


def read_workflow(file):
    """A workflow; YAML takes its key `on` for a truth value."""
    workflow = yaml.safe_load(file.read_text())
    return workflow | {"on": workflow.pop(True)}


JOBS = [
    pytest.param(job, id=f"{file.stem}-{name}")
    for file in WORKFLOWS
    for name, job in read_workflow(file)["jobs"].items()
]
STRINGS = re.compile(r"""'[^']*'|"(?:\\.|[^"\\])*\"""")
PASS_ON = {"actions/download-artifact", "actions/deploy-pages", "pypa/gh-action-pypi-publish"}


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_is_sound_and_may_little(file):
    workflow = read_workflow(file)
    assert workflow["name"] and workflow["on"] and workflow["permissions"] == {"contents": "read"}
    may = {
        "book publish": {"pages": "write", "id-token": "write"},
        "links file": {"issues": "write"},
        "release publish": {"id-token": "write"},
        "release release": {"contents": "write"},
    }
    for name, job in workflow["jobs"].items():
        assert job["runs-on"] == "ubuntu-latest" and job["timeout-minutes"] <= 90 and job["steps"]
        assert job.get("permissions", {}) == may.get(f"{file.stem} {name}", {})
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])


def made_by(job):
    """The targets that a job gives to make, those of its matrix too."""
    commands = "\n".join(step.get("run", "") for step in job["steps"])
    targets = set(re.findall(r'^make ("?\$?\w+)', commands, re.MULTILINE))
    choices = job.get("strategy", {}).get("matrix", {}).get("target", [])
    return targets - {'"$TARGET'} | (set(choices) if '"$TARGET' in targets else set())


def test_workflows_make_what_the_makefile_has():
    [phony] = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = {file.stem: set().union(*map(made_by, read_workflow(file)["jobs"].values())) for file in WORKFLOWS}
    assert made == {
        "test": {"setup", "lint", "test"}, "book": {"setup", "book", "pdf"}, "links": {"setup", "links", "colab"},
        "release": {"setup", "lint", "test", "dist"},
    }  # fmt: skip
    assert set().union(*made.values()) <= set(phony.split())


def test_the_book_is_published_from_main_alone():
    publish = read_workflow(ROOT / ".github/workflows/book.yml")["jobs"]["publish"]
    assert publish["if"] == "github.ref == 'refs/heads/main'" and publish["needs"] == "build"


@pytest.mark.parametrize(("number", "done"), [("", "issue create --title"), ("7", "issue comment 7 --body-file")])
def test_a_weekly_failure_opens_an_issue_or_adds_to_it(tmp_path, number, done):
    check, file = read_workflow(ROOT / ".github/workflows/links.yml")["jobs"].values()
    assert file["if"] == "failure()" and file["needs"] == "check"
    *_, write, upload = check["steps"]
    assert write["if"] == upload["if"] == "failure()"
    assert upload["with"]["name"].startswith("report-") and file["steps"][0]["with"]["pattern"] == "report-*"
    gh = tmp_path / "gh"
    gh.write_text('#!/bin/sh\ncase "$2" in list) printf "%s" "$NUMBER" ;; *) echo "$@" >>gh.log ;; esac\n')
    gh.chmod(0o755)
    (tmp_path / "output.txt").write_text("fine\n(line 3) broken ``` @someone <b> $(touch pwned)\n")
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NUMBER": number, "TARGET": "links"}
    environment |= dict.fromkeys(["GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID"], "x")
    for step in (write, file["steps"][1]):
        subprocess.run(["bash", "-e", "-c", step["run"]], cwd=tmp_path, env=environment, check=True)
    report = (tmp_path / "report/links").read_text()
    assert report == "x/x/actions/runs/x\n\n    (line 3) broken ``` @someone <b> $(touch pwned)\n"
    [asked] = (tmp_path / "gh.log").read_text().splitlines()
    assert asked.startswith(done) and asked.endswith("report/links") and not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_actions_are_pinned_by_commit_and_say_their_version(file):
    uses = re.findall(r"\buses:(.*)", file.read_text())
    assert uses and all(re.fullmatch(r" [\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line) for line in uses)


def test_an_action_is_at_the_same_commit_everywhere():
    uses = {line for file in WORKFLOWS for line in re.findall(r"uses: (.*)", file.read_text())}
    names = [line.partition("@")[0] for line in uses]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("job", JOBS)
def test_a_job_keeps_no_token_and_pastes_nothing_into_a_shell(job):
    for step in job["steps"]:
        if "actions/checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False
        assert "${{" not in step.get("run", "")


@pytest.mark.parametrize("job", JOBS)
def test_a_job_that_may_write_passes_on_files_and_runs_nothing_of_ours(job):
    if "write" not in job.get("permissions", {}).values():
        return
    used = {step["uses"].partition("@")[0] for step in job["steps"] if "uses" in step}
    assert used <= PASS_ON
    code = "\n".join(step.get("run", "") for step in job["steps"])
    assert subprocess.run(["bash", "-n", "-c", code]).returncode == 0
    first = re.compile(r"(?:^|[;&|({]|\b(?:do|then|else|if)\b)\s*([\w./-]+)(?![\w=])", re.MULTILINE)
    words = set(first.findall(STRINGS.sub("_", code)))
    assert words <= {"for", "if", "then", "else", "fi", "do", "done", "continue", "gh"}, "one more command"


def test_only_publishing_has_an_identity_and_it_does_nothing_else():
    jobs = {f"{file.stem} {name}": job for file in WORKFLOWS for name, job in read_workflow(file)["jobs"].items()}
    able = {name for name, job in jobs.items() if "id-token" in job.get("permissions", {})}
    assert able == {"book publish", "release publish"}
    publish = jobs["release publish"]
    assert publish["environment"] == "pypi"
    assert [step["uses"].partition("@")[0] for step in publish["steps"]] == [
        "actions/download-artifact", "pypa/gh-action-pypi-publish",
    ]  # fmt: skip


def test_a_release_is_built_once_and_tried_before_it_is_published():
    jobs = read_workflow(ROOT / ".github/workflows/release.yml")["jobs"]
    assert {name: job.get("needs") for name, job in jobs.items()} == {
        "build": None, "try": "build", "publish": "try", "release": "publish",
    }  # fmt: skip
    first = [step["run"] for step in jobs["build"]["steps"] if "run" in step]
    assert first[0].startswith('sh .ci/notes "$GITHUB_REF_NAME"') and first[-2:] == ["make test", "make dist"]


def test_a_bot_proposes_new_actions_and_new_packages():
    [actions, lock] = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"]
    assert (actions["package-ecosystem"], actions["directory"]) == ("github-actions", "/")
    assert (lock["package-ecosystem"], lock["directory"]) == ("pip", "/.ci")
    assert len(LOCK.encode()) < 500_000  # of a larger file the bot reads nothing
