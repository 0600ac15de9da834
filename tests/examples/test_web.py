import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_lole import Speech2Text

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WEB = Path(__file__).resolve().parents[2] / "examples" / "web.py"
NO_GRADIO = "needs the extra web: pip install 'espnet_lole[web]'"


@pytest.fixture
def noise(tmp_path) -> Path:
    """Two seconds of noise."""
    samples = np.random.default_rng(0).normal(0, 0.1, 32_000)
    soundfile.write(tmp_path / "noise.wav", samples, 16_000)
    return tmp_path / "noise.wav"


def test_without_gradio_the_page_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "web", raising=False)
    with pytest.raises(SystemExit, match=r"pip install 'espnet_lole\[web\]'"):
        import web  # noqa: F401


def test_two_systems_of_one_name_are_refused(recipe):
    pytest.importorskip("gradio", reason=NO_GRADIO)
    from web import main

    model = str(recipe / "exp" / "mole")
    with pytest.raises(SystemExit, match="error: two folders of --model have the same name"):
        main(["--model", model, "--model", model])


def test_a_column_has_text_posteriors_and_speed_or_a_reason(recipe, noise, tmp_path):
    gradio = pytest.importorskip("gradio", reason=NO_GRADIO)
    from web import DETECT, fill_column, load_systems

    (tmp_path / "decode.yaml").write_text("{maxlenratio: 0.1, vad: {threshold: 0}}\n")
    systems = load_systems([recipe / "exp" / name for name in ("mole", "experts")], "cpu", tmp_path / "decode.yaml")
    mole, experts, file = systems["mole"], systems["experts"], str(noise)
    text, posteriors, note, segments = fill_column(mole, file, DETECT, 1.0)
    assert text == mole(soundfile.read(noise, dtype="float32")[0])[0][0]
    assert sum(posteriors.values()) == pytest.approx(1) and "2.0 s of audio in" in note
    assert segments == [["0.0-2.0 s", max(posteriors, key=posteriors.get), text]]
    assert "choose it above" in fill_column(experts, file, DETECT, 1.0)[2]
    assert "Not trained for it, only for de en fr zh." in fill_column(experts, file, "it", 1.0)[2]
    _, given, note, _ = fill_column(experts, file, "fr", 1.0)
    assert given == {"fr": 1.0} and note.startswith("fr, given")
    detecting = load_systems([recipe / "exp" / "mole"], "cpu", None)["mole"]
    assert fill_column(detecting, file, DETECT, 1.0) == ("", {}, "No speech in 2.0 s of audio.", [])
    two = load_systems([recipe / "exp" / "mole"], "cpu", tmp_path / "decode.yaml", ["zh", "de"])["mole"]
    assert set(fill_column(two, file, DETECT, 1.0)[1]) == {"zh", "de"}
    with pytest.raises(gradio.Error, match="Record or upload"):
        fill_column(mole, None, DETECT, 1.0)
    with pytest.raises(gradio.Error, match="longer than 0.01 minutes"):
        fill_column(mole, file, DETECT, 0.01)
    soundfile.write(tmp_path / "dense.flac", np.zeros((190_000, 8)), 192_000)  # 6 MB in memory, 2 kB on disk
    with pytest.raises(gradio.Error, match="a rate of 192000 Hz: lower it to 96000 Hz at most"):
        fill_column(mole, str(tmp_path / "dense.flac"), DETECT, 0.02)
    with pytest.raises(gradio.Error, match="cannot be read as audio"):
        fill_column(mole, str(tmp_path / "decode.yaml"), DETECT, 1.0)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_in_a_browser(recipe, noise, tmp_path):
    """Upload a file, transcribe it with two systems, and read both columns."""
    pytest.importorskip("gradio", reason=NO_GRADIO)
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs the extra formats: pip install 'espnet_lole[formats]'"
    )
    (tmp_path / "decode.yaml").write_text("{maxlenratio: 0.1, vad: {threshold: 0}}\n")
    port = _free_port()
    models = [option for name in ("mole", "student") for option in ("--model", str(recipe / "exp" / name))]
    command = [sys.executable, str(WEB), *models, "--port", str(port)]
    server = subprocess.Popen([*command, "--config", str(tmp_path / "decode.yaml")], stderr=subprocess.DEVNULL)
    try:
        _wait(f"http://127.0.0.1:{port}", lambda: server.poll() is None)
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


