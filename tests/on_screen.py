"""What an explorer shows on the screen: colours read back from its canvases and compared with what is known of the street."""

from base64 import b64decode
from functools import cache
from io import BytesIO

import numpy as np
from known_world import SIZE, world
from matplotlib import colormaps
from PIL import Image
from scipy.ndimage import binary_erosion

STREET = world()
scene = cache(STREET.__getitem__)
CLASSES = STREET.classes
CAR, ROAD, BUILDING = map(CLASSES.index, ("car", "road", "building"))
LOW, HIGH = (tuple(np.rint(255 * np.array(colormaps["magma"](x)[:3])).astype(int)) for x in (0.2, 1.0))  # the ends of the colours
CYAN, AMBER = (0x35, 0xE0, 0xFF), (0xFF, 0xB0, 0x00)  # the first two pins
FIXED = dict(auto_range=False, low=0.6, high=0.9, opacity=1.0)  # what is alike is beyond one end, what is not beyond the other
INT8 = 0.0035  # largest error of a similarity that nbs/viz/04_pack.ipynb found: half of the cosine's 0.007

COLOURS = """(explorer, [rows, side]) => {  // on the screen, of those points that no other hides
  const { cloud } = explorer;
  const { gl, canvas, pane } = cloud;
  const shown = new Uint8Array(4 * canvas.width * canvas.height);
  cloud.drawNow();
  gl.readPixels(0, 0, canvas.width, canvas.height, gl.RGBA, gl.UNSIGNED_BYTE, shown);
  const scale = canvas.width / cloud.width;
  return rows.map((row) => {
    const [x, y] = cloud.locate(row) ?? [-1e6, 0];
    if (cloud.pickAt(x + side * pane, y) !== row) return [row, null];
    const k = 4 * ((canvas.height - 1 - Math.floor(y * scale)) * canvas.width + Math.floor((x + side * pane) * scale));
    return [row, [...shown.subarray(k, k + 3)]];
  }).filter(([, colour]) => colour);
}"""


def drawn(root):
    "Waits until all that was asked for is drawn."
    root.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def tell(root, script, given=None):
    "The value of a function of (explorer, given)."
    return root.evaluate(f"(root, given) => ({script})(root.explorer, given)", given)


def decoded(png):
    return np.asarray(Image.open(BytesIO(png)).convert("RGB"))


def picture(root, side=0):
    "What is on the first image canvas, (H, W, 3)."
    address = root.locator(".xm-images").nth(side).locator("canvas.xm-image").first.evaluate("canvas => canvas.toDataURL()")
    return decoded(b64decode(address.split(",")[1]))


def at(root, u, v, side=0):
    "The image canvas, and where on it a pixel lies."
    canvas = root.locator(".xm-images").nth(side).locator("canvas.xm-image").first
    box = canvas.bounding_box()
    return canvas, {"x": (u + 0.5) / SIZE[1] * box["width"], "y": (v + 0.5) / SIZE[0] * box["height"]}


def state(root, name):
    return tell(root, "({ model }, name) => model.get(name)", name)


def click(root, u, v, **options):
    canvas, position = at(root, u, v)
    canvas.click(position=position, **options)
    drawn(root)


def hover(root, u, v):
    canvas, position = at(root, u, v)
    canvas.hover(position=position)
    drawn(root)


def click_point(root, label):
    "On a point of this class that has only such points around it: a click's place is rounded to whole pixels."
    among = """({ cloud }, rows) => {
      const wanted = new Set(rows);
      const near = [-3, -1.5, 0, 1.5, 3];
      const steady = ([x, y]) => near.every((dx) => near.every((dy) => wanted.has(cloud.pickAt(x + dx, y + dy))));
      return rows.map((row) => cloud.locate(row)).find((at) => at && steady(at));
    }"""
    drawn(root)
    x, y = tell(root, among, np.flatnonzero(scene(0).semantic == label).tolist())
    root.locator(".xm-cloud").click(position={"x": x, "y": y})
    drawn(root)


def inside(label, frame=0):
    "Pixels (v, u) of a class, not at its rim."
    return np.argwhere(binary_erosion(scene(frame).cameras[0].semantic == label, iterations=4))


def middle(label, frame=0):
    "One of them, as (u, v)."
    pixels = inside(label, frame)
    return tuple(int(x) for x in pixels[len(pixels) // 2][::-1])


def share(colours, wanted):
    "How many of the colours are this one, rounding apart."
    assert len(colours) > 20, "too few points to tell"
    return np.mean([np.abs(np.subtract(colour, wanted)).max() <= 2 for _, colour in colours])


def of_points(root, chosen, side=0):
    "Row and colour on the screen of some of these points."
    rows = np.flatnonzero(chosen)
    return tell(root, COLOURS, [rows[:: max(len(rows) // 250, 1)].tolist(), side])


def lit(root, frame=0, label=CAR, side=0):
    "Whether the points of a class are at one end of the colours, and all others at the other."
    semantic = scene(frame).semantic
    return share(of_points(root, semantic == label, side), HIGH) > 0.95 and share(of_points(root, semantic != label, side), LOW) > 0.95


def similarities(frame, features, direction):
    "In float64, of the points."
    unit = features.points.double().numpy()
    return 0.5 + 0.5 * (unit @ direction) / np.linalg.norm(unit, axis=1) / np.linalg.norm(direction)


def of_cell(features, u, v):
    "The direction of a pixel: feature maps are brought to at most 24,000 cells, here by means of 2 x 2."
    return features.pixels[0][:, v // 2 * 2 : v // 2 * 2 + 2, u // 2 * 2 : u // 2 * 2 + 2].double().mean((1, 2)).numpy()


def is_drawn(picture):
    "Not one colour all over."
    return len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
