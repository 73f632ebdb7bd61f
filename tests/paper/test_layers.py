"""The paper is built on top of the product, which works without its folder."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import autoencode

SOURCE = Path(autoencode.__file__).parent


def test_one_function_imports_the_paper() -> None:
    mentioning = [
        path
        for path in SOURCE.rglob("*.py*")
        if path.suffix in (".py", ".pyi")
        and not path.is_relative_to(SOURCE / "paper")
        and "autoencode.paper" in path.read_text(encoding="utf-8")
    ]
    assert mentioning == [SOURCE / "cli" / "report_paper_app.py"]
    statements = ast.parse(mentioning[0].read_text(encoding="utf-8")).body
    [importing] = [one for one in statements if "autoencode.paper" in ast.unparse(one)]
    assert isinstance(importing, ast.FunctionDef)
    assert importing.name == "paper"


def test_without_the_folder_of_the_paper_the_other_commands_work(tmp_path: Path) -> None:
    shutil.copytree(SOURCE, tmp_path / "autoencode", ignore=shutil.ignore_patterns("paper", "__pycache__"))
    program = "import sys, autoencode.report, autoencode.cli.main as m; sys.argv[1:] = ['--help']; m.main()"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "report" in ran.stdout
