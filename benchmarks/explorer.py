"""The similarity explorer's speed in a JupyterLab of its own, with WebGL in software, and plotly's beside it.

    python benchmarks/explorer.py [--points 120000] [--dim 64] [--repeats 3] [--hovers 40] [--changes 40 200]

One frame of the street world is brought to the number of points asked for; its features are made beforehand, so no network's time is counted.
A colour counts as seen when `readPixels` returns it, which waits for the drawing to end. Needs Chromium and playwright; set OMP_NUM_THREADS to
choose the number of cores that numpy and torch may use.
"""

import argparse
import json
import os
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from xmodal.data.street import Street
from xmodal.features import Features
from xmodal.frame import Frame
from xmodal.viz.pack import quantise
from xmodal.viz.tour import Tour, View, save_page

HERE = Path(__file__).parent
SECONDS = 120  # for any one step


# --- what is shown: made here, and again in the kernel, which imports this file ---


class Frames:
    "A dataset of frames that are there already."

    name, classes = "frames in memory", Street().classes

    def __init__(self, frames: list[Frame]):
        self.frames, self.ids = frames, [frame.id for frame in frames]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, i: int) -> Frame:
        return self.frames[i]


def large_frame(count: int) -> Frame:
    "A 64-beam frame with exactly `count` points: some left out, or some there again a few centimetres away."
    frame, rng = Street(frames=1, cameras=2, beams=64)[0], np.random.default_rng(0)
    have = len(frame.points)
    rows = np.sort(rng.permutation(have)[:count]) if count <= have else np.concatenate([np.arange(have), rng.integers(0, have, count - have)])
    points = frame.points[rows]
    points[have:] += rng.normal(0, 0.03, points[have:].shape)
    return replace(frame, points=points, **{name: getattr(frame, name)[rows] for name in ("intensity", "semantic", "instance")})


def features_of(frame: Frame, dim: int) -> Features:
    "One random direction a class, and noise: what a network would say that knows the classes rather well."
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(len(Frames.classes), dim, generator=generator)

    def of(labels: np.ndarray) -> torch.Tensor:  # (..., dim)
        signal = directions[torch.as_tensor(labels).long()]
        return torch.nn.functional.normalize(signal + 0.5 * torch.randn(signal.shape, generator=generator), dim=-1)

    pixels = [of(camera.semantic).permute(2, 0, 1).contiguous() for camera in frame.cameras]
    return Features(of(frame.semantic), pixels, [camera.size for camera in frame.cameras])


EXPLORER = """
from xmodal.viz.explorer import Explorer
frame = large_frame({points})
features = features_of(frame, {dim})
dataset, networks = Frames([frame]), {{"known": lambda _: features}}
"""
SMALL = """
from functools import partial
from xmodal.viz.explorer import Explorer
dataset, networks = Frames(list(Street(frames=20, cameras=2, beams=16, size=(64, 208)))), {{"known": partial(features_of, dim={dim})}}
"""
PLOTLY = """
import plotly.graph_objects as go
frame = large_frame({points})
features = features_of(frame, {dim}).points
colors = [(features @ features[row]).numpy() for row in range(0, {points}, {points} // 12)]
"""
SCATTER = """
x, y, z = frame.points.T
fig = go.FigureWidget(go.Scatter3d(x=x, y=y, z=z, mode="markers", marker=dict(size=1.5, color=colors[0], colorscale="Viridis")))
fig.update_layout(width=624, height=470, margin=dict(l=0, r=0, t=0, b=0), scene=dict(aspectmode="data"))
"""


# --- in the page: clocks and readPixels ---

