"""The archives of the Python package: their contents, and their installation."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from hub import ROOT

SOURCE = ROOT / "clients/python"
BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The archives, built from a fresh copy: sdist and wheel."""
    copy = tmp_path_factory.mktemp("copy") / "python"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("*.egg-info", "build", "dist", "__pycache__"))
    return [build(step, copy, tmp_path_factory.mktemp("out")) for step in ("build_sdist", "build_wheel")]


def build(step: str, source: Path, out: Path) -> Path:
    command = [sys.executable, "-c", BUILD, step, out]
    run = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "deprecated" not in run.stderr.lower(), run.stderr
    return out / run.stdout.split()[-1]


def test_the_sdist_has_licences_and_sources(archives):
    with tarfile.open(archives[0]) as sdist:
        names = {name.split("/", 1)[-1] for name in sdist.getnames()}
    wanted = {"LICENSE-MIT", "LICENSE-APACHE", "README.md", "pyproject.toml", "src/fanfare_publisher/py.typed"}
    assert wanted <= names, wanted - names


def test_the_wheel_has_complete_metadata(archives):
    with zipfile.ZipFile(archives[1]) as wheel:
        names = wheel.namelist()
        info = next(name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(wheel.read(info).decode())
    assert "fanfare_publisher/py.typed" in names
    assert {name.rsplit("/", 1)[-1] for name in names if "/licenses/" in name} == {"LICENSE-MIT", "LICENSE-APACHE"}
    assert metadata["License-Expression"] == "MIT OR Apache-2.0"
    assert metadata["Keywords"] and metadata["Requires-Python"] == ">=3.9"
    urls = [url.split(",")[0] for url in metadata.get_all("Project-URL")]
    assert {"Repository", "Documentation", "Issues"} <= set(urls)
    assert "Typing :: Typed" in metadata.get_all("Classifier")


def test_the_licences_are_those_of_the_repository():
    for name in ("LICENSE-MIT", "LICENSE-APACHE"):
        assert (SOURCE / name).read_bytes() == (ROOT / name).read_bytes(), name


@pytest.mark.parametrize("which", [0, 1], ids=["sdist", "wheel"])
def test_the_archive_installs_and_imports(archives, which, tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"]
    install = [*pip, "--no-build-isolation", "--target", tmp_path / "site", archives[which]]
    done = subprocess.run(install, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    code = "import fanfare_publisher as f; print(f.__file__, *(getattr(f, name) and name for name in f.__all__))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(str(tmp_path)), "the installed package is imported"
