"""README.md and the pages in docs: their commands, options, configs, links, messages and Python examples."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from d2_maskrcnn import engine_info
from d2_maskrcnn.cli.main import COMMANDS, build_parser
from d2_maskrcnn.config.keys import get_value
from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.config.named import named_config
from tools.mkdocs_hooks import on_page_content

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "datasets" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = {"train_net.py": "d2_maskrcnn.cli.train", "demo.py": "d2_maskrcnn.cli.demo"}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Return the module and the arguments of each command of this package on a page."""
    found = []
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for index, word in enumerate(words):
                if word == "d2-maskrcnn":
                    module = "main" if words[index + 1].startswith("-") else COMMANDS[words[index + 1]].module
                    found.append((module, words[index + 2 :]))
                elif word in SCRIPTS:
                    found.append((SCRIPTS[word], words[index + 1 :]))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_have_valid_options_and_configs(page):
    for module, words in commands(page):
        command = importlib.import_module(module)
        words = getattr(command, "with_option_names", list)(words)
        args = build_parser(command, module).parse_args(words)
        config = getattr(args, "config_file", "") or ""
        assert not config or "/" in config or named_config(config), f"{config} is no config of the package"


def test_the_readme_has_commands_of_each_kind():
    modules = {module.rpartition(".")[2] for module, _ in commands(ROOT / "README.md")}
    assert modules >= {"predict", "train", "eval", "inspect", "convert", "check"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_in_python_examples_exist(page):
    for block in blocks(page, "python"):
        tree = ast.parse(block)
        imports = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names: dict[str, object] = {}
        exec("\n".join(imports), names)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
                assert hasattr(names[node.value.id], node.attr), ast.unparse(node)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_config_keys_exist(page):
    cfg = load_config("base")
    for key in re.findall(
        r"\b(?:MODEL|INPUT|SOLVER|TEST|DATASETS|DATALOADER|D2_MASKRCNN)(?:\.[A-Z0-9_]+)+", page.read_text()
    ):
        get_value(cfg, key)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def messages() -> list[str]:
    """Return the texts in the code, with ``...`` for the values in them; docstrings are left out."""
    texts = []
    for path in (ROOT / "d2_maskrcnn").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(each.value if isinstance(each, ast.Constant) else "..." for each in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
                texts.append(node.value)
    return texts


def test_the_messages_of_the_troubleshooting_page_exist():
    rows = re.findall(r"^\| (`.*?`) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    quoted = [message for row in rows for message in re.findall("`(.+?)`", row)]
    known = messages()
    patterns = {message: re.compile(".*".join(map(re.escape, message.split("...")))) for message in quoted}
    assert len(quoted) > 20
    assert [each for each, pattern in patterns.items() if not any(map(pattern.search, known))] == []


def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks(ROOT / "README.md", "python"):
        exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "annotated.jpg").is_file()


@pytest.mark.parametrize(
    ("html", "shown"),
    [
        ("<pre><code>a --long-option\n</code></pre>", "<pre><code>a --long-option\n</code></pre>"),
        ("<code>a\n--long-option</code>", '<code>a <span class="word">--long-option</span></code>'),
        ("<code>MODEL.ROI_HEADS.NAME</code>", "<code>MODEL.<wbr>ROI_HEADS.<wbr>NAME</code>"),
        (":func:<code>~a.b</code>", "<code>a.b</code>"),
    ],
)
def test_code_in_running_text_breaks_where_it_can_be_read(html, shown):
    assert on_page_content(html) == shown


@pytest.mark.skipif(engine_info().name != "embedded", reason="the installed Detectron2 has a zoo of its own")
def test_the_model_zoo_page_lists_the_published_weights():
    entries = yaml.safe_load((Path(engine_info().path) / "model_zoo" / "entries.yaml").read_text())["weights"]
    page = (ROOT / "docs" / "model_zoo.md").read_text()
    for name, entry in entries.items():
        assert f"| `{name}` | {entry.get('box_AP', '')} | {entry.get('mask_AP', '')} |" in page
