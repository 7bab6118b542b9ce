"""The explorer as a page of its own, without a network: what its canvases show is compared with labels, closed forms and float64."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("open3d", reason="the street world is rendered with Open3D")
pytest.importorskip("matplotlib", reason="the colour maps come from it: pip install -e '.[lab]'")

from known_world import SIZE, Frames, halves, knowing, squares, with_points  # noqa: E402
from on_screen import (  # noqa: E402
    AMBER, BUILDING, CAR, CLASSES, COLOURS, CYAN, FIXED, HIGH, INT8, LOW, ROAD, STREET,
    click, click_point, decoded, drawn, hover, inside, is_drawn, lit, middle, of_cell, of_points, picture, scene, share, similarities, state, tell,
)  # fmt: skip

from xmodal.features import Features  # noqa: E402
from xmodal.projection import visible  # noqa: E402
from xmodal.viz.report import Section, write_report  # noqa: E402
from xmodal.viz.tour import Tour, View, code, save_page  # noqa: E402


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    "A saved page of the street as two networks see it."
    path = tmp_path_factory.mktemp("pages") / "tour.html"
    return save_page(path, Tour(STREET, {"classes": knowing, "halves": halves}, squares), View(**FIXED), frames=[0, 2])


@pytest.fixture
def explore(new_page):
    "`explore(path, **options)` opens a saved page with the network off and returns its explorer."

    def open_one(path, before="", **options):
        page = new_page(**{"offline": True, "viewport": {"width": 1200, "height": 860}} | options)
        page.add_init_script(before)
        page.goto(path.as_uri())
        page.wait_for_selector("[data-shown]")
        return page.locator(".xm-explorer")

    return open_one


# --- questions ---


def test_a_click_on_a_car_lights_up_the_cars(explore, tour):
    root = explore(tour)
    assert share(of_points(root, scene(0).semantic == CAR), HIGH) < 0.2  # before the click
    click(root, *middle(CAR))
    assert lit(root)
    click(root, *middle(ROAD))
    assert lit(root, label=ROAD)


def test_a_click_on_a_point_makes_the_image_a_heat_map(explore, tour):
    root, semantic = explore(tour), scene(0).semantic
    click_point(root, CAR)
    (pinned,) = tell(root, "({ model }) => model.get('queries')")
    assert semantic[pinned["point"]] == CAR and pinned["kind"] == "point"
    assert lit(root)
    image = scene(0).cameras[0].image / 255
    for label, level, end in ((CAR, 255, HIGH), (ROAD, 0, LOW)):
        pixels = inside(label)
        grey = 0.5 * 255 * image[tuple(pixels.T)] @ [0.299, 0.587, 0.114]
        alpha = (20 + 0.86 * level) / 255  # heat covers more where it is more
        wanted = (1 - alpha) * grey[:, None] + alpha * np.array(end)
        off = np.abs(picture(root)[tuple(pixels.T)] - wanted)
        assert np.median(off) < 3 and np.quantile(off, 0.95) < 16, (CLASSES[label], np.median(off))  # the page holds the image as WebP, which loses a little


def test_hovering_asks_and_leaves_no_pin(explore, tour):
    root, frame, features = explore(tour), scene(0), knowing(scene(0))
    u, v = middle(CAR)
    hover(root, u, v)
    assert lit(root)
    assert root.locator(".xm-pins button").count() == 0 and tell(root, "({ model }) => model.get('queries')") == []
    found = tell(root, "({ sides }) => [...sides[0].answers[0].points]")
    assert np.abs(found - similarities(frame, features, of_cell(features, u, v))).max() < INT8
    hover(root, *middle(ROAD))
    assert lit(root, label=ROAD)


def test_the_read_out_says_what_is_under_the_pointer(explore, tour):
    root, frame, features = explore(tour), scene(0), knowing(scene(0))
    asked = middle(CAR)
    click(root, *asked)
    assert tell(root, "({ model }) => model.get('queries').map(({ u, v }) => [u, v])") == [list(asked)]
    uv, depth = frame.project(0)
    seen = np.flatnonzero(visible(uv, depth, SIZE))
    for label in (CAR, ROAD, BUILDING):
        u, v = middle(label)
        row = seen[np.linalg.norm(uv[seen] - (u, v), axis=1).argmin()]
        hover(root, u, v)
        text = tell(root, "({ reading }) => reading.textContent")
        told, position, distance, name, similarity = text.split("  ·  ")
        xyz = [float(number) for number in re.findall(r"-?\d+\.\d", position)]
        assert told == f"image_02 ({u}, {v})"
        assert np.abs(frame.points[row] - xyz).max() <= 0.051, text
        assert abs(float(distance.split()[1]) - np.linalg.norm(frame.points[row])) <= 0.051
        assert name == CLASSES[frame.semantic[row]]
        a, b = of_cell(features, *asked), of_cell(features, u, v)
        assert abs(float(similarity.split()[1]) - 0.5 - 0.5 * (a @ b) / np.linalg.norm(a) / np.linalg.norm(b)) < INT8 + 0.0005


def test_colours_end_at_quantiles_of_all_similarities(explore, tour):
    root, features = explore(tour), knowing(scene(0))
    u, v = middle(ROAD)
    click(root, u, v)
    root.locator("[data-control=auto_range]").click()
    drawn(root)
    direction = of_cell(features, u, v)
    means = [pixels.double().reshape(16, 48, 2, 160, 2).mean((2, 4)).reshape(16, -1).T.numpy() for pixels in features.pixels]
    found = np.concatenate([0.5 + 0.5 * (cells @ direction) / np.linalg.norm(cells, axis=1) / np.linalg.norm(direction) for cells in (features.points.double().numpy(), *means)])
    shown = [float(number) for number in re.findall(r"\d\.\d\d", tell(root, "({ legend }) => legend.textContent"))]
    np.testing.assert_allclose(shown, np.quantile(found, [0.3, 0.999]), atol=0.005 + INT8)


def test_a_pin_stays_while_the_frame_changes(explore, tour):
    root = explore(tour)
    click(root, *middle(CAR))
    pins = tell(root, "({ model }) => model.get('queries')")
    root.locator("[data-control=ahead]").click()
    root.page.wait_for_selector("[data-shown='1']")
    assert lit(root, frame=2)
    hover(root, *middle(ROAD, frame=2))  # no question while one is pinned
    assert lit(root, frame=2)
    assert tell(root, "({ model }) => model.get('queries')") == pins
    assert "frame 1" in root.locator(".xm-pins").inner_text()


def test_two_pins_have_two_colours(explore, tour):
    root, semantic = explore(tour), scene(0).semantic
    click(root, *middle(CAR))
    click(root, *middle(ROAD), modifiers=["Shift"])
    pins = root.locator(".xm-pins button")
    assert pins.count() == 2
    assert share(of_points(root, semantic == CAR), CYAN) > 0.97
    assert share(of_points(root, semantic == ROAD), AMBER) > 0.97
    assert [pins.nth(k).evaluate("pin => getComputedStyle(pin).borderColor") for k in (0, 1)] == [f"rgb{CYAN}", f"rgb{AMBER}"]
    pins.first.click()
    drawn(root)
    assert pins.count() == 1 and lit(root, label=ROAD)
    click(root, *middle(CAR))  # without Shift: instead of it
    assert pins.count() == 1 and lit(root)


def test_a_and_b_are_asked_the_same(explore, tour):
    root, right = explore(tour), scene(0).points[:, 1] < 0
    u, v = middle(CAR)
    click(root, u, v)
    root.locator("[data-control=b]").select_option("halves")
    root.page.wait_for_selector(".xm-pair")
    asked = right if u >= SIZE[1] / 2 else ~right

    def is_of_halves(side):
        return share(of_points(root, asked, side), HIGH) > 0.97 and share(of_points(root, ~asked, side), LOW) > 0.97

    assert lit(root, side=0) and is_of_halves(1)
    assert root.locator("figcaption").all_inner_texts() == ["image_02, classes", "image_02, halves"]
    root.locator("canvas.xm-image").first.focus()
    root.page.keyboard.press("x")
    root.page.wait_for_function("document.querySelector('figcaption').textContent === 'image_02, halves'")
    assert lit(root, side=1) and is_of_halves(0)


def test_regions_have_one_colour_each(explore, tour):
    root, frame = explore(tour), scene(0)
    root.locator("[data-control=regions]").click()
    root.locator("[data-control=auto_range]").click()  # so that few answers are beyond the ends
    click(root, *middle(CAR))
    uv, depth = frame.project(0)
    seen = np.flatnonzero(visible(uv, depth, SIZE))
    col, row = np.rint(uv[seen]).astype(int).T
    ids = squares(frame.cameras[0].image)[row, col]
    of_row = dict(zip(seen.tolist(), ids.tolist()))
    colours = {}
    for k, colour in tell(root, COLOURS, [seen.tolist(), 0]):
        colours.setdefault(of_row[k], []).append(tuple(colour))
    common = {region: max(set(found), key=found.count) for region, found in colours.items() if len(found) > 5}
    assert len(common) > 8 and len(set(common.values())) > 4  # not all the same either
    assert np.mean([colour == common[region] for region in common for colour in colours[region]]) > 0.95
    asked = squares(frame.cameras[0].image)[middle(CAR)[::-1]]
    assert sum(common[asked]) == max(map(sum, common.values()))


def test_boundaries_are_drawn_where_superpixels_end(explore, tour):
    root = explore(tour)
    before = picture(root)
    root.locator("[data-control=show_boundaries]").click()
    drawn(root)
    v, u = np.indices(SIZE)
    np.testing.assert_array_equal((picture(root) != before).any(2), ((v % 24 == 23) & (v < SIZE[0] - 1)) | ((u % 32 == 31) & (u < SIZE[1] - 1)))


# --- the keyboard ---


def view(root):
    return tell(root, "({ cloud }) => cloud.view")

FOCUSED = """(root) => {  // what has the focus, and whether that can be seen
  const { activeElement: element } = document;
  if (!root.contains(element)) return [null, false];
  const { outlineStyle, outlineWidth } = getComputedStyle(element);
  const [, overlay] = element.querySelectorAll("canvas");  // the cloud draws its frame itself
  const rim = overlay && [...overlay.getContext("2d").getImageData(1, 1, 1, 1).data];
  return [element.dataset.control ?? element.className, rim ? rim.join() === "53,224,255,255" : outlineStyle !== "none" && parseFloat(outlineWidth) >= 2];
}"""


@pytest.fixture
def press(explore, tour):
    "`press(key, ...)` on the explorer's page, which it has as `press.root`."
    root = explore(tour)

    def one(*keys):
        for key in keys:
            root.page.keyboard.press(key)
        drawn(root)

    one.root = root
    return one


def test_tab_reaches_everything_and_shows_where_it_is(press):
    click(press.root, *middle(CAR))  # so that there is a pin to remove
    press.root.evaluate("() => document.activeElement.blur()")
    controls = set(press.root.locator("[data-control]").evaluate_all("all => all.map(({ dataset }) => dataset.control)"))
    reached = []
    for _ in range(len(controls) + 6):
        press("Tab")
        name, visible_focus = press.root.evaluate(FOCUSED)
        assert visible_focus or name is None, name
        reached.append(name)
        if name == "":  # the pin has neither name nor class
            press("Enter")
    assert controls | {"xm-image", "xm-cloud", ""} <= set(reached)
    assert len(controls) == 22
    assert state(press.root, "queries") == []


def test_controls_obey_the_keyboard(press):
    steps = dict(frame=1, low=0.01, high=0.01, threshold=0.01, point_size=0.5, opacity=-0.05)
    chosen = dict(camera="image_03", a="halves", b="classes", color_by="height", color_map="viridis")
    flipped = "auto_range show_points show_boundaries regions playing".split()
    for name in [*steps, *chosen, *flipped]:
        press.root.locator(f"[data-control={name}]").focus()
        before = state(press.root, name)
        press("Enter" if name in flipped else "ArrowDown" if name in chosen else "ArrowLeft" if name == "opacity" else "ArrowRight")
        wanted = chosen[name] if name in chosen else not before if name in flipped else pytest.approx(before + steps[name])
        assert state(press.root, name) == wanted, name
    press(" ")  # on a button: that button, once
    assert not state(press.root, "playing")


def test_every_key_of_the_list(press):
    root, page = press.root, press.root.page
    press("?")  # without a click first
    text = root.locator(".xm-help").inner_text()
    assert root.locator(".xm-help").is_visible() and all(key in text for key in ("Esc, Backspace", "Space", ", and .", "1 to 7", "M, C, X", "P, S, R", "E, F, ?"))
    press("Escape")
    assert not root.locator(".xm-help").is_visible()
    for number, by in enumerate(("similarity", "height", "range", "intensity", "label", "pca", "camera"), 1):
        press(str(number))
        assert state(root, "color_by") == by
    for key, name, values in (
        ("m", "color_map", ["viridis", "cividis", "magma"]), ("c", "camera", ["image_03", "all", "image_02"]), ("p", "show_points", [True, False]),
        ("s", "show_boundaries", [True, False]), ("r", "regions", [True, False]),
    ):  # fmt: skip
        for value in values:
            press(key)
            assert state(root, name) == value, key
    for key, frame in ((".", 1), (".", 0), (",", 1), (",", 0)):
        press(key)
        page.wait_for_selector(f"[data-shown='{frame}']")
    press(" ")
    page.wait_for_selector("[data-shown='1']")  # it plays
    press(" ")
    assert not state(root, "playing")
    press("f")
    page.wait_for_function("document.fullscreenElement?.className === 'xm-explorer'")
    press("f")
    page.wait_for_function("!document.fullscreenElement")
    with page.expect_download() as download:
        press("e")
    assert download.value.suggested_filename == f"{STREET.ids[2]}.png".replace("/", "_")


def test_keys_on_an_image(press):
    root = press.root
    root.locator("canvas.xm-image").first.focus()
    press("ArrowRight", "ArrowDown", "Shift+ArrowLeft")  # from the middle: a hundredth of the width, as much, one pixel
    u, v = SIZE[1] // 2 + 3 - 1, SIZE[0] // 2 + 3
    assert f"({u}, {v})" in root.locator(".xm-reading").inner_text() and state(root, "queries") == []
    press("Enter", "ArrowUp", "Shift+Enter")
    assert [(query["kind"], query["u"], query["v"]) for query in state(root, "queries")] == [("pixel", u, v), ("pixel", u, v - 3)]
    press("Backspace")
    assert [query["v"] for query in state(root, "queries")] == [v]
    press("Escape")
    assert state(root, "queries") == [] and root.locator(".xm-pins button").count() == 0


def test_keys_and_mouse_on_the_cloud(press):
    root, page = press.root, press.root.page
    cloud = root.locator(".xm-cloud")
    cloud.focus()
    began = view(root)
    press("ArrowRight", "ArrowRight", "ArrowUp")
    turned = view(root)
    assert turned["target"] == began["target"] and abs(np.sin(turned["azimuth"] - began["azimuth"])) == pytest.approx(np.sin(0.16)) and turned["elevation"] != began["elevation"]
    press("+")
    assert view(root)["distance"] == pytest.approx(turned["distance"] / 1.2)
    press("-", "Shift+ArrowLeft")
    assert view(root)["distance"] == pytest.approx(turned["distance"]) and view(root)["target"] != turned["target"]
    press("Home")
    assert view(root) == began
    press("Enter")
    (pinned,) = state(root, "queries")
    nearest = """({ cloud, scene }) => {
      const away = (at) => (at ? Math.hypot(at[0] - cloud.width / 2, at[1] - cloud.height / 2) : Infinity);
      const all = Array.from({ length: scene.count }, (_, row) => away(cloud.locate(row)));
      return [Math.min(...all), all];
    }"""
    least, distances = tell(root, nearest)
    assert distances[pinned["point"]] == pytest.approx(least, abs=0.01)
    box = cloud.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for button, kept in (("left", "target"), ("right", "azimuth")):  # turns; moves
        press("Home")
        page.mouse.move(x, y)
        page.mouse.down(button=button)
        page.mouse.move(x + 60, y + 10, steps=3)
        page.mouse.up(button=button)
        assert view(root)[kept] == began[kept] and view(root) != began
    page.mouse.wheel(0, -200)
    page.wait_for_timeout(50)
    assert view(root)["distance"] < began["distance"]
    assert state(root, "queries") == [pinned]  # a drag is no click


# --- the window ---

LAYOUT = """(root) => {  // rectangles by name, those that overlap, those that leave the explorer or cut off what is in them
  const all = [...root.querySelectorAll(".xm-bar > *, .xm-images, .xm-cloud, .xm-foot > *")].filter((part) => part.offsetWidth && part.offsetHeight);
  const boxes = all.map((part) => part.getBoundingClientRect());
  const name = (k) => all[k].className || all[k].textContent;
  const apart = (a, b) => a.right <= b.left + 0.5 || b.right <= a.left + 0.5 || a.bottom <= b.top + 0.5 || b.bottom <= a.top + 0.5;
  const outer = root.getBoundingClientRect();
  const faults = [];
  boxes.forEach((a, i) => {
    if (a.left < outer.left - 0.5 || a.right > outer.right + 0.5 || a.bottom > outer.bottom + 0.5) faults.push(`${name(i)} leaves the explorer`);
    if (all[i].scrollWidth > all[i].clientWidth + 1 && all[i].clientWidth) faults.push(`${name(i)} is cut off`);
    boxes.slice(i + 1).forEach((b, k) => { if (!apart(a, b)) faults.push(`${name(i)} and ${name(i + 1 + k)} overlap`); });
  });
  return { faults, boxes: boxes.map(({ x, y, width, height }) => [x, y, width, height]), page: [document.documentElement.scrollWidth, innerWidth] };
}"""


def test_nothing_overlaps_or_jumps_when_the_window_is_resized(explore, tour):
    root = explore(tour)
    click(root, *middle(CAR))
    click(root, *middle(ROAD), modifiers=["Shift"])
    root.page.mouse.move(0, 0)
    tell(root, "({ cloud }) => { cloud.view = { azimuth: 2.5, distance: 25 }; }")
    drawn(root)
    pins, seen, began, shot = state(root, "queries"), view(root), root.evaluate(LAYOUT), root.page.screenshot()
    for width in (1600, 900, 700, 400, 1200):
        root.page.set_viewport_size({"width": width, "height": 860})
        drawn(root)
        layout = root.evaluate(LAYOUT)
        assert layout["faults"] == [] and layout["page"][0] <= layout["page"][1], width
        assert state(root, "queries") == pins and view(root) == seen
        images, cloud = (root.locator(f".{name}").first.bounding_box() for name in ("xm-images", "xm-cloud"))
        stacked = cloud["y"] >= images["y"] + images["height"]
        assert stacked == (width <= 720), width
        assert tell(root, "({ cloud }) => [cloud.canvas.width, cloud.canvas.clientWidth]") == [pytest.approx(cloud["width"], abs=1)] * 2
    assert layout["boxes"] == began["boxes"]
    np.testing.assert_array_equal(decoded(root.page.screenshot()), decoded(shot))


def test_hovering_moves_nothing(explore, tour):
    root = explore(tour)
    before = [root.locator(name).first.bounding_box() for name in (".xm-body", ".xm-foot")]
    for label in (CAR, ROAD, BUILDING):
        hover(root, *middle(label))
        assert [root.locator(name).first.bounding_box() for name in (".xm-body", ".xm-foot")] == before


# --- faults ---


def page_of(path, frames, network=knowing, superpixels=None, **settings):
    networks = {"network": network} if network else {}
    return save_page(path / "page.html", Tour(Frames(*frames, classes=CLASSES), networks, superpixels, **settings), View(**FIXED))


def notes(root):
    return root.locator(".xm-notes").inner_text()


def test_an_empty_cloud(explore, tmp_path):
    root = explore(page_of(tmp_path, [with_points(scene(0), np.arange(0))], network=None))
    assert "the cloud is empty" in notes(root)
    assert is_drawn(picture(root))
    click(root, *middle(CAR))


def test_a_single_point(explore, tmp_path):
    row = np.flatnonzero(scene(0).semantic == CAR)[:1]
    root = explore(page_of(tmp_path, [with_points(scene(0), row)]))
    assert "PCA colours are grey" in notes(root)
    click(root, *middle(CAR))
    ((_, colour),) = tell(root, COLOURS, [[0], 0])
    assert np.abs(np.subtract(colour, HIGH)).max() <= 2
    click(root, *middle(ROAD))
    ((_, colour),) = tell(root, COLOURS, [[0], 0])
    assert np.abs(np.subtract(colour, LOW)).max() <= 2


def test_a_million_points(explore, tmp_path):
    one = replace(scene(0), cameras=scene(0).cameras[:1])
    many = with_points(one, np.arange(1_000_000) % len(one.points))
    root = explore(page_of(tmp_path, [many], lambda frame: knowing(frame, noise=0)))
    assert "150,000 of 1,000,000 points are shown (an even random part)" in notes(root)
    click(root, *middle(CAR))
    kept = np.array(tell(root, "({ scene }) => [...scene.rows]"))
    shown = {row: many.semantic[kept[row]] == CAR for row in range(0, 150_000, 300)}
    colours = tell(root, COLOURS, [list(shown), 0])
    assert np.mean([np.abs(np.subtract(colour, HIGH if shown[row] else LOW)).max() <= 2 for row, colour in colours]) > 0.97
    root.locator(".xm-cloud").focus()
    root.page.keyboard.press("Enter")
    drawn(root)
    (pinned,) = state(root, "queries")
    assert pinned["point"] in kept  # a row of the whole cloud
    assert f"point {pinned['point']}" in root.locator(".xm-pins").inner_text()


def test_images_that_no_point_falls_into(explore, tmp_path):
    behind = np.flatnonzero(scene(0).points[:, 0] < -1)
    root = explore(page_of(tmp_path, [with_points(scene(0), behind)]))
    assert "no point falls into image_02, image_03: check the calibration" in notes(root)
    assert is_drawn(picture(root))
    hover(root, *middle(CAR))
    assert "similarity 1.000" in root.locator(".xm-reading").inner_text()


def test_features_that_are_not_numbers(explore, tmp_path):
    def broken(frame):
        features = knowing(frame)
        features.points[frame.semantic == CAR] = float("nan")
        features.pixels[0][:, : SIZE[0] // 2] = float("nan")
        return features

    root = explore(page_of(tmp_path, [scene(0)], broken))
    cars = (scene(0).semantic == CAR).sum()
    assert f"no similarity for {cars} of {len(scene(0).points):,} points" in notes(root)
    assert "cells of image_02" in notes(root)
    click(root, *middle(ROAD))
    assert share(of_points(root, scene(0).semantic == CAR), (74, 82, 92)) > 0.97  # grey, not one end of the colours
    assert share(of_points(root, scene(0).semantic == ROAD), HIGH) > 0.97
    hover(root, 100, 10)
    assert root.locator(".xm-reading").inner_text().endswith("similarity none")
    click(root, 100, 10)  # a question without a direction: nothing is coloured, nothing breaks
    assert is_drawn(picture(root))


def test_features_that_do_not_fit_make_no_page(tmp_path):
    with pytest.raises(ValueError, match=r"point features have 16 dimensions, pixel features \[8, 8\]; take both from one checkpoint"):
        page_of(tmp_path, [scene(0)], lambda frame: replace(knowing(frame), pixels=[pixels[:8] for pixels in knowing(frame).pixels]))
    assert not any(tmp_path.iterdir())


def test_without_a_network_there_is_still_a_scene(explore, tmp_path):
    root = explore(page_of(tmp_path, [scene(0)], network=None))
    assert root.locator("[data-control=a], [data-control=b]").count() == 0
    assert is_drawn(picture(root))
    root.locator("[data-control=color_by]").select_option("label")
    drawn(root)
    assert len({tuple(colour) for _, colour in of_points(root, scene(0).semantic > 0)}) > 4
    assert "building" in root.locator(".xm-legend").inner_text()
    root.locator("[data-control=color_by]").select_option("pca")
    drawn(root)
    assert "this frame has no features, coloured by height" in root.locator(".xm-legend").inner_text()
    assert root.locator("[data-control=regions]").is_disabled()  # neither are there superpixels


def test_without_a_camera_there_is_still_a_cloud(explore, tmp_path):
    root = explore(page_of(tmp_path, [replace(scene(0), cameras=[])]))
    assert "this frame has no camera image: only the cloud is shown" in notes(root)
    assert root.locator(".xm-cloud").bounding_box()["width"] == pytest.approx(root.bounding_box()["width"], abs=0.5)
    click_point(root, CAR)
    root.page.keyboard.press("c")  # the next camera: there is none
    drawn(root)
    assert lit(root)
    with root.page.expect_download():
        root.locator("[data-control=png]").click()


def test_without_webgl_the_images_still_answer(explore, tour):
    root = explore(
        tour,
        "const get = HTMLCanvasElement.prototype.getContext;"
        "HTMLCanvasElement.prototype.getContext = function (kind, ...more) { return kind === 'webgl2' ? null : get.call(this, kind, ...more); };",
    )
    assert "needs WebGL2, which this browser does not offer here" in root.locator(".xm-cloud").inner_text()
    before = picture(root)
    click(root, *middle(CAR))
    car, road = (picture(root)[tuple(inside(label).T)].mean() for label in (CAR, ROAD))
    assert is_drawn(before) and car > road + 80
    root.locator("[data-control=ahead]").click()
    root.page.wait_for_selector("[data-shown='1']")


# --- files ---


def test_the_picture_that_is_saved(explore, tour):
    root = explore(tour)
    click(root, *middle(CAR))
    root.page.mouse.move(0, 0)
    with root.page.expect_download() as download:
        root.locator("[data-control=png]").click()
    saved = np.asarray(Image.open(download.value.path()).convert("RGB"))
    across, down = tell(root, "({ cloud: { canvas } }) => [canvas.width, canvas.height]")
    width = max(across, SIZE[1])
    above = width * SIZE[0] // SIZE[1]
    assert abs(len(saved) - (above + down * width / across)) <= 1 and saved.shape[1] == width
    shown = np.asarray(Image.fromarray(picture(root)).resize((width, above), Image.Resampling.BILINEAR), float)
    assert np.abs(saved[:above] - shown).mean() < 4  # the heat map is in it
    assert (np.abs(saved[above + 1 :].astype(int) - HIGH).max(2) <= 2).sum() > 50  # and the cars in the cloud


def test_a_large_frame_fits_into_25_megabytes(explore, tmp_path):
    frame = scene(0)
    size = (376, 1241)  # KITTI's
    cameras = [replace(camera, image=np.asarray(Image.fromarray(camera.image).resize(size[::-1])), semantic=None, instance=None, depth=None) for camera in frame.cameras]
    large = with_points(replace(frame, cameras=cameras), np.arange(120_000) % len(frame.points))

    def dense(frame):
        return Features(torch.randn(120_000, 64), [torch.randn(64, *size) for _ in cameras], [size] * len(cameras))

    path = page_of(tmp_path, [large], dense)
    assert path.stat().st_size < 25e6
    assert explore(path).evaluate("root => [root.explorer.scene.count, root.explorer.sides[0].features.dim]") == [120_000, 64]


def test_the_page_asks_nothing_of_the_network(new_page, tour):
    page, asked = new_page(offline=True), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(tour.as_uri())
    page.wait_for_selector("[data-shown]")
    click(page.locator(".xm-explorer"), *middle(CAR))
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [tour.as_uri()]
    policy = page.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content")
    assert "default-src 'none'" in policy and "http" not in policy


def test_a_report_holds_a_page(new_page, tour, tmp_path):
    report = write_report(tmp_path / "report.html", "Report", "What was learned.", [Section("Explore", figures=[("**Click** a pixel.", tour)])])
    page = new_page(offline=True)
    page.goto(report.as_uri())
    root = page.frame_locator("iframe").locator(".xm-explorer[data-shown]")
    root.wait_for()
    click(root, *middle(CAR))
    assert lit(root)
    with page.expect_download():
        root.locator("[data-control=png]").click()


def test_a_pin_without_an_answer_leaves_the_others_their_colours(explore, tmp_path):
    def holed(frame):
        features = knowing(frame)
        for pixels, camera in zip(features.pixels, frame.cameras):
            pixels[:, camera.semantic == BUILDING] = float("nan")
        return features

    root = explore(page_of(tmp_path, [scene(0)], holed))
    click(root, *middle(BUILDING))
    click(root, *middle(ROAD), modifiers=["Shift"])
    click(root, *middle(CAR), modifiers=["Shift"])
    assert root.locator(".xm-pins button").count() == 3
    assert share(of_points(root, scene(0).semantic == ROAD), AMBER) > 0.95
    assert share(of_points(root, scene(0).semantic == CAR), (0xFF, 0x6F, 0xAE)) > 0.95


MACHADO = {  # Machado, Oliveira, Fernandes 2009: what is left of linear RGB without one kind of cone
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("kind", MACHADO)
def test_pins_can_be_told_apart_by_colour_blind_users(kind):
    from skimage.color import rgb2lab

    pins = re.search(r"PIN_COLORS = \[(.*?)\]", code())[1]
    rgb = np.array([[int(pin[i : i + 2], 16) / 255 for i in (0, 2, 4)] for pin in re.findall(r"#(\w{6})", pins)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    left = np.clip(linear @ np.array(MACHADO[kind]).T, 0, 1)
    lab = rgb2lab(np.where(left <= 0.0031308, 12.92 * left, 1.055 * left ** (1 / 2.4) - 0.055))
    apart = np.linalg.norm(lab[:, None] - lab, axis=-1)[np.triu_indices(len(rgb), 1)]
    assert len(rgb) == 6 and apart.min() > 20  # 2 is just noticeable
