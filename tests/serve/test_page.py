"""The page at / in a real Chromium, on a real server: what people do there, and what a text cannot do to it."""

import json
import shutil
from pathlib import Path

import httpx
import pytest

from tests.lazy import lazy_or_skip
from tests.serve.conftest import KEY

playwright = lazy_or_skip("playwright.sync_api")
axe = lazy_or_skip("axe_playwright_python.sync_playwright")

pytestmark = pytest.mark.slow
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SILENT = [f"--{word}" for word in ("no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking")]
HOSTILE = "<img src=x onerror=alert(1)> & <b>bold</b></span><script>alert(2)</script>"
LONG = "s" * 100  # the longest name of a state
PROMPT = "It was a bright cold day in April"
WATCH = """() => {
  window.lengths = [];
  const watch = { childList: true, characterData: true, subtree: true };
  new MutationObserver(() => lengths.push($("written").textContent.length)).observe($("written"), watch);
}"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        found = next(filter(None, map(shutil.which, NAMES)), None) or driver.chromium.executable_path
        if not Path(found).exists():
            pytest.skip(f"no Chromium: none of {', '.join(NAMES)} on PATH, and playwright has none of its own")
        browser = driver.chromium.launch(executable_path=found, args=SILENT)
        yield browser
        browser.close()


class Opened:
    """The page, with the key given, and what it said and asked for."""

    def __init__(self, browser, server, **options):
        self.context = browser.new_context(**{"viewport": {"width": 1180, "height": 900}, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(server.address)
        self.field("This server wants a key").fill(KEY)
        self.press("Use it")
        self.see("#about", "hgrn2")

    def field(self, label):
        return self.page.get_by_label(label, exact=True)

    def press(self, label):
        self.page.get_by_role("button", name=label, exact=True).click()

    def see(self, where, text):
        """Wait until it is there."""
        playwright.expect(self.page.locator(where)).to_contain_text(text)

    def text_of(self, where):
        return self.page.locator(where).text_content()

    def generate(self, prompt, **fields):
        for name, value in {"temperature": 0, "max_tokens": 30, **fields}.items():
            self.page.locator(f"[name={name}]").fill(str(value))
        self.field("Text").fill(prompt)
        self.press("Generate")

    def save(self, name):
        self.field("Save the state behind this text as").fill(name)
        self.press("Save")
        self.see("#status", f"Saved as {name}")

    def states(self):
        return self.page.locator("#list strong").all_text_contents()


@pytest.fixture(scope="module")
def page(browser, server):
    """One for all tests of this file, which take it as it is."""
    opened = Opened(browser, server)
    yield opened
    opened.context.close()


@pytest.fixture(autouse=True)
def _tidy(page, server):
    """Every test begins with the same page, and ends in silence, at rest."""
    page.page.reload()
    page.see("#about", "hgrn2")  # the tab keeps the key
    page.said.clear()
    yield
    expected = "error: Failed to load resource: the server responded with a status of"  # Chromium says it of any 4xx
    assert [line for line in page.said if not line.startswith(expected)] == []
    assert {httpx.URL(url).port for url in page.asked if not url.startswith("data:")} == {
        httpx.URL(server.address).port
    }
    assert server.rests()
    for state in server.http.get("/v1/states").json()["data"]:
        server.http.delete(f"/v1/states/{state['name']}")


def test_it_may_load_and_run_nothing_but_itself(server):
    answer = httpx.get(server.address)
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert "http" not in answer.text.replace("http://www.w3.org", "")


def test_a_text_streams_with_its_numbers(page, server):
    page.page.evaluate(WATCH)
    page.generate(PROMPT, max_tokens=200)
    page.see("#status", "Ended at the most tokens that were asked for: 200 tokens written.")
    expected = server.complete(PROMPT, max_tokens=200)
    assert page.text_of("#written") == expected
    lengths = page.page.evaluate("lengths")
    assert lengths == sorted(lengths)
    assert set(lengths) - {0, len(expected)}  # it was seen before it was whole
    assert page.text_of("#tokens") == str(1 + len(PROMPT) + 200)
    assert page.text_of("#first").endswith("s")
    assert float(page.text_of("#rate").replace(",", "")) > 1
    stated = server.http.get("/v1/models").json()["data"][0]
    assert stated["state_bytes_per_token"] == 0
    assert page.text_of("#own .size") == f"{stated['state_bytes'] / 1000:.3g} kB, constant"
    assert page.text_of("#softmax .size") == f"{512 * (1 + len(PROMPT) + 200) / 1000:.3g} kB, + 512 B a token"
    page.press("Go on")  # behind the text so far, as one
    page.see("#tokens", str(1 + len(PROMPT) + 400))


def test_stop_frees_the_slot(page, server):
    page.generate(PROMPT, max_tokens=2000)
    page.see("#status", "Writing")
    assert server.worker.stats().running == 1
    page.page.keyboard.press("Enter")  # Stop has the focus
    page.see("#status", "Stopped")
    assert server.rests(2)
    assert page.text_of("#error") == ""
    made = int(page.text_of("#status").split()[1].replace(",", ""))
    assert 0 < made < 2000
    assert page.text_of("#written") == server.complete(PROMPT, max_tokens=made)
    page.save("half")  # the state behind what was written until then
    assert server.http.get("/v1/states/half").json()["tokens"] > 1 + len(PROMPT)
    page.field("Text").press("Control+Enter")
    page.see("#status", "Writing")
    page.page.keyboard.press("Escape")
    page.see("#status", "Stopped")


def test_states_are_saved_listed_forked_gone_on_from_and_deleted(page, server):
    page.field("Save the state behind this text as").fill("april")
    page.generate(PROMPT)
    page.see("#status", "Saved as april: 64 tokens in")  # the one that opens a text too
    assert page.states() == ["april"]
    page.press("Fork: april")
    page.field("Name of the copy").fill("may")
    page.page.keyboard.press("Enter")
    page.see("#status", "april is copied to may.")
    assert page.states() == ["april", "may"]
    page.press("Delete: april")
    page.page.keyboard.press("Escape")  # thinks better of it
    assert page.states() == ["april", "may"]
    page.press("Delete: april")
    page.page.locator("#ask").get_by_role("button", name="Delete").click()
    page.see("#status", "april is deleted.")
    assert page.states() == ["may"]
    page.press("Go on from this: may")
    assert page.field("Text").first.input_value() == ""
    page.press("Generate")
    page.see("#status", "30 tokens written")
    assert page.text_of("#tokens") == str(64 + 30)
    expected = server.post("/v1/completions", state="may", max_tokens=30, temperature=0).json()["choices"][0]["text"]
    assert page.text_of("#written") == expected
    page.save("june")
    assert page.states() == ["june", "may"]
    assert server.http.get("/v1/states/june").json()["tokens"] == 64 + 30
    server.http.delete("/v1/states/may")
    page.press("Go on")
    page.see("#error", "may")


def test_a_long_text_is_read_into_a_state(page, server):
    page.page.locator("#reader summary").click()
    page.field("Name of the state").fill("long")
    page.page.locator("#read-file").set_input_files(
        {"name": "a.txt", "mimeType": "text/plain", "buffer": b"abc \xc3\xa4" * 400}
    )
    page.press("Read")
    page.see("#read-status", "Read as long: 2,401 tokens")
    assert page.states() == ["long"]
    page.field("Name of the state").fill("longer")
    page.page.locator("#read-file").set_input_files({"name": "a.bin", "mimeType": "text/plain", "buffer": b"\xff"})
    page.press("Read")
    page.see("#error", "a.bin: cannot be read as UTF-8")
    page.page.locator("#read-file").set_input_files([])
    page.page.locator("#read-text").fill("x" * 4000)
    page.press("Read")
    page.see("#error", "4001 tokens; this server takes at most 3000")
    page.page.locator("#read-text").fill("x" * 1_000_000)
    page.press("Read")
    page.see("#error", "the request is larger than 100000 bytes")
    assert page.states() == ["long"]


def test_what_the_server_refuses_is_said(page, server):
    page.generate(PROMPT)
    page.see("#status", "30 tokens written")
    written = page.text_of("#written")
    page.generate("Another", temperature=-1)
    page.see("#error", "temperature = -1")
    assert page.text_of("#status") == "Nothing new was written."
    assert (page.text_of("#given"), page.text_of("#written")) == (PROMPT, written)  # what was there stays
    page.generate(PROMPT)
    page.see("#status", "30 tokens written")
    assert not page.page.locator("#error").is_visible()
    page.save("taken")
    page.field("Save the state behind this text as").fill("taken")
    page.press("Save")
    page.see("#error", "state 'taken': there already")
    page.page.evaluate("sessionStorage.setItem('linscale-key', 'wrong')")
    page.press("Generate")
    page.see("#error", "this key is not known")
    page.field("This server wants a key").fill(KEY)
    page.press("Use it")
    playwright.expect(page.page.locator("#key")).to_be_hidden()
    page.page.route("**/v1/completions", lambda route: route.abort())
    page.press("Generate")
    page.see("#error", "The server does not answer")
    page.page.unroute("**/v1/completions")
    page.said.clear()  # Chromium's own word on the connection


def test_a_text_is_only_ever_text(page, server):
    def answer(route):
        usage = {"completion_tokens": 1, "total_tokens": 2}
        chunk = {"choices": [{"index": 0, "text": HOSTILE, "finish_reason": "stop"}], "usage": usage}
        route.fulfill(
            body=f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n", headers={"Content-Type": "text/event-stream"}
        )

    page.page.route("**/v1/completions", answer)
    page.generate(HOSTILE)
    page.see("#status", "Ended by itself")
    page.page.unroute("**/v1/completions")
    assert page.text_of("#given") == page.text_of("#written") == HOSTILE
    assert page.page.evaluate("document.querySelectorAll('#text *').length") == 3
    assert page.page.evaluate("document.images.length + document.scripts.length") == 1
    refused = "try { document.body.innerHTML = '<b>'; 'done' } catch (error) { error.name }"
    assert page.page.evaluate(refused) == "TypeError"  # the page's policy
    page.said.clear()  # where Chromium reports it


def test_it_is_accessible_in_both_schemes_and_fits_a_phone(page):
    page.generate(PROMPT)
    page.save(LONG)
    page.page.locator("#reader summary").click()
    page.page.evaluate("attempt(() => { throw new Error('wrong') })")
    for scheme, rules in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):  # dark differs in colours alone
        page.page.emulate_media(color_scheme=scheme)
        results = axe.Axe().run(page.page, options=rules)
        found = [(each["id"], each["nodes"][0]["html"][:200]) for each in results.response["violations"]]
        assert found == [], scheme
        assert results.response["passes"]
    page.press(f"Fork: {LONG}")
    assert axe.Axe().run(page.page).response["violations"] == []
    page.page.keyboard.press("Escape")
    page.page.set_viewport_size({"width": 360, "height": 740})
    assert page.page.evaluate("document.documentElement.scrollWidth") == 360
    page.page.set_viewport_size({"width": 1180, "height": 900})
