"""Dockerfiles and the example of a load balancer, as far as they can be checked without a daemon and a network."""

import fnmatch
import importlib
import json
import re
import shlex
import shutil
import subprocess

import pytest

from d2_maskrcnn.cli.main import COMMANDS, build_parser

tomllib = pytest.importorskip("tomllib", reason="a part of Python since 3.11")
DOCKERFILES = ("Dockerfile", "Dockerfile.cuda")


@pytest.fixture(params=DOCKERFILES)
def steps(request, repo_dir):
    """The instructions of a Dockerfile: (name, arguments)."""
    text = re.sub(r"^#.*\n", "", (repo_dir / request.param).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def values(steps, name):
    return [arguments for step, arguments in steps if step == name]


def test_sources_exist_and_are_not_ignored(steps, repo_dir):
    ignored = [line for line in (repo_dir / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored[0] == "*"
    for words in map(shlex.split, values(steps, "COPY")):
        if words[0].startswith("--from="):
            continue
        for source in words[:-1]:
            assert (repo_dir / source).exists(), source
            assert f"!{source}" in ignored
            assert not any(fnmatch.fnmatch(source, line) for line in ignored[1:])


def test_what_setuptools_reads_is_copied(steps, repo_dir):
    copied = {source for words in values(steps, "COPY") for source in shlex.split(words)[:-1]}
    project = tomllib.loads((repo_dir / "pyproject.toml").read_text())["project"]
    assert copied >= {"pyproject.toml", "setup.py", "d2_maskrcnn", "configs", project["readme"]}
    assert copied >= set(project["license-files"])


def test_packages_are_pinned_and_extras_exist(steps, repo_dir):
    installs = [words for words in values(steps, "RUN") if "pip install" in words]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in words and "--no-cache-dir" in words for words in installs)
    extras = tomllib.loads((repo_dir / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (default,) = (value.removeprefix("EXTRAS=") for value in values(steps, "ARG"))
    assert set(default.split(",")) <= set(extras)
    for extra in re.findall(r"EXTRAS=([\w,]+)", (repo_dir / "docs" / "scaling.md").read_text()):
        assert set(extra.split(",")) <= set(extras)
    pins = (repo_dir / "constraints.txt").read_text().lower().replace("_", "-")
    for extra in ("serve", "ray"):
        for requirement in extras[extra]:
            name = re.match(r"[\w-]+", requirement).group().lower()
            assert f"\n{name}==" in pins, name


def test_user_command_and_health_check(steps):
    assert int(values(steps, "USER")[-1]) > 0
    assert [name for name, _ in steps].index("USER") < [name for name, _ in steps].index("ENTRYPOINT")
    assert json.loads(values(steps, "ENTRYPOINT")[0]) == ["d2-maskrcnn"]
    command, *words = json.loads(values(steps, "CMD")[0])
    module = COMMANDS[command].module
    args = build_parser(importlib.import_module(module), module).parse_args(words)
    assert args.host == "0.0.0.0"
    assert str(args.port) == values(steps, "EXPOSE")[0]
    options, _, check = values(steps, "HEALTHCHECK")[0].partition(" CMD ")
    assert "--start-period=" in options
    python, flag, code = json.loads(check)
    assert (python, flag) == ("python", "-c")
    compile(code, "HEALTHCHECK", "exec")
    path = re.search(rf"http://127\.0\.0\.1:{args.port}(/\w+)", code).group(1)
    assert path == "/health"


def test_load_balancer(repo_dir):
    config = repo_dir / "examples" / "nginx.conf"
    servers = re.findall(r"server 127\.0\.0\.1:(\d+)", config.read_text())
    page = (repo_dir / "docs" / "scaling.md").read_text()
    assert re.findall(r"serve model_best\.pth --port (\d+)", page) == servers
    assert "http://127.0.0.1:8080/predict" in page and "listen 127.0.0.1:8080" in config.read_text()
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    done = subprocess.run([program, "-t", "-c", str(config)], capture_output=True, text=True)
    assert "syntax is ok" in done.stderr, done.stderr
