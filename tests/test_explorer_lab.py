"""The explorer in a real JupyterLab: what the kernel and the browser have to do with each other."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("open3d", reason="the street world is rendered with Open3D")
pytest.importorskip("matplotlib", reason="the colour maps come from it: pip install -e '.[lab]'")

from conftest import IS_OPEN, RUN_ALL  # noqa: E402
from known_world import SIZE  # noqa: E402
from on_screen import BUILDING, CAR, FIXED, HIGH, LOW, ROAD, click, click_point, drawn, hover, is_drawn, lit, middle, of_points, picture, scene, share, state, tell  # noqa: E402

SETUP = f"""
import sys
from dataclasses import replace
from functools import partial

sys.path.insert(0, {str(Path(__file__).parent)!r})
from known_world import Frames, halves, knowing, squares, with_points, world
from xmodal.frame import BadData
from xmodal.viz.explorer import Explorer

class Damaged(Frames):
    def __getitem__(self, i):
        if i == 3:
            raise BadData("scan_3.bin", "the file is cut off", "copy it again")
        return self.frames[i]

frames, classes, look = list(world()), world().classes, {FIXED}
"""
TOUR = "explorer = Explorer(Damaged(*frames, frames[0], classes=classes), {'classes': knowing, 'halves': halves}, squares, **look)\nexplorer"

ASK = """async (code) => {  // the kernel to do this; what it printed
  const { kernel } = jupyterapp.shell.currentWidget.sessionContext.session;
  const future = kernel.requestExecute({ code });
  let said = "";
  future.onIOPub = ({ content }) => { said += content.text ?? (content.ename ? `${content.ename}: ${content.evalue}` : ""); };
  await future.done;
  return said;
}"""
RUN_CELL = """async (code) => {  // the second cell, with other code in it
  const { content } = jupyterapp.shell.currentWidget;
  content.activeCellIndex = 1;
  content.activeCell.model.sharedModel.setSource(code);
  await jupyterapp.commands.execute("notebook:run-cell");
}"""
COUNT = """() => {  // what goes to the kernel from now on, and the binary messages that come back
  const { kernel } = jupyterapp.shell.currentWidget.sessionContext.session;
  window.sent = window.binary = 0;
  kernel.anyMessage.connect((_, { direction, msg }) => {
    window.sent += direction === "send";
    window.binary += direction === "recv" && (msg.buffers?.length ?? 0) > 0;
  });
}"""
CELLS = "() => [...jupyterapp.shell.currentWidget.content.model.sharedModel.cells].map((cell) => [cell.cell_type, cell.getSource()])"


@pytest.fixture(scope="module")
def notebook(lab, browser):
    "The page of one notebook for all tests of this module: opening it takes longer than they do. Errors in its console fail the last test."
    kernel = dict(name="python3", display_name="Python 3", language="python")
    cells = [dict(cell_type="code", id=f"cell-{k}", metadata={}, source=source, outputs=[], execution_count=None) for k, source in enumerate((SETUP, TOUR))]
    (lab.work / "explorer.ipynb").write_text(json.dumps(dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)))
    page, errors = browser.new_context(viewport={"width": 1500, "height": 1000}).new_page(), []
    page.on("pageerror", lambda error: errors.append(f"uncaught: {error.stack or error}"))
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.goto(f"{lab.url}/lab/workspaces/explorer/tree/explorer.ipynb?token={lab.token}")
    page.wait_for_function(IS_OPEN, timeout=60_000)
    page.evaluate(RUN_ALL)
    page.wait_for_function("window.ran !== undefined", timeout=60_000)
    assert page.evaluate("window.ran") == "all", lab.tail()
    page.evaluate(COUNT)
    yield page
    page.context.close()
    lab.end_sessions()
    assert not errors, "\n".join(errors)


@pytest.fixture
def show(notebook):
    "`show(code)` runs a cell that ends in an explorer and returns it."

    def show_one(code=TOUR):
        notebook.evaluate("() => document.querySelectorAll('.xm-explorer').forEach((root) => root.classList.add('old'))")
        notebook.evaluate(RUN_CELL, code)
        root = notebook.locator(".xm-explorer:not(.old)")
        notebook.wait_for_selector(".xm-explorer:not(.old)[data-shown]", timeout=60_000)
        root.scroll_into_view_if_needed()
        return root

    return show_one


def shown(root, frame):
    root.page.wait_for_selector(f".xm-explorer:not(.old)[data-shown='{frame}']")
    drawn(root)


def test_hovering_costs_no_message(show, notebook):
    root = show()
    shown(root, 0)
    notebook.wait_for_timeout(300)
    before = notebook.evaluate("window.sent")
    for label in (CAR, ROAD, BUILDING, CAR):
        hover(root, *middle(label))
        assert lit(root, label=label)
    box = root.locator(".xm-cloud").bounding_box()
    asked = set()
    for x in np.linspace(0.2, 0.8, 12):
        notebook.mouse.move(box["x"] + x * box["width"], box["y"] + 0.6 * box["height"])
        drawn(root)
        asked.add(root.locator(".xm-reading").inner_text())
    assert len(asked) > 4
    assert notebook.evaluate("window.sent") == before
    root.locator("[data-control=ahead]").click()  # what does cost messages
    shown(root, 1)
    assert notebook.evaluate("window.sent") > before


def test_python_and_the_browser_share_the_pins(show, notebook):
    root = show()
    click(root, *middle(CAR))
    u, v = middle(CAR)
    assert lit(root)
    asked = notebook.evaluate(ASK, "query, = explorer.queries; print(query['kind'], query['camera'], round(query['u']), round(query['v']))").split()
    assert asked[:2] == ["pixel", "0"] and abs(int(asked[2]) - u) <= 1 and abs(int(asked[3]) - v) <= 1
    click_point(root, CAR)
    point = int(notebook.evaluate(ASK, "print(explorer.queries[0]['point'])"))
    assert scene(0).semantic[point] == CAR
    row = int(np.flatnonzero(scene(0).semantic == ROAD)[0])
    assert notebook.evaluate(ASK, f"explorer.ask(point={row})") == ""
    root.locator(f".xm-pins button:has-text('point {row}')").wait_for()
    drawn(root)
    assert lit(root, label=ROAD)
    notebook.evaluate(ASK, "explorer.frame = 2")
    shown(root, 2)
    assert lit(root, frame=2, label=ROAD)


def test_playing_and_two_networks(show, notebook):
    root = show()
    click(root, *middle(CAR))
    root.locator("[data-control=b]").select_option("halves")
    notebook.wait_for_selector(".xm-pair:not(.old)")
    drawn(root)
    right = scene(0).points[:, 1] < 0
    asked = right if middle(CAR)[0] >= SIZE[1] / 2 else ~right
    assert lit(root, side=0)
    assert share(of_points(root, asked, side=1), HIGH) > 0.95 and share(of_points(root, ~asked, side=1), LOW) > 0.95
    root.locator("[data-control=playing]").click()
    for frame in (1, 2, 0):  # over frame 3, which cannot be read
        notebook.wait_for_selector(f".xm-explorer:not(.old)[data-shown='{frame}']")
    root.locator("[data-control=playing]").click()
    root.locator("[data-control=a]").select_option("halves")
    root.locator("[data-control=b]").select_option("")
    notebook.evaluate(ASK, "explorer.frame = 0")
    notebook.wait_for_selector(".xm-explorer:not(.old):not(.xm-pair)[data-shown='0']")
    drawn(root)
    assert share(of_points(root, asked), HIGH) > 0.95


def test_a_frame_that_cannot_be_read(show, notebook):
    root = show()
    click(root, *middle(CAR))
    notebook.evaluate(ASK, "explorer.frame = 3")
    shown(root, "none")
    assert root.locator(".xm-notes.xm-bad").inner_text() == "scan_3.bin: the file is cut off; copy it again"
    root.locator("[data-control=back]").click()
    shown(root, 2)
    assert root.locator(".xm-notes").inner_text() == "" and is_drawn(picture(root)) and lit(root, frame=2)


@pytest.mark.parametrize(
    "code, message",
    [
        ("Explorer(Frames(frames[0]), {'x': lambda frame: replace(knowing(frame), pixels=[p[:8] for p in knowing(frame).pixels])})", "point features have 16 dimensions, pixel features [8, 8]; take both from one checkpoint"),
        ("Explorer(Frames(frames[0]), {'x': lambda frame: knowing(frames[1])})", "features of 23,029 points for frame drive_0001/0000000000, which has 22,897; extract them from this frame"),
        ("Explorer(Frames(with_points(frames[0], [])), {'x': knowing})", "without points there are no features"),
        ("Explorer(Frames(frames[0]), {'x': lambda frame: 1 / 0})", "division by zero"),
    ],
)  # fmt: skip
def test_features_that_do_not_fit(show, code, message):
    root = show(code)
    assert message in root.locator(".xm-notes.xm-bad").inner_text()
    assert is_drawn(picture(root))
    click(root, *middle(CAR))  # nothing answers, nothing breaks
    assert is_drawn(picture(root))


def test_keys_stay_inside(show, notebook):
    root = show()
    cells = notebook.evaluate(CELLS)
    click(root, *middle(CAR))
    for key in "x m b a d d c v y z r s p 1 2 l o k j 0 0 . , Space Space Enter Backspace Escape Shift+m Shift+o".split():
        notebook.keyboard.press(key)
    drawn(root)
    assert notebook.evaluate(CELLS) == cells and notebook.locator("[role=dialog].jp-Dialog").count() == 0
    assert state(root, "color_map") != "magma" and state(root, "color_by") == "height"  # it was the explorer that heard them
    notebook.evaluate("() => { const { content } = jupyterapp.shell.currentWidget; content.mode = 'command'; content.node.focus(); }")
    notebook.keyboard.press("b")  # outside, they are JupyterLab's
    assert len(notebook.evaluate(CELLS)) == len(cells) + 1
    notebook.evaluate("() => jupyterapp.commands.execute('notebook:delete-cell')")


def test_what_is_too_large_is_answered_by_the_kernel(show, notebook):
    many = "with_points(replace(frames[0], cameras=frames[0].cameras[:1]), [i % 20_000 for i in range(70_000)])"
    root = show(f"Explorer(Frames({many}, classes=classes), {{'large': partial(knowing, dim=768, noise=0)}}, limit=60_000, **look)")
    assert "too much for the page: the kernel computes the similarities" in root.locator(".xm-notes").inner_text()
    kept = np.array(tell(root, "({ scene }) => [...scene.rows]"))
    semantic = scene(0).semantic[kept % 20_000]
    answered = "([label, labels]) => document.querySelector('.xm-explorer:not(.old)').explorer.sides[0].answers[0]?.points.every((value, row) => value > 0.9 === (labels[row] === label))"
    before = notebook.evaluate("[window.sent, window.binary]")
    for label in (CAR, ROAD):
        hover(root, *middle(label))
        notebook.wait_for_function(answered, arg=[label, semantic.tolist()])
        found = tell(root, "({ sides }) => [...sides[0].answers[0].points]")
        np.testing.assert_allclose(found, np.where(semantic == label, 1, 0.5), atol=1e-4)
    assert np.all(np.array(notebook.evaluate("[window.sent, window.binary]")) - before >= 2)
    row = int(kept[np.flatnonzero(semantic == BUILDING)[0]])
    tell(root, "(explorer, point) => explorer.set('queries', [{ frame: 0, kind: 'point', point, regions: false }])", row)
    notebook.wait_for_function(answered, arg=[BUILDING, semantic.tolist()])


def test_running_a_cell_again_cleans_up(show, notebook):
    notebook.evaluate("() => { window.cards = []; }")
    for _ in range(18):  # a browser keeps 16 WebGL contexts
        root = show()
        tell(root, "(explorer) => { window.cards.push([explorer, explorer.cloud.gl]); }")
    *old, new = notebook.evaluate("() => window.cards.map(([explorer, gl]) => [gl.isContextLost(), explorer.cloud.gl === null, explorer.scene === null, explorer.root.isConnected])")
    assert old == [[True, True, True, False]] * 17 and new == [False, False, False, True]
    assert notebook.locator(".xm-explorer").count() == 1
    click(root, *middle(CAR))
    assert lit(root)


def test_two_hundred_frames_leak_nothing(show, notebook):
    root = show("""small = [with_points(frame, range(0, len(frame.points), 10)) for frame in world(size=(48, 160), cameras=1)]
