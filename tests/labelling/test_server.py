"""The page is for whoever has its address, on this machine, and serves nothing of the disk."""

import http.client
import os
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")


def ask(address, path="/", *, method="GET", host=None, cookie=None, body=None):
    """Status and headers of a request."""
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
    headers = {"Host": host or place.netloc} | ({"Cookie": cookie} if cookie else {})
    connection.request(method, path, body=body, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


def test_who_gets_in_and_to_what(served):
    run, address, _ = served
    place = urlsplit(address)
    assert place.hostname == "127.0.0.1" and len(place.query) > len("token=") + 30
    before = sorted(path for path in run.rglob("*"))

    for path in ("/", "/config", "/?token=", "/?token=wrong", "/gradio_api/info", "/gradio_api/upload"):
        status, _, content = ask(address, path)
        assert status == 403 and b"depthg.label" in content, path
    status, headers, _ = ask(address, f"/?{place.query}")
    assert status == 303 and headers["location"] == "/" and "HttpOnly; SameSite=Strict" in headers["set-cookie"]
    cookie = headers["set-cookie"].split(";")[0]
    assert ask(address, "/", cookie=cookie)[0] == 200 and ask(address, "/config", cookie=cookie)[0] == 200
    assert ask(address, "/", cookie=cookie[:-1])[0] == 403 and ask(address, "/", cookie="; =;\x7f")[0] == 403
    assert ask(address, "/", host=f"elsewhere.example:{place.port}", cookie=cookie)[0] == 403
    assert ask(address, f"/?{place.query}", host="elsewhere.example")[0] == 403

    secret = run / "config.yaml"
    for file in (
        "/etc/passwd",
        str(secret),
        os.path.relpath(secret),
        "../../../../../../etc/passwd",
        str(Path(__file__)),
    ):
        for route in ("/gradio_api/file=", "/file=", "/gradio_api/stream/", "/"):
            status, _, content = ask(address, route + file.replace("..", "%2e%2e"), cookie=cookie)
            assert status in (400, 403, 404, 405, 307) and b"root:" not in content and b"data:" not in content, (
                route + file
            )
    for path in ("/docs", "/openapi.json", "/redoc"):
        assert b"swagger" not in ask(address, path, cookie=cookie)[2].lower(), path
    assert sorted(path for path in run.rglob("*")) == before, "nothing is written before something is named"


def test_it_listens_on_this_machine_alone(served):
    place = urlsplit(served[1])
    other = socket.gethostbyname(socket.gethostname())
    if other.startswith("127."):
        pytest.skip("this machine has no other address")
    with pytest.raises(OSError), socket.create_connection((other, place.port), timeout=5):
        pass


def test_too_large_an_upload_is_refused():
    import gradio as gr
    from starlette.testclient import TestClient

    from depthg.labelling.server import COOKIE, application

    with gr.Blocks(analytics_enabled=False) as blocks:
        gr.File()
    client = TestClient(application(blocks, "", "secret", largest=1000), base_url="http://127.0.0.1")
    client.cookies.set(COOKIE, "secret")
    assert client.post("/gradio_api/upload", files={"files": ("a.png", b"x" * 500)}).status_code == 200
    assert client.post("/gradio_api/upload", files={"files": ("a.png", b"x" * 5000)}).status_code == 413


def test_a_taken_port_is_one_sentence(shared_tree, shared_run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [sys.executable, "-m", "depthg.label", shared_run, shared_tree / "val", "--no-browser"]
        done = subprocess.run([*command, "--port", str(taken.getsockname()[1])], capture_output=True, text=True)
    assert done.returncode == 1 and "give another --port" in done.stderr and "Traceback" not in done.stderr
