import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_lole import Speech2Text
from espnet_lole.cli.main import main

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NO_GRADIO = "needs the extra web: pip install 'espnet_lole[web]'"


@pytest.fixture
def noise(tmp_path) -> Path:
    """Two seconds of noise."""
    samples = np.random.default_rng(0).normal(0, 0.1, 32_000)
    soundfile.write(tmp_path / "noise.wav", samples, 16_000)
    return tmp_path / "noise.wav"


def test_without_gradio_the_page_says_what_to_install(recipe, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "espnet_lole.web", raising=False)
    assert main(["demo", "--model", str(recipe / "exp" / "mole")]) == 1
    assert "pip install 'espnet_lole[web]'" in capsys.readouterr().err


def test_two_systems_of_one_name_are_refused(recipe, capsys):
    assert main(["demo", "--model", str(recipe / "exp" / "mole"), "--model", str(recipe / "exp" / "mole")]) == 1
    assert "expected folders of different names" in capsys.readouterr().err


def test_a_column_shows_text_posteriors_and_time_or_why_not(recipe, noise, tmp_path):
    gradio = pytest.importorskip("gradio", reason=NO_GRADIO)
    from espnet_lole.web import FOUND, _shown

    (tmp_path / "decode.yaml").write_text("maxlenratio: 0.1\n")
    load = {
        name: Speech2Text.from_pretrained(recipe / "exp" / name, config=tmp_path / "decode.yaml") for name in ("mole", "experts")
    }
    text, posteriors, note = _shown(load["mole"], str(noise), FOUND, 1.0)
    assert text == load["mole"](soundfile.read(noise, dtype="float32")[0])[0][0]
    assert sum(posteriors.values()) == pytest.approx(1) and "2.0 s of audio in" in note
    assert "choose it above" in _shown(load["experts"], str(noise), FOUND, 1.0)[2]
    assert "Not trained for it: it knows de en fr zh." in _shown(load["experts"], str(noise), "it", 1.0)[2]
    _, given, note = _shown(load["experts"], str(noise), "fr", 1.0)
    assert given == {"fr": 1.0} and note.startswith("fr, given")
    with pytest.raises(gradio.Error, match="Record or upload"):
        _shown(load["mole"], None, FOUND, 1.0)
    with pytest.raises(gradio.Error, match="Expected 0.01 minutes at most"):
        _shown(load["mole"], str(noise), FOUND, 0.01)
    with pytest.raises(gradio.Error, match="cannot be read as audio"):
        _shown(load["mole"], str(tmp_path / "decode.yaml"), FOUND, 1.0)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_in_a_browser(recipe, noise, tmp_path):
    """Upload a file, transcribe it with two systems, and read both columns."""
    pytest.importorskip("gradio", reason=NO_GRADIO)
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra formats: pip install 'espnet_lole[formats]'")
    (tmp_path / "decode.yaml").write_text("maxlenratio: 0.1\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    models = [option for name in ("mole", "student") for option in ("--model", str(recipe / "exp" / name))]
    command = [sys.executable, "-m", "espnet_lole.cli.main", "demo", *models, "--port", str(port)]
    server = subprocess.Popen([*command, "--config", str(tmp_path / "decode.yaml")], stderr=subprocess.DEVNULL)
    try:
        _wait(f"http://127.0.0.1:{port}", server)
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
            )
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{port}", wait_until="domcontentloaded", timeout=120_000)
            page.wait_for_selector("#transcribe", timeout=120_000)
            page.set_input_files("input[type=file]", noise)
            page.wait_for_selector("text=0:02", timeout=60_000)  # uploaded: its length is shown
            page.click("#transcribe")
            page.wait_for_function("document.body.innerText.match(/times real time/g)?.length === 2", timeout=120_000)
            texts = [box.input_value() for box in page.query_selector_all("textarea")]
            browser.close()
    finally:
        server.terminate()
        server.wait(30)
    row = soundfile.read(noise, dtype="float32")[0]
    for name, text in zip(("mole", "student"), texts, strict=True):
        s2t = Speech2Text.from_pretrained(recipe / "exp" / name, config=tmp_path / "decode.yaml")
        assert text == s2t(row)[0][0]


def _wait(address: str, server: subprocess.Popen) -> None:
    """Until the page is served."""
    for _ in range(240):
        assert server.poll() is None, "the server stopped"
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"nothing is served at {address}")