PROBE = """
window.probe = {
    // what is on a canvas: a number that changes with any pixel, how many pixels have a colour, and when the drawing had ended
    look(canvas) {
        const gl = canvas.getContext('webgl2') ?? canvas.getContext('webgl');
        const bytes = new Uint8Array(4 * gl.drawingBufferWidth * gl.drawingBufferHeight);
        gl.readPixels(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
        const at = performance.now();
        let [sum, colored] = [0, 0];
        for (let k = 0; k < bytes.length; k += 4) {
            const [r, g, b] = [bytes[k], bytes[k + 1], bytes[k + 2]];
            sum = (Math.imul(sum, 31) + (r << 16 | g << 8 | b)) | 0;
            if (Math.max(r, g, b) - Math.min(r, g, b) > 60) colored++;
        }
        return { sum, colored, at };
    },
    // the first look at what `find` gives that shows points in other colours than before; null when there was none in time.
    // A canvas can be read only in the refresh in which it was drawn, after that: so this asks last, from a task of its own
    async change(find, seconds) {
        for (const end = performance.now() + 1000 * seconds; performance.now() < end; await new Promise((next) => setTimeout(next))) {
            await new Promise((next) => requestAnimationFrame(next));
            const canvas = find();
            const seen = canvas && probe.look(canvas);
            if (seen?.colored > 1000 && seen.sum !== probe.before) {
                probe.before = seen.sum;
                return seen.at;
            }
        }
        return null;
    },
    explorer: () => document.querySelector('.xm-explorer').explorer,
    plotly: () => document.querySelector('.js-plotly-plot .gl-container canvas'),
    rest: (ms) => new Promise((next) => setTimeout(next, ms)),
    run(index) { // the active notebook's cell
        const notebook = jupyterapp.shell.currentWidget;
        notebook.content.activeCellIndex = index;
        probe.cell = { start: performance.now() };
        return jupyterapp.commands.execute('notebook:run-cell').then(() => {
            probe.cell.end = performance.now();
            const error = notebook.content.model.cells.get(index).outputs?.toJSON().find((output) => output.output_type === 'error');
            if (error) throw new Error(error.ename + ': ' + error.evalue);
        });
    },
};
// the explorer's first frame: it says that it is shown in the same task in which it was drawn
probe.first = new Promise((tell) => new MutationObserver(([{ target }]) => {
    const seen = probe.look(target.explorer.cloud.canvas);
    if (seen.colored > 1000) {
        probe.before ??= seen.sum;
        tell(seen.at);
    }
}).observe(document, { subtree: true, attributeFilter: ['data-shown'] }));
"""
FIRST = "async () => { await probe.run(1); return { shown: await probe.first, ...probe.cell }; }"
FIRST_PLOTLY = """async (seconds) => {
    const [shown] = await Promise.all([probe.change(probe.plotly, seconds), probe.run(1)]);
    return { shown, ...probe.cell };
}"""
HOVER = """async ([places, seconds]) => {
    const { cloud } = probe.explorer();
    const image = document.querySelector('.xm-image');
    const times = [];
    for (const [x, y] of places) {
        await probe.rest(150);
        const box = image.getBoundingClientRect();
        const place = { clientX: box.left + x * box.width, clientY: box.top + y * box.height, bubbles: true };
        const start = performance.now();
        image.dispatchEvent(new PointerEvent('pointermove', place));
        const seen = await probe.change(() => cloud.canvas, seconds);
        if (seen === null) throw new Error(`no new colours after hovering over the image at ${x}, ${y}`);
        times.push(seen - start);
    }
    return times;
}"""
PARTS = """(places) => { // of the same work, one after the other
    const explorer = probe.explorer();
    return places.map(([x, y]) => {
        const { width, height } = explorer.scene.cameras[0];
        explorer.lastHovered = explorer.asking({ kind: 'pixel', camera: 0, u: x * (width - 1), v: y * (height - 1), pointer: true });
        const clock = [performance.now()];
        explorer.answer();
        clock.push(performance.now());
        explorer.paint();
        clock.push(performance.now(), probe.look(explorer.cloud.canvas).at);
        return [0, 1, 2].map((k) => clock[k + 1] - clock[k]);
    });
}"""
PICK = """(places) => {
    const { cloud } = probe.explorer();
    const { width, height } = cloud.canvas.getBoundingClientRect();
    return places.map(([x, y]) => {
        const start = performance.now();
        cloud.pickAt(x * width, y * height);
        return performance.now() - start;
    });
}"""
RECOLOR = """async ([count, seconds]) => {
    const { kernel } = jupyterapp.shell.currentWidget.sessionContext.session;
    const times = [];
    for (let k = 1; k <= count; k++) {
        await probe.rest(150);
        const start = performance.now();
        kernel.requestExecute({ code: `fig.data[0].marker.color = colors[${k}]` });
        const seen = await probe.change(probe.plotly, seconds);
        if (seen === null) break;
        times.push(seen - start);
    }
    return times;
}"""
CHANGES = """async ([count, seconds]) => {
    // through all frames again and again; almost none fits into the store, so that the kernel is asked for each
    const explorer = probe.explorer();
    explorer.store.budget = 1e6;
    const frames = explorer.get('contents').frames.length;
    for (let k = 0; k < count; k++) {
        const next = (explorer.get('frame') + 1) % frames;
        explorer.set('frame', next);
        for (const end = performance.now() + 1000 * seconds; explorer.root.dataset.shown !== String(next); await probe.rest(5)) {
            if (performance.now() > end) throw new Error(`frame ${next} was not shown`);
        }
    }
    return count;
}"""
TRIM = """async () => {
    const { kernel } = jupyterapp.shell.currentWidget.sessionContext.session;
    await kernel.requestExecute({ code: "import ctypes, gc\\ngc.collect()\\nctypes.CDLL(None).malloc_trim(0)" }).done;
}"""
TELL = """([argument]) => {
    window.told = undefined;
    Promise.resolve(argument).then(SCRIPT).then((value) => { told = { value }; }, (error) => { told = { error: String(error) }; });
}"""
RENDERER = """() => {
    const gl = document.createElement('canvas').getContext('webgl2');
    return gl.getParameter(gl.getExtension('WEBGL_debug_renderer_info').UNMASKED_RENDERER_WEBGL);
}"""


