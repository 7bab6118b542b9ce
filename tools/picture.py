"""nbs/images/explorer.jpg, the picture in README.md: a click on a car in the page that nbs/tutorials/similarity_tour.ipynb saves. Run that notebook first."""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE / "tests"))
from conftest import CHROMIUM, FLAGS  # noqa: E402

TOUR = HERE / "nbs/tutorials/runs/similarity_tour/tour.html"
CLOSER = "() => { const e = document.querySelector('.xm-explorer').explorer; e.cloud.view = { ...e.cloud.view, target: [8, -1, -1], distance: 20 }; e.refresh(); }"

with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=next(filter(None, map(shutil.which, CHROMIUM))), args=list(FLAGS))
    page = browser.new_page(viewport={"width": 1320, "height": 625}, device_scale_factor=1.5)
    page.goto(TOUR.as_uri())
    page.wait_for_selector("[data-shown]")
    page.locator("[data-control=clear]").click()
    page.locator("[data-control=camera]").select_option("all")
    page.locator("canvas.xm-image").nth(1).wait_for()
    page.evaluate(CLOSER)
    box = page.locator("canvas.xm-image").first.bounding_box()
    page.mouse.click(box["x"] + 0.78 * box["width"], box["y"] + 0.6 * box["height"])
    page.wait_for_timeout(2000)
    shot = Image.open(io.BytesIO(page.locator(".xm-explorer").screenshot()))
    shot.convert("RGB").save(HERE / "nbs/images/explorer.jpg", quality=82, optimize=True)
    browser.close()
