"""Checks the syntax of the Python and JSON code in the documents."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("clients/*/README.md")]


def blocks(language):
    """Returns the code blocks of a language as parameters of pytest, with their location."""
    found = []
    for document in sorted(DOCUMENTS):
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL):
            line = document.read_text()[: match.start()].count("\n") + 1
            found.append(pytest.param(match[1], id=f"{document.relative_to(ROOT)}:{line}"))
    assert found, f"no document contains {language}"
    return found


@pytest.mark.parametrize("code", blocks("python"))
def test_python_in_the_documents_parses(code):
    compile(code, "a document", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("code", blocks("json"))
def test_json_in_the_documents_parses(code):
    json.loads(code)