# --- steps ---


class Missing(Exception):
    "What the benchmark needs and this machine does not have."


def tell(page, script: str, argument=None, seconds: float = SECONDS):
    "What a function of the page gives, within this time. Raises RuntimeError for its errors."
    page.evaluate(TELL.replace("SCRIPT", script), [argument])
    end = time.monotonic() + seconds
    while not (told := page.evaluate("window.told")):  # not wait_for_function: a page that forbids eval forbids that too
        if time.monotonic() > end:
            raise RuntimeError(f"the page did not answer within {seconds:.0f} s")
        page.wait_for_timeout(100)
    if "error" in told:
        raise RuntimeError(told["error"])
    return told["value"]


@contextmanager
def opened(browser, lab, before: str, shown: str):
    "A new notebook in JupyterLab, with a kernel of its own: a cell that has run, and one that shows something, which has not."
    from conftest import IS_OPEN

    notebook = lab.work / f"{secrets.token_hex(4)}.ipynb"
    begin = f"import os, sys\nsys.path.insert(0, {str(HERE)!r})\nfrom explorer import *\nPath('pid').write_text(str(os.getpid()))\n"
    cell = lambda source: {"cell_type": "code", "id": secrets.token_hex(4), "metadata": {}, "outputs": [], "execution_count": None, "source": source}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}  # else JupyterLab asks which
    notebook.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": [cell(begin + before), cell(shown)]}))
    with browser.new_context(viewport={"width": 1600, "height": 1000}) as context:
        context.add_init_script(PROBE)
        page = context.new_page()
        page.goto(f"{lab.url}/lab/workspaces/{secrets.token_hex(4)}/tree/{notebook.name}?token={lab.token}")
        page.wait_for_function(IS_OPEN, timeout=1000 * SECONDS)
        tell(page, "() => probe.run(0)")
        time.sleep(2)  # until JupyterLab has nothing more to load
        yield page
    lab.end_sessions()


