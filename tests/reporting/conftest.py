import pytest

from reporting.figures import Plot


@pytest.fixture(autouse=True)
def _no_pdfs(request, monkeypatch) -> None:
    """A PDF takes a second, of which nearly all is its font; the tests of the files draw them."""
    if "real_pdfs" not in request.fixturenames:
        monkeypatch.setattr(Plot, "pdf", b"%PDF")


@pytest.fixture
def real_pdfs() -> None:
    """For a test of what the PDFs are."""