class Counted(Speech2Text):
    """Counts how many transcriptions run at once."""

    now = most = 0

    def transcribe(self, *args, **kwargs):
        type(self).now += 1
        type(self).most = max(self.most, self.now)
        try:
            return iter(list(super().transcribe(*args, **kwargs)))
        finally:
            type(self).now -= 1


def _peak_mb() -> float:
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


@pytest.mark.slow
def test_fifty_requests_at_once_are_queued_or_refused_in_bounded_memory(recipe, tmp_path):
    """One request is transcribed at a time, through the queue or past it; no more wait than the queue has room for."""
    pytest.importorskip("gradio", reason=NO_GRADIO)
    from web import DETECT, build_page, serve

    def post(path: str, body: bytes, kind: str = "application/json") -> tuple[int, str]:
        request = urllib.request.Request(f"{address}/gradio_api/{path}", body, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def upload(seconds: float, channels: int) -> tuple[int, str]:
        samples = np.random.default_rng(0).normal(0, 0.1, (round(seconds * 48_000), channels))
        soundfile.write(tmp_path / "speech.wav", samples, 48_000)
        head = '--cut\r\nContent-Disposition: form-data; name="files"; filename="speech.wav"\r\n\r\n'
        data = head.encode() + (tmp_path / "speech.wav").read_bytes() + b"\r\n--cut--\r\n"
        return post("upload", data, "multipart/form-data; boundary=cut")

    def ask(file: str) -> str:
        """Return the result, or why there is none."""
        status, answer = post("call/transcribe", body(file))
        if status != 200:
            return f"{status} {answer}"
        with urllib.request.urlopen(
            f"{address}/gradio_api/call/transcribe/{json.loads(answer)['event_id']}", timeout=300
        ) as stream:
            return stream.read().decode()

    def body(file: str) -> bytes:
        return json.dumps({"data": [{"path": file, "meta": {"_type": "gradio.FileData"}}, DETECT]}).encode()

    (tmp_path / "decode.yaml").write_text("{maxlenratio: 0.02, vad: {threshold: 0}}\n")
    system = Counted.from_pretrained(recipe / "exp" / "mole", device="cpu", config=tmp_path / "decode.yaml")
    page, port = build_page({"mole": system}, max_minutes=0.5), _free_port()
    address = f"http://127.0.0.1:{port}"
    server = threading.Thread(target=serve, args=(page, "127.0.0.1", port, 5, 8), daemon=True)
    server.start()
    try:
        _wait(address, server.is_alive)
        (file,) = json.loads(upload(25, 2)[1])
        assert "times real time" in ask(file)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _peak_mb()
        with ThreadPoolExecutor(75) as pool:
            past = [pool.submit(post, "run/transcribe", body(file)) for _ in range(25)]
            answers = list(pool.map(ask, [file] * 50))
        refused = [answer for answer in answers if answer.startswith("503")]
        assert all("Queue is full. Max size is 8" in answer for answer in refused)
        assert (
            sum("times real time" in answer for answer in answers) == 50 - len(refused) and 8 <= 50 - len(refused) < 50
        )
        assert all(done.result()[0] == 404 and "Please join the queue" in done.result()[1] for done in past)
        assert Counted.most == 1 and _peak_mb() - before < 150

        status, why = upload(30, 2)
        assert status == 413 and "exceeded maximum allowed size of 5242880 bytes" in why
        (file,) = json.loads(upload(31, 1)[1])
        assert "longer than 0.5 minutes: cut it" in ask(file)
    finally:
        page.close()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait(address: str, alive: Callable[[], bool]) -> None:
    """Wait until the page is served."""
    for _ in range(240):
        assert alive(), "the server stopped"
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"nothing is served at {address}")
