"""The live table: what it shows while runs go on, and its buttons, also in JupyterLab."""

import contextlib
import json
import os
import threading
import time

import pytest

pytest.importorskip("papermill", reason="runs are notebooks, executed by papermill")
pytest.importorskip("anywidget", reason="the live table is a widget: pip install -e '.[lab]'")
from conftest import IS_OPEN, RUN_ALL, until  # noqa: E402
from tiny_runs import a_run, now, steps_of  # noqa: E402

from xmodal.sweep import sweep  # noqa: E402
from xmodal.viz.runs_view import RunsView, resume, runs_table, stop  # noqa: E402


def test_stop_and_resume(prepare):
    run = prepare(["steps=400", "pause=0.5"])[0]
    with pytest.raises(ValueError, match="is waiting: there is nothing to stop"):
        stop(run["folder"])
    view, heard = RunsView(run["folder"], every=0.1), []
    view.send = lambda news, buffers=None: heard.append(news)

    def press(act):
        heard.clear()
        view._hear(None, {"act": act, "run": run["folder"]}, [])

    def shown(act, *words):
        "Does a row have this button and these words? What is sent first need not be it."
        return any(row[2] == act and all(word in row[1] for word in words) for news in [*heard] for row in news["rows"])

    press("show")
    press("resume")
    until(lambda: shown("stop", ">running<", "/ 400", "<svg"))
    press("resume")  # a second time: refused, and said
    until(lambda: any("is running: there is nothing to resume" in news["said"] for news in [*heard]))
    press("stop")
    until(lambda: now(run)["state"] == "stopped")
    assert len(steps_of(run)) < 400
    until(lambda: shown("resume", ">stopped<"))
    press("resume")
    until(lambda: now(run)["state"] == "finished")
    assert steps_of(run) == list(range(1, 401)) and now(run)["attempts"] == 2
    until(lambda: shown("", ">finished<"))
    press("hide")
    until(lambda: not any("_keep_looking" in thread.name for thread in threading.enumerate()))
    view.close()


def test_a_stop_before_the_kernel_is_up_is_kept_and_no_runner_tries_again(prepare, tmp_path):
    (run,) = prepare(["steps=2000", "pause=0.1"])

    def early():
        until(lambda: now(run)["state"] == "running")
        stop(run["folder"])

    threading.Thread(target=early, daemon=True).start()
    (done,) = sweep(tmp_path / "tiny.ipynb", ["steps=2000", "pause=0.1"], out=tmp_path / "sweep", workers=1)
    assert (done["state"], done["attempts"]) == ("stopped", 1)


def test_the_table_survives_a_file_that_is_not_what_it_should_be(tmp_path):
    for name in "ab":
        (a_run(tmp_path / name, "finished") / "metrics.csv").write_text("step,loss\n1,4.0\n2,3.0\n")
    view, heard = RunsView(tmp_path, every=0.05), []
    view.send = lambda news, buffers=None: heard.append(news)
    (tmp_path / "b/metrics.csv").write_text("step,loss\none,4.0\ntwo,3.0\n")
    view._hear(None, {"act": "show"}, [])
    until(lambda: heard and "ValueError" in heard[-1]["said"])  # not in silence
    (tmp_path / "b/metrics.csv").write_text("step,loss\n1,4.0\n2,1.0\n")
    until(lambda: any(news["said"] == "2 runs: 2 finished" and len(news["rows"]) == 2 for news in [*heard]))  # all of it, also what was read before the trouble
    view.close()


def test_what_cannot_be_stopped_or_shown_as_it_is(tmp_path):
    with pytest.raises(ValueError, match="done is finished: there is nothing to stop"):
        stop(a_run(tmp_path / "done", "finished"))
    stop(a_run(tmp_path / "far", host="node7", heartbeat=time.time()))  # its worker there sees it
    assert (tmp_path / "far/stop").is_file()
    a_run(tmp_path / "bad", "failed", error="<b>no</b>", parameters={"seed": "<i>"})
    text = runs_table(tmp_path)
    assert "<b>no</b>" not in text and "&lt;b&gt;no" in text and "<i>" not in text
    with pytest.raises(ValueError, match="is not there"):
        resume(tmp_path / "none")


def test_the_table_in_jupyterlab(lab, browser, tmp_path, prepare):
    from playwright.sync_api import TimeoutError

    found = prepare(["seed=0..2", "steps=2000", "pause=0.5"])
    code = f"from xmodal.viz.runs_view import RunsView\nview = RunsView({str(tmp_path / 'sweep')!r}, every=0.3)\nview"
    cells = [{"cell_type": "code", "id": "cell-0", "metadata": {}, "source": code, "outputs": [], "execution_count": None}]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (lab.work / "runs.ipynb").write_text(json.dumps({"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}))
    page, errors = browser.new_context(viewport={"width": 1300, "height": 500}).new_page(), []
    page.set_default_timeout(180_000)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{lab.url}/lab/workspaces/runs/tree/runs.ipynb?token={lab.token}")
    page.wait_for_function(IS_OPEN)
    for patience in (10_000, 30_000, 90_000):  # JupyterLab learns to show widgets at some time after it has opened a notebook; what came before stays text
        page.evaluate(RUN_ALL)
        page.wait_for_function("window.ran !== undefined")
        assert page.evaluate("window.ran") == "all", lab.tail()
        with contextlib.suppress(TimeoutError):
            page.wait_for_selector(".xm-runs", timeout=patience)
            break
    row = page.locator(f".xm-runs tr[data-run='{found[0]['folder']}']")
    page.wait_for_selector(".xm-runs tbody tr:nth-child(3)")
    row.locator("button:has-text('start')").click()
    row.locator("svg").wait_for()
    row.locator("button:has-text('stop')").wait_for()
    if place := os.environ.get("XMODAL_PICTURE"):
        page.wait_for_timeout(3000)
        page.screenshot(path=place)
    place, told = row.locator("button:has-text('stop')").bounding_box(), row.inner_text()
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    page.mouse.down()  # a slow finger: the row changes below it
    page.wait_for_function("([row, told]) => row.innerText !== told", arg=[row.element_handle(), told])
    page.mouse.up()
    row.locator(".state:has-text('stopped')").wait_for()
    assert now(found[0])["state"] == "stopped" and page.locator(".xm-runs .state:has-text('waiting')").count() == 2
    page.context.close()
    lab.end_sessions()
    assert not errors, errors
