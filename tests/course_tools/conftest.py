"""A real browser for the tests marked `browser`."""

import looking
import pytest
from screens import WIDE


@pytest.fixture(scope="module")
def browser():
    """One Chromium for all tests."""
    pytest.importorskip("playwright", reason="part of the extra browser")
    executable = looking.find_chromium()
    if executable is None:
        pytest.skip("no Chromium or Chrome on the PATH; COURSE_CHROMIUM may name one")
    with looking.browser(executable) as context:
        context.set_default_timeout(120_000)
        yield context


@pytest.fixture
def page(browser):
    """A fresh tab as wide as a laptop, and at its end no trouble."""
    page = browser.new_page()
    page.set_viewport_size(WIDE)
    page.troubles = looking.watch(page)
    yield page
    page.close()
