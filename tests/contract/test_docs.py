"""The page /docs: everything that it asks for is there, and nothing that it asks for is elsewhere."""

import re

import pytest

from tests.deployments import Gateway


@pytest.fixture
async def page(gateway: Gateway) -> str:
    del gateway.http.headers["Authorization"]
    response = await gateway.http.get("/docs")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    return response.text


async def test_all_that_the_page_refers_to_is_served_here_without_a_token(gateway: Gateway, page: str) -> None:
    references = re.findall(r'(?:src|href)="([^"]+)"', page)
    script = (await gateway.http.get("/docs/start.js")).text
    references += re.findall(r'url: "([^"]+)"', script)
    assert len(references) == 6
    for reference in references:
        assert "//" not in reference
        response = await gateway.http.get(f"/{reference}")
        assert response.status_code == 200, reference
        assert response.content


async def test_the_policy_lets_the_page_run_its_own_scripts_and_no_others(gateway: Gateway, page: str) -> None:
    policy = (await gateway.http.get("/docs")).headers["content-security-policy"]
    directives = {entry.split()[0]: entry.split()[1:] for entry in policy.split(";")}
    assert directives["default-src"] == ["'none'"]
    assert directives["script-src"] == ["'self'"]
    assert directives["connect-src"] == ["'self'"]
    assert "data:" in directives["img-src"]
    # What the policy forbids, the page must not need.
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", page)


async def test_scripts_and_styles_have_the_types_that_browsers_insist_on(gateway: Gateway) -> None:
    for path, media_type in (
        ("/docs/start.js", "text/javascript"),
        ("/docs/assets/swagger-ui-bundle.js", "text/javascript"),
        ("/docs/assets/swagger-ui.css", "text/css"),
    ):
        response = await gateway.http.get(path)
        assert response.headers["content-type"].startswith(media_type)
        assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["index.html", "swagger-initializer.js", "../__init__.py", "%2e%2e/METADATA", ""])
async def test_no_other_file_of_the_package_is_served(gateway: Gateway, path: str) -> None:
    assert (await gateway.http.get(f"/docs/assets/{path}")).status_code == 404


async def test_an_asset_that_the_browser_has_is_not_sent_again(gateway: Gateway) -> None:
    first = await gateway.http.get("/docs/assets/swagger-ui.css")
    again = await gateway.http.get("/docs/assets/swagger-ui.css", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_the_page_is_given_a_version_of_openapi_that_it_can_read(gateway: Gateway) -> None:
    bundle = (await gateway.http.get("/docs/assets/swagger-ui-bundle.js")).text
    assert '"3.0."' in bundle
    assert (await gateway.http.get("/docs/openapi.json")).json()["openapi"] == "3.0.3"
    assert (await gateway.http.get("/openapi.json")).json()["openapi"] == "3.1.0"
