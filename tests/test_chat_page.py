"""The files of the chat page and their headers."""

import re

import pytest

from minimind_sft.serving.chat_page import FOLDER, page_files


@pytest.fixture(scope="module")
def files():
    return page_files()


def test_every_file_of_the_page_is_served(files):
    names = {path.name for path in FOLDER.iterdir()}
    assert set(files) == {"/", *(f"/page/{name}" for name in names - {"index.html"})}
    assert files["/"].headers["Content-Type"] == "text/html; charset=utf-8"
    assert files["/page/main.js"].headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert files["/page/icon.svg"].headers["Content-Type"] == "image/svg+xml; charset=utf-8"


def test_the_policy_allows_the_pages_own_files_only(files):
    for file in files.values():
        rules = dict(rule.split(" ", 1) for rule in file.headers["Content-Security-Policy"].split("; "))
        assert rules == {
            "default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "connect-src": "'self'",
            "img-src": "'self'", "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'",
            "require-trusted-types-for": "'script'", "trusted-types": "'none'"}
        assert file.headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_loads_only_files_that_are_there(files):
    html = files["/"].content.decode()
    wanted = {f"/{address}" for address in re.findall(r'(?:href|src)="([^"#]+)"', html)}
    for address, file in files.items():
        if address.endswith(".js"):
            wanted |= {f"/page/{name}" for name in re.findall(r'from "\./([^"]+)"', file.content.decode())}
    assert wanted <= set(files)
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script[^>]*>[^<]", html), "the policy would refuse it"


def test_no_script_makes_markup_from_text(files):
    for address, file in files.items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function",
                             file.content.decode()), address
