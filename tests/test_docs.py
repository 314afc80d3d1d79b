"""Documents are what the code says."""

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def test_the_page_of_commands_is_made_from_the_commands(tmp_path):
    """`make docs` writes it."""
    command = ["-m", "typer", "m2bert.cli", "utils", "docs", "--name", "m2bert", "--title", "Commands"]
    subprocess.run([sys.executable, *command, "--output", tmp_path / "cli.md"], check=True, capture_output=True)
    made = html.unescape((tmp_path / "cli.md").read_text())
    assert html.unescape((ROOT / "docs" / "cli.md").read_text()) == made


def anchors(text):
    """Return the names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page):
    text = BLOCK.sub("", (ROOT / page).read_text())
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", text):
        if not target.startswith(("http:", "https:")):
            path = (ROOT / page).parent / target if target else ROOT / page
            assert path.exists(), target
            assert not anchor or anchor in anchors(path.read_text()), f"{target}#{anchor}"


def test_the_readme_s_quickstart_prints_what_it_shows():
    blocks = BLOCK.findall((ROOT / "README.md").read_text())
    [number] = [number for number, (kind, code) in enumerate(blocks) if kind == "python" and "print(" in code]
    shown = [float(value) for value in re.findall(r"\d\.\d+", blocks[number + 1][1])]
    done = subprocess.run(
        [sys.executable, "-c", blocks[number][1]], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert [float(value) for value in re.findall(r"\d\.\d+", done.stdout)] == pytest.approx(shown, abs=2e-4)
    assert len(shown) == 4


INTEGRATIONS = BLOCK.findall((ROOT / "docs" / "integrations.md").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, len(INTEGRATIONS), 2))
def test_integrations_print_what_they_show(number):
    """Run each tool's snippet after the page's first block; each snippet is followed by what it prints."""
    (_, setup), (kind, code), (_, shown) = INTEGRATIONS[0], *INTEGRATIONS[number : number + 2]
    pytest.importorskip(re.search(r"(?:import|from) (\w+)", code)[1], reason="the tool is not installed")
    done = subprocess.run([sys.executable, "-c", setup + code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert (kind, done.stdout) == ("python", shown)
