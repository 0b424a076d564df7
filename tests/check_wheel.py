"""Builds the wheel, installs it in an environment of its own and runs it in an empty folder: `make check`."""

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
TINY = ["training.epochs=2", "training.finetune_epochs=1", "budget.cycles=2", "tracker=none", "runtime.num_threads=1"]


def call(*command: str | Path, cwd: Path) -> str:
    """Runs a command that must succeed; returns its standard output."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"check_wheel: {' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Exits with 0 if the installed package works without the checkout."""
    start_time = time.monotonic()
    with TemporaryDirectory(prefix="sslpl-wheel-") as name:
        folder, empty = Path(name), Path(name) / "empty"
        empty.mkdir()
        call(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
        (wheel,) = folder.glob("sslpl-*.whl")
        call(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
        python, sslpl = folder / "venv/bin/python", folder / "venv/bin/sslpl"
        call(python, "-m", "pip", "install", wheel, cwd=folder)  # with its declared dependencies only
        code = "import sslpl; print(sslpl.__file__)"
        assert call(python, "-c", code, cwd=empty).startswith(str(folder / "venv")), "the checkout was imported"
        assert "A run is a choice from each group" in call(sslpl, "--help", cwd=empty)
        call(sslpl, *TINY, cwd=empty)
        (status,) = empty.glob("outputs/digits/sslpm/*/status.json")
        assert '"finished"' in status.read_text()
        assert "finished already" in call(sslpl, *TINY, cwd=empty)
        assert [path.name for path in empty.iterdir()] == ["outputs"]
        page = (
            "import pathlib, sslpl; print(*(p.name for p in pathlib.Path(sslpl.__file__).parent.glob('oracle/page.*')))"
        )
        assert set(call(python, "-c", page, cwd=empty).split()) == {"page.html", "page.css", "page.js"}
        assert "badge" in call(python, "-m", "sslpl.select", "--list", cwd=empty)
        assert "sslpm" in call(python, "-m", "sslpl.report", "outputs", "--output", "report", cwd=empty)
        assert "Test accuracy" in (empty / "report/index.html").read_text()
    print(f"check_wheel: the installed {wheel.name} runs ({time.monotonic() - start_time:.0f} s)")


if __name__ == "__main__":
    main()
