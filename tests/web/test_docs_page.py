"""The page at /docs, as a person sees it: in a browser, and without any network."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.programs import written
from tests.web.serving import THIRD_PROGRAM, serving

pytestmark = [pytest.mark.no_transport, pytest.mark.slow]  # a browser takes its time


def test_an_endpoint_can_be_tried_out_without_any_network(tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        assert os.environ.get("CI") != "true", "there is no chromium"
        pytest.skip("there is no chromium")
    from playwright.sync_api import Route, expect, sync_playwright

    foreign: list[str] = []
    with serving(written(tmp_path, "sums.py", THIRD_PROGRAM)) as site, sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=chromium)
        page = browser.new_page()

        def pass_on(route: Route) -> None:
            if route.request.url.startswith((f"{site.url}/", "data:", "blob:")):
                route.continue_()
            else:
                foreign.append(route.request.url)
                route.abort()

        page.route("**/*", pass_on)
        page.goto(f"{site.url}/docs")
        expect(page).to_have_title("sums - Swagger UI")
        endpoints = page.locator(".opblock")
        expect(endpoints).to_have_count(1)
        expect(endpoints.locator(".opblock-summary")).to_contain_text("POST")
        expect(endpoints.locator(".opblock-summary")).to_contain_text("/add")
        endpoints.locator(".opblock-summary-control").click()
        page.get_by_role("button", name="Try it out").click()
        page.locator("textarea.body-param__text").fill('{"x": 1, "y": 300}')
        page.get_by_role("button", name="Execute").click()
        answer = page.locator(".live-responses-table .response").first
        expect(answer.locator(".response-col_status")).to_contain_text("200")
        expect(answer.locator(".microlight").first).to_contain_text('"result": 301')
        browser.close()
    assert foreign == []