def places(count: int) -> list[list[float]]:  # shares of the width and the height
    return np.random.default_rng(1).uniform(0.05, 0.95, (count, 2)).tolist()


def spans(runs: list[dict]) -> dict[str, float]:  # seconds, medians
    "From the start and from the end of a cell until it was seen."
    return {f"first display, from the cell's {end}": statistics.median(run["shown"] - run[end] for run in runs) / 1000 for end in ("start", "end")}


def measure_explorer(browser, lab, options) -> tuple[dict[str, float], str]:
    "Seconds by what was measured, and a line that says where the time of a recolouring goes."
    firsts = []
    for left in reversed(range(options.repeats)):
        with opened(browser, lab, EXPLORER.format(**vars(options)), "Explorer(dataset, networks)") as page:
            firsts.append(tell(page, FIRST))
            if left:
                continue
            tell(page, HOVER, [places(3), SECONDS / 4])  # warm up
            hovers = tell(page, HOVER, [places(options.hovers), SECONDS / options.hovers], 2 * SECONDS)
            parts = np.median(tell(page, PARTS, places(15)), 0)
            tell(page, PICK, places(5))
            picks = tell(page, PICK, places(options.hovers))
    seconds = spans(firsts) | {
        "recolouring, median": statistics.median(hovers) / 1000, "recolouring, 95 %": float(np.quantile(hovers, 0.95)) / 1000,
        "picking, median": statistics.median(picks) / 1000, "picking, slowest": max(picks) / 1000,
    }  # fmt: skip
    return seconds, "{:.0f} ms similarities and their range, {:.0f} ms colours, upload and image, {:.0f} ms until the cloud is drawn".format(*parts)


def measure_plotly(browser, lab, options) -> dict[str, float]:  # seconds
    with opened(browser, lab, PLOTLY.format(**vars(options)), SCATTER + "fig") as page:
        first = tell(page, FIRST_PLOTLY, SECONDS / 2)
        if first["shown"] is None:
            return {}
        times = [t / 1000 for t in tell(page, RECOLOR, [10, SECONDS / 12], 2 * SECONDS)]
    quantiles = {"recolouring, median": statistics.median(times), "recolouring, 95 %": float(np.quantile(times, 0.95))} if times else {}
    return spans([first]) | quantiles


def measure_page(browser, folder: Path, tour: Tour) -> tuple[float, float]:  # MB, seconds
    "The standalone page of one frame, and its first display with the network off."
    path = save_page(folder / "page.html", tour, View())
    with browser.new_context(offline=True, viewport={"width": 1600, "height": 1000}) as context:
        context.add_init_script(PROBE)
        page = context.new_page()
        page.goto(path.as_uri())
        return path.stat().st_size / 1e6, tell(page, "() => probe.first") / 1000  # the page's clock starts as it is opened


def measure_memory(browser, lab, options) -> list[tuple[int, float, float, float]]:
    "Megabytes after so many frame changes: of the kernel, before and after it gave back what it had freed, and of the page's objects and buffers."
    import psutil

    found, done = [], 0
    with opened(browser, lab, SMALL.format(**vars(options)), "Explorer(dataset, networks)") as page:
        tell(page, FIRST)
        kernel = psutil.Process(int((lab.work / "pid").read_text()))
        devtools = page.context.new_cdp_session(page)
        for changes in options.changes:
            tell(page, CHANGES, [changes - done, SECONDS / 12], 3 * SECONDS)
            done, grown = changes, kernel.memory_info().rss
            tell(page, TRIM)
            devtools.send("HeapProfiler.collectGarbage")
            heap = devtools.send("Runtime.getHeapUsage")
            held = (grown, kernel.memory_info().rss, heap["usedSize"] + heap.get("backingStorageSize", 0))
            found.append((changes, *(size / 1e6 for size in held)))
    return found


