"""What pyproject.toml asks for is read with its extras, those inside an extra too."""

import pytest

from course_tools import requirements


@pytest.fixture
def ours(monkeypatch):
    extras = {"all": ["ours[a,b]", "x>=1"], "a": ["y"], "b": ["ours[a]", "z; python_version > '3'"]}
    project = {"name": "ours", "dependencies": ["base>=2,<3"], "optional-dependencies": extras}
    monkeypatch.setattr(requirements, "project", lambda: project)


def test_extras_inside_an_extra_are_written_out(ours):
    assert requirements.needed() == ["base>=2,<3"]
    assert requirements.needed("all") == ["base>=2,<3", "y", "z; python_version > '3'", "x>=1"]
    assert requirements.needed("a", "all") == ["base>=2,<3", "y", "z; python_version > '3'", "x>=1"]
