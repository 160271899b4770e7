"""A pretended card for the tests of this room."""

from collections.abc import Iterator

import pytest

from course_tools.rehearsal.pretend_gpu import PretendGPU


@pytest.fixture
def card() -> Iterator[PretendGPU]:
    """A T4; `pretend.POSSIBLE` says where there can be one."""
    with PretendGPU() as card:
        yield card
