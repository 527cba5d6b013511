"""Looks at every page of the built site in a headless browser, wide and narrow, light and dark.

    mkdocs build --strict --site-dir SITE && python tests/benchmarks/pages.py SITE [--pictures DIR]

It fails on a page that is wider than its window, a code block that is cut on a wide screen, a picture that is not
there, an error on the console, and text whose contrast is below 4.5 (3 where it is large), as WCAG 2 AA asks. Needs a
Chromium and the package playwright; without them it says so and ends with status 3.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WINDOWS = {"wide": (1440, 900), "narrow": (390, 844)}
SCHEMES = ("default", "slate")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
MISSING = 3

LOOK = """
(wide) => {
  const found = [];
  const root = document.scrollingElement;
  if (root.scrollWidth > root.clientWidth + 1)
    found.push(`the page is ${root.scrollWidth} px wide in a window of ${root.clientWidth}`);
  for (const image of document.images)
    if (!(image.complete && image.naturalWidth)) found.push(`no picture ${image.getAttribute('src')}`);
  if (wide)
    for (const code of document.querySelectorAll('.md-content pre > code'))
      if (code.checkVisibility() && code.scrollWidth > code.clientWidth + 1) {
        const longest = code.innerText.split('\\n').reduce((a, b) => a.length > b.length ? a : b);
        found.push(`code is cut (${longest.length} characters): ${longest.trim().slice(0, 50)}`);
      }
  const parts = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = (rgb) => {
    const [r, g, b] = rgb.map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const over = (top, under) => { const a = top[3] ?? 1; return [0, 1, 2].map(i => a * top[i] + (1 - a) * under[i]); };
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(parts(getComputedStyle(e).backgroundColor));
    return layers.reverse().filter(c => c.length > 2).reduce((under, c) => over(c, under), [255, 255, 255]);
  };
  const seen = new Set();
  for (const element of document.querySelectorAll('.md-content *')) {
    const words = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    const style = getComputedStyle(element);
    const shown = style.visibility !== 'hidden' && element.checkVisibility() && !element.closest('.headerlink');
    if (!words || !shown) continue;
    const ground = behind(element), ink = over(parts(style.color), ground);
    const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.7 && +style.fontWeight >= 700);
    const ratio = (a + .05) / (b + .05), key = `${element.tagName}.${element.className}`;
    if (ratio < (large ? 3 : 4.5) && !seen.has(key)) {
      seen.add(key);
      found.push(`contrast ${ratio.toFixed(2)} of <${key}> ${element.textContent.trim().slice(0, 30)}`);
    }
  }
  return found;
}
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder; yield its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()


def addresses(site: Path) -> list[str]:
    """Return the paths of all pages of a site."""
    pages = sorted(site.rglob("index.html"))
    return [f"/{page.parent.relative_to(site).as_posix()}/".replace("/./", "/") for page in pages]


def look(context: Any, address: str, window: str, scheme: str, picture: Path | None) -> list[str]:
    """Return what is wrong with one page in one window and scheme."""
    page, errors = context.new_page(), []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address, wait_until="load")
    page.add_style_tag(content="* { transition: none !important; animation: none !important }")
    page.evaluate("(scheme) => document.body.setAttribute('data-md-color-scheme', scheme)", scheme)
    page.evaluate(
        "() => Promise.all([...document.images].map(i => { i.loading = 'eager'; return i.decode().catch(() => 0); }))"
    )
    page.wait_for_timeout(100)
    found = page.evaluate(LOOK, window == "wide")
    if picture is not None:
        page.screenshot(path=picture)
    page.close()
    return [*found, *(f"console: {error}" for error in errors)]


def main() -> int:
    """Look at all pages; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path, help="folder that mkdocs built")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="keep a picture of the first screen of every page")
    parser.add_argument("--only", default="", metavar="TEXT", help="pages whose address has this text")
    arguments = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        browser = None
    if browser is None:
        print("pages were not looked at: that needs a Chromium and the package playwright")
        return MISSING
    wrong = 0
    with served(arguments.site) as root, sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for window, (width, height) in WINDOWS.items():
            context = running.new_context(viewport={"width": width, "height": height})
            for path in (each for each in addresses(arguments.site) if arguments.only in each):
                for scheme in SCHEMES:
                    picture = (
                        arguments.pictures
                        and arguments.pictures / f"{path.strip('/').replace('/', '-')}-{window}-{scheme}.png"
                    )
                    for fault in look(context, root + path, window, scheme, picture):
                        wrong += 1
                        print(f"{path} {window} {scheme}: {fault}", flush=True)
        running.close()
    print(f"{wrong} faults")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