def quantisation(features: np.ndarray, queries: int = 64) -> tuple[float, float]:
    "Largest and median error of cosines between quantised features, against those in float64."
    def cosines(vectors: np.ndarray) -> np.ndarray:  # (N, queries)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit @ unit[:: max(len(unit) // queries, 1)][:queries].T

    vectors, scale = quantise(features)
    error = np.abs(cosines(vectors * scale[:, None].astype(np.float64)) - cosines(features.astype(np.float64)))
    return error.max(), float(np.median(error))


# --- the table ---

TARGETS = {"first display, from the cell's end": 3.0, "recolouring, median": 0.25, "picking, slowest": 0.02}


def table(ours: dict[str, float], theirs: dict[str, float]) -> str:
    lines = [f"{'[s]':36}{'explorer':>10}{'target':>10}{'plotly':>10}{'plotly / explorer':>20}"]
    for name, seconds in ours.items():
        target = f"<= {TARGETS[name]:g}" if name in TARGETS else ""
        beside = f"{theirs[name]:10.3f}{theirs[name] / seconds:20.1f}" if name in theirs else ""
        lines.append(f"{name:36}{seconds:10.3f}{target:>10}{beside}")
    return "\n".join(lines)


@contextmanager
def started(folder: Path):
    "Chromium and a JupyterLab. Raises Missing without them."
    sys.path.insert(0, str(HERE.parent / "tests"))
    try:
        from conftest import CHROMIUM, FLAGS, ONLY_HERE, Lab
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise Missing(f"{error.name} is not installed: pip install -e '.[dev]'") from error
    if not (program := next(filter(None, map(shutil.which, CHROMIUM)), None)):
        raise Missing("there is no Chromium: sudo apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*FLAGS, ONLY_HERE])
        lab = Lab(folder)
        try:
            yield browser, lab
        finally:
            browser.close()
            lab.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=120_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="of the first display, each with a new page and kernel")
    parser.add_argument("--hovers", type=int, default=40)
    parser.add_argument("--changes", type=int, nargs="+", default=[40, 200], help="of the frame, after which memory is read")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder, started(Path(folder)) as (browser, lab):
        frame = large_frame(options.points)
        features = features_of(frame, options.dim)
        page = browser.new_page()
        cores, asked = len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS", "not set")
        print(f"{len(frame.points):,} points x {options.dim}-d, {len(frame.cameras)} cameras of {frame.cameras[0].size[1]} x {frame.cameras[0].size[0]} pixels")
        print(f"{cores} cores, load {os.getloadavg()[0]:.2f}, OMP_NUM_THREADS {asked}, Chromium {browser.version}: {page.evaluate(RENDERER)}", flush=True)
        page.close()

        ours, parts = measure_explorer(browser, lab, options)
        theirs = measure_plotly(browser, lab, options)
        print(f"{table(ours, theirs)}\na recolouring: {parts}", flush=True)
        if "recolouring, median" not in theirs:
            print(f"plotly showed nothing within {SECONDS / 2:.0f} s" if not theirs else "plotly's recolouring was not seen")
        size, seconds = measure_page(browser, Path(folder), Tour(Frames([frame]), {"known": lambda _: features}))
        print(f"standalone page: {size:.1f} MB (target < 25), first display {seconds:.2f} s after it was opened with the network off")
        largest, median = quantisation(features.points.numpy())
        print(f"int8 features: error of the cosine at most {largest:.1e}, median {median:.1e}")
        for changes, grown, kernel, heap in measure_memory(browser, lab, options):
            print(f"after {changes:4} frame changes: kernel {grown:6.1f} MB, {kernel:6.1f} of them in use, the page's objects and buffers {heap:5.1f} MB")
        print(f"load at the end {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    try:
        main()
    except Missing as reason:
        print(f"nothing measured: {reason}")