explorer = Explorer(Frames(*[replace(frame, id=str(i)) for i in range(10) for frame in small]), {'classes': knowing}, **look)
explorer.ask(point=0)
explorer""")
    pid = int(notebook.evaluate(ASK, "import os; print(os.getpid())"))
    devtools = notebook.context.new_cdp_session(notebook)
    tell(root, """(explorer) => {
      const { gl } = explorer.cloud;
      window.made = 0;
      for (const name of ["createBuffer", "createTexture", "createVertexArray", "createProgram"]) gl[name] = () => { window.made++; };
      explorer.store.budget = 1e6;  // so that no frame stays: each is asked of the kernel again
    }""")  # fmt: skip

    def go_on(frames):
        tell(root, """async (explorer, frames) => {
          for (let i = 0; i < frames; i++) {
            explorer.acts.ahead();
            const wanted = String(explorer.get("frame"));
            while (explorer.root.dataset.shown !== wanted) await new Promise((done) => setTimeout(done, 4));
          }
        }""", frames)  # fmt: skip

    def used():
        devtools.send("HeapProfiler.collectGarbage")
        heap = devtools.send("Runtime.getHeapUsage")
        notebook.evaluate(ASK, "import gc; gc.collect(); print()")
        resident = int(re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1]) * 1024
        ours, others = tell(root, "(explorer) => [explorer.root, document].map((above) => above.querySelectorAll('*').length)")
        return np.array([resident, heap["usedSize"] + heap.get("backingStorageSize", 0), ours, others - ours])

    sent = notebook.evaluate("window.sent")
    go_on(40)
    early = used()
    go_on(160)
    late = used()
    assert notebook.evaluate("window.sent") - sent > 400  # a scene and its features a frame
    assert notebook.evaluate("window.made") == 0
    resident, heap, ours, others = late - early
    assert resident < 25e6 and heap < 3e6 and ours == 0 and others < 20  # JupyterLab's own come and go
