"""What several tests need: a browser and a JupyterLab (`browser`, `new_page`, `lab`), a Dask cluster (`dask`), notebooks (`write_notebook`), a sweep of small runs (`prepare`), patience (`until`)."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader --ignore-gpu-blocklist "  # WebGL without a graphics card
    "--disable-background-networking --disable-component-update --disable-sync --disable-quic --no-first-run --no-proxy-server"
).split()
ONLY_HERE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"  # a page that asks for anything elsewhere gets an error, which fails the test
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # to the server itself, whatever proxy the environment names


@pytest.fixture(scope="module")  # not longer: while it lives an event loop runs in this thread, and asyncio.run refuses
def browser():
    "Chromium, driven by playwright, with WebGL in software. Skips where there is none."
    api = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright: pip install -e '.[dev]'")
    if not (program := next(filter(None, map(shutil.which, CHROMIUM)), None)):
        pytest.skip("the browser tests need Chromium: sudo apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*FLAGS, ONLY_HERE])
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser):
    "`new_page(**options)` opens an empty page; the options are those of playwright's `Browser.new_context`. Errors in a page's console fail the test."
    contexts, errors = [], []

    def open_one(**options):
        contexts.append(browser.new_context(**{"viewport": {"width": 1600, "height": 1000}} | options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(f"uncaught: {error.stack or error}"))
        page.on("console", lambda message: message.type == "error" and errors.append(f"{message.text} ({message.location.get('url', '')})"))
        page.on("crash", lambda _: errors.append("the page crashed"))
        return page

    yield open_one
    for context in contexts:
        context.close()
    if errors:
        pytest.fail("errors in the browser's console:\n" + "\n".join(errors), pytrace=False)


class Lab:
    "A JupyterLab of its own: on 127.0.0.1 with a token, with no settings, folders or kernels of the user's."

    def __init__(
        self,
        folder: Path,  # for its files; the notebooks are in folder / "work"
        seconds: float = 180,  # to start
    ):
        self.work, self.log, self.token = folder / "work", folder / "lab.log", secrets.token_urlsafe(24)
        settings = folder / "config/labconfig/page_config.json"
        settings.parent.mkdir(parents=True)
        # no question about news from jupyter.org, none about building extensions, over the notebook
        settings.write_text(json.dumps({"buildCheck": False, "disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}))
        self.work.mkdir()
        own = {name: str(folder / name.split("_")[1].lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
        command = [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"),
            *(f"--ServerApp.root_dir={self.work}", "--ServerApp.terminals_enabled=False", "--LabApp.extension_manager=readonly"),
            "--LabApp.expose_app_in_browser=True",
            # should the tests be killed, their kernels and then the server end by themselves
            *("--MappingKernelManager.cull_idle_timeout=600", "--MappingKernelManager.cull_connected=True", "--MappingKernelManager.cull_busy=True"),
            "--ServerApp.shutdown_no_activity_timeout=600",
            *(["--allow-root"] if os.geteuid() == 0 else []),
        ]
        environment = os.environ | own | {"JUPYTER_TOKEN": self.token, "IPYTHONDIR": str(folder / "ipython")}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            self.url = self._wait(Path(own["JUPYTER_RUNTIME_DIR"]), time.monotonic() + seconds)
        except BaseException:
            self.stop()
            raise

    def _wait(self, runtime: Path, until: float) -> str:
        while time.monotonic() < until and self.process.poll() is None:
            try:
                url = json.loads(next(runtime.glob("jpserver-*.json")).read_text())["url"].rstrip("/")
                self.ask("api/status", url=url)
                return url
            except (StopIteration, OSError, ValueError):  # not yet: no file, no answer, half a file
                time.sleep(0.1)
        raise RuntimeError(f"JupyterLab did not start:\n{self.tail()}")

    def ask(self, path: str, method: str = "GET", url: str | None = None):
        "The server's answer to a request of its REST interface."
        request = urllib.request.Request(f"{url or self.url}/{path}", method=method, headers={"Authorization": f"token {self.token}"})
        with DIRECT.open(request, timeout=60) as answer:
            return json.loads(answer.read() or "null")

    def tail(self) -> str:
        "The end of the server's log."
        return self.log.read_text(errors="replace")[-3000:]

    def end_sessions(self):
        "Ends the kernels of all open notebooks."
        for session in self.ask("api/sessions"):
            self.ask(f"api/sessions/{session['id']}", "DELETE")

    def stop(self):
        "Ends the server and its kernels, if need be by force: a kernel whose server is gone ends by itself."
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    "A running `Lab`."
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.stop()


RUN_ALL = """() => {
    const notebook = jupyterapp.shell.currentWidget;
    window.ran = undefined;
    notebook.sessionContext.session.kernel.registerCommTarget('dash', () => {});  // Open3D imports dash, which calls for an extension that is not there
    jupyterapp.commands.execute('notebook:run-all-cells').then(
        () => notebook.sessionContext.session.kernel.requestKernelInfo()  // answered once all that was sent is done
    ).then(() => {
        const outputs = notebook.content.model.sharedModel.cells.flatMap(cell => cell.outputs ?? []);
        const error = outputs.find(output => output.output_type === 'error');
        window.ran = error ? error.ename + ': ' + error.evalue : 'all';
    }, problem => { window.ran = String(problem); });
}"""
IS_OPEN = """() => {
    const notebook = window.jupyterapp?.shell.currentWidget;
    return notebook?.content?.model?.cells?.length > 0 && notebook.sessionContext.isReady && notebook.sessionContext.session?.kernel?.status === 'idle';
}"""


def refusal(capsys, *words):
    "The one line that a command says when it refuses."
    from xmodal import cli

    assert cli.main([str(word) for word in words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("xmodal: "), lines
    return lines[0]


def until(what, seconds=180.0):
    "Wait until a function gives something that is true; that is what it was."
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
    return value


WORKER = ("worker", "--nthreads", "1", "--no-nanny")  # for `dask`


@pytest.fixture
def dask(tmp_path):
    "`dask(arguments)` starts a scheduler or a worker on 127.0.0.1, which ends with the test."
    started = []

    def start(*arguments):
        command = [sys.executable, "-m", "dask", *arguments, "--scheduler-file", str(tmp_path / "scheduler.json"), "--host", "127.0.0.1", "--no-dashboard"]
        with open(tmp_path / f"dask{len(started)}.log", "w") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def address(tmp_path):
    "Where the scheduler of `dask` is."
    file = tmp_path / "scheduler.json"
    until(lambda: file.exists() and file.read_text().rstrip().endswith("}"))
    return json.loads(file.read_text())["address"]


def write_notebook(path, *cells, tags=("parameters",)):
    "A notebook of code cells, the first with tags."
    import nbformat

    book = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    book.cells = [nbformat.v4.new_code_cell(cell, metadata={"tags": list(tags) if i == 0 else []}) for i, cell in enumerate(cells)]
    nbformat.write(book, path)
    return path


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    "`prepare(words, then)` makes the folders of a sweep."
    from tiny_runs import AFTER, TRAINING

    from xmodal.plan import plan
    from xmodal.worker import write_plan

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    write_notebook(tmp_path / "tiny.ipynb", 'out = ""\nseed = 0  # 0 or more: of the run\nsteps = 4  # steps\npause = 0.0  # seconds of a step, until it goes on where it was stopped', TRAINING)
    write_notebook(tmp_path / "after.ipynb", 'out = ""\nseed = 0  # 0 or more: of the run', AFTER)
    return lambda words, then=(): write_plan(plan(tmp_path / "tiny.ipynb", words, then, tmp_path / "sweep"))
