"""What the papers show to programs works as it stands there: JavaScript, OpenAI's client, curl, MCP."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from gradio_client import Client

from csm.audio import load_audio
from csm.watermark import detect
from tests.papers import ADDRESS, DOCS, snippet

TOP = Path(__file__).parent.parent
MODULES = TOP / "tests" / "js" / "node_modules"


def test_the_javascript_client_runs(app, tmp_path):
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    if not (MODULES / "@gradio" / "client").is_dir():
        pytest.skip("the JavaScript client is not installed: npm install --prefix tests/js")
    (tmp_path / "node_modules").symlink_to(MODULES)
    (tmp_path / "snippet.mjs").write_text(snippet("javascript", "@gradio/client", app.url))
    done = subprocess.run(["node", "snippet.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert app.url in done.stdout and ".wav" in done.stdout and re.search(r" \d+\.\d+ \[", done.stdout)


def test_openais_client_runs(app, tmp_path, monkeypatch):
    pytest.importorskip("openai", reason="OpenAI's client is not installed: pip install openai")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    exec(compile(snippet("python", "openai", app.url), "api.md", "exec"), {})
    assert soundfile.info("speech.wav").duration > 1
    assert detect(load_audio("speech.wav")).marked


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl_runs(app, tmp_path):
    done = subprocess.run(
        ["bash", "-euc", snippet("sh", "curl", app.url)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert detect(load_audio(tmp_path / "speech.mp3")).marked


def test_every_function_of_the_api_page_says_what_it_does_and_what_it_takes(app):
    functions = Client(app.url, verbose=False).view_api(return_format="dict")["named_endpoints"]
    for name, function in functions.items():
        assert len(function["description"]) > 20, name
        for value in [*function["parameters"], *function["returns"]]:
            assert value["label"] and value["python_type"]["type"] not in ("", "Any"), (name, value["label"])
        assert all(parameter["parameter_name"] for parameter in function["parameters"])


def test_an_mcp_client_finds_every_function_described_and_calls_one(app):
    pytest.importorskip("mcp", reason="the package mcp is not installed")
    import anyio
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    address = re.search(rf"{re.escape(ADDRESS)}(/gradio_api/mcp/?)", (DOCS / "api.md").read_text())
    assert address

    async def talk():
        async with (
            streamable_http_client(app.url.rstrip("/") + address[1]) as (reading, writing, _),
            ClientSession(reading, writing) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            return tools, await session.call_tool("generate", {"script": "A: Hi.\nB: Hello.", "max_turn_seconds": 1.5})

    tools, answer = anyio.run(talk)
    assert {"generate", "voices", "check_watermark", "transcribe", "check_prompt"} <= {tool.name for tool in tools}
    for tool in tools:
        assert len(tool.description) > 20, tool.name
        for name, field in tool.inputSchema["properties"].items():
            assert field.get("description"), (tool.name, name)
    assert not answer.isError
    text = " ".join(part.text for part in answer.content if part.type == "text")
    assert ".wav" in text and "real_time_factor" in text


def test_the_app_starts_without_the_package_mcp():
    lacking = "import sys; sys.modules['mcp'] = None\nimport importlib.util as found; spec = found.find_spec\n"
    lacking += "found.find_spec = lambda name, *rest: None if name == 'mcp' else spec(name, *rest)\n"
    start = (
        "from csm.web import *\nfrom tests.small import small_generator\n"
        "studio = open_studio(small_generator())\n"
        "pages = Pages(studio)\n"
        "options = server_options(studio, pages)\nassert options['mcp_server'] is False\n"
        "app = build_app(studio, pages)\n"
        "_, url, _ = app.launch(**launch_options(), **options, server_name='127.0.0.1', server_port=None, "
        "prevent_thread_lock=True, quiet=True)\nprint('serves', url)\n"
    )
    done = subprocess.run([sys.executable, "-c", lacking + start], cwd=TOP, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and "serves http" in done.stdout, done.stderr[-2000:]
